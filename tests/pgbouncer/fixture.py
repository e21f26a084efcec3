"""The fixture `pgbouncer`: a real pgbouncer in transaction mode in front of the session's database.

Tests that need it are skipped with the reason where it cannot be installed (not Debian 12, or no network).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from onbrand.db import embedded, server
from onbrand.db.logins import DatabaseUrls

HERE = Path(__file__).parent
PORT = 6432
_CONFIGURATION = """
[databases]
* = host={socket} port=5432
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = {port}
pool_mode = transaction
auth_type = scram-sha-256
auth_file = {folder}/users.txt
default_pool_size = 4
max_client_conn = 400
logfile = {folder}/log
"""


@dataclass(frozen=True)
class Pooled:
    """DSNs of the two logins through the pooler."""

    web_url: str
    system_url: str


@pytest.fixture(scope="session")
def pgbouncer(database: DatabaseUrls) -> Iterator[Pooled]:
    """A running pooler with four server connections for each login."""
    if not isinstance(database, embedded.EmbeddedDatabase):
        pytest.skip("the pooler stands before the embedded server")
    packages = Path(os.environ.get("ONBRAND_TEST_PGBOUNCER", "~/.cache/onbrand/pgbouncer")).expanduser()
    if reason := _fetch(packages):
        pytest.skip(f"no pgbouncer for this test: {reason}")
    with tempfile.TemporaryDirectory(prefix="onbrand-pgbouncer-") as name:
        folder = Path(name)
        urls = [database.web_url, database.system_url]
        with _running(packages, folder, embedded._socket_folder(database.folder), urls):
            yield Pooled(*(make_conninfo(url, host=str(folder), port=PORT) for url in urls))


def _fetch(folder: Path) -> str | None:
    """Download missing packages; two sessions at once wait for each other. Returns the reason if that fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [str(HERE / "install_pgbouncer.sh"), str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as problem:
            return str(problem)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it could not be fetched"])[-1]


@contextlib.contextmanager
def _running(packages: Path, folder: Path, socket: Path, urls: list[str]) -> Iterator[None]:
    """A pgbouncer process; it refuses to run as root, and runs as the embedded server's account then."""
    program = folder / "pgbouncer"
    shutil.copy(packages / "usr/sbin/pgbouncer", program)
    for library in packages.glob("usr/lib/*/lib*.so.*"):
        shutil.copy(library, folder)
    parts = [conninfo_to_dict(url) for url in urls]
    (folder / "users.txt").write_text("".join(f'"{each["user"]}" "{each["password"]}"\n' for each in parts))
    (folder / "pgbouncer.ini").write_text(_CONFIGURATION.format(folder=folder, socket=socket, port=PORT))
    account = server._account()
    if account is not None:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, account, account)
    who = {} if account is None else {"user": account, "group": account, "extra_groups": []}
    process = subprocess.Popen(
        [program, folder / "pgbouncer.ini"],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        stderr=subprocess.DEVNULL,
        **who,  # type: ignore[call-overload]
    )
    try:
        _await_answer(make_conninfo(urls[0], host=str(folder), port=PORT), folder)
        yield
    finally:
        process.terminate()
        process.wait(20)


def _await_answer(url: str, folder: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                log = folder / "log"
                pytest.fail(f"pgbouncer does not answer: {log.read_text()[-500:] if log.exists() else 'no log'}")
            time.sleep(0.05)
