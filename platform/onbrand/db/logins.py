"""Creates the roles that Onbrand uses on a PostgreSQL server, and the two logins of each of its databases.

Roles belong to the server, so the migrations of one database do not create them. All databases of the server share the
roles that cannot log in; a login belongs to one database and cannot connect to another platform's.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from onbrand.db.dsn import connect
from onbrand.errors import ConfigurationError

Login = Literal["web", "system"]
LOGINS: tuple[Login, Login] = ("web", "system")
_NOLOGIN = (
    "onbrand_owner", "onbrand_identity", "onbrand_definer", "onbrand_operator", "anon", "authenticated", "brand_system",
    "onbrand_dispatcher",
)  # fmt: skip
_OWNERS = ("onbrand_owner", "onbrand_identity", "onbrand_definer", "onbrand_operator")
_MAY_BECOME = {"web": ("anon", "authenticated"), "system": ("brand_system", "onbrand_dispatcher")}
_STATEMENT_TIMEOUT = {"web": "20s", "system": "60s"}
_NAME_BYTES = 63
_OLDEST = {15: 150014, 16: 160010, 17: 170006}
_LOCK = 0x0B4A4D


@dataclass(frozen=True, slots=True, repr=False)
class DatabaseUrls:
    """DSNs of the owner (migrations only) and of the two logins. They contain passwords: never log one."""

    owner_url: str
    web_url: str
    system_url: str

    def __repr__(self) -> str:
        return "DatabaseUrls(...)"


def login_name(login: Login, database: str) -> str:
    """The name of a database's login: contains the database's name, or its hash if that is too long."""
    name = f"onbrand_{login}_{database}"
    if len(name.encode()) <= _NAME_BYTES:
        return name
    return f"onbrand_{login}_{hashlib.sha256(database.encode()).hexdigest()[:16]}"


def prepare(
    owner_url: str, web_password: str | None = None, system_password: str | None = None, *, reset: bool = False
) -> DatabaseUrls:
    """Create missing roles and logins of the database. Safe to repeat and to run concurrently.

    Passwords that are not given are generated.

    Args:
        reset: set the passwords of existing logins; without it, they must already have the given ones.

    Raises:
        ConfigurationError: the server is too old; the owner may not create roles or does not own the database; or a
            login exists with another password.
        Unavailable: the server does not answer.
    """
    passwords: dict[Login, str] = {
        "web": web_password or secrets.token_hex(24),
        "system": system_password or secrets.token_hex(24),
    }
    with connect_as_owner(owner_url) as connection:
        must_be_new_enough(connection.info.server_version)
        connection.execute("select pg_advisory_xact_lock(%s)", [_LOCK])
        try:
            _make_roles(connection)
            _close_to_others(connection)
            existing = {
                login for login, password in passwords.items() if not _let_in(connection, login, password, reset)
            }
        except psycopg.errors.InsufficientPrivilege:
            raise ConfigurationError(
                "the owner of the database may not make roles; let it own the database and give it CREATEROLE "
                "(alter role ... createrole), nothing more",
                param="database_url",
            ) from None
        database = connection.info.dbname
    urls = {login: _as_login(owner_url, login_name(login, database), password) for login, password in passwords.items()}
    for login in existing:
        _must_open(urls[login], login_name(login, database))
    return DatabaseUrls(owner_url, urls["web"], urls["system"])


def _must_open(url: str, name: str) -> None:
    """Raise ConfigurationError if an existing login has another password; it is not changed without `reset`."""
    try:
        psycopg.connect(url, connect_timeout=10).close()
    except psycopg.OperationalError:
        raise ConfigurationError(
            f"the login {name} exists and has another password than this data directory knows: another platform may "
            "use it. Set ONBRAND_WEB_DATABASE_URL and ONBRAND_SYSTEM_DATABASE_URL, or ONBRAND_RESET_LOGINS=true to "
            "give it a new password",
            param="database_url",
        ) from None


def connect_as_owner(owner_url: str, *, autocommit: bool = False) -> psycopg.Connection:
    """Connect as the owner. Raises ConfigurationError and Unavailable, without the DSN in the message."""
    return connect(owner_url, connect_timeout=10, autocommit=autocommit, application_name="onbrand-owner")


def must_be_new_enough(version: int) -> None:
    """Raise ConfigurationError below 15.14, 16.10 and 17.6: older versions have bugs in row-level security."""
    if version < _OLDEST.get(version // 10000, 0 if version >= 180000 else 150014):
        found = f"{version // 10000}.{version % 10000}"
        raise ConfigurationError(
            f"PostgreSQL {found} is too old; use 15.14, 16.10, 17.6, 18 or newer", param="database_url"
        )


def _make_roles(connection: psycopg.Connection) -> None:
    for role in _NOLOGIN:
        _make_role(connection, role, "nologin noinherit")
    connection.execute(
        sql.SQL(
            "do $$ begin if not (select rolsuper from pg_roles where rolname = current_user) then "
            "execute format('grant {} to %I', current_user); end if; end $$"
        ).format(sql.SQL(", ").join(map(sql.Identifier, _OWNERS)))
    )


def _make_role(connection: psycopg.Connection, role: str, attributes: str) -> bool:
    """Create the role unless it exists; whether it was created."""
    if connection.execute("select 1 from pg_roles where rolname = %s", [role]).fetchone() is not None:
        return False
    connection.execute(sql.SQL("create role {} {}").format(sql.Identifier(role), sql.SQL(attributes)))  # type: ignore[arg-type]
    return True


def _close_to_others(connection: psycopg.Connection) -> None:
    """Revoke the right to connect from PUBLIC; the owner, the logins and explicitly granted roles keep it.

    Raises ConfigurationError if the owner's login may not do this.
    """
    database = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("revoke connect, temporary on database {} from public").format(database))
    row = connection.execute("select has_database_privilege('public', current_database(), 'connect')").fetchone()
    if row is None or row[0]:
        raise ConfigurationError(
            "every role of the server may connect to this database, and the owner's login cannot change that; "
            f'run as a superuser: alter database "{connection.info.dbname}" owner to <the owner\'s login>',
            param="database_url",
        )


def _let_in(connection: psycopg.Connection, login: Login, password: str, reset: bool) -> bool:
    """Let `login` connect and become its own roles only; whether `password` was set now."""
    role = login_name(login, connection.info.dbname)
    is_new = _make_role(connection, role, "login noinherit")
    name, database = sql.Identifier(role), sql.Identifier(connection.info.dbname)
    if is_new or reset:
        verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
        connection.execute(
            sql.SQL("alter role {} with login noinherit password {}").format(name, sql.Literal(verifier))
        )
    for other in _MAY_BECOME[login]:
        connection.execute(sql.SQL("grant {} to {}").format(sql.Identifier(other), name))
    connection.execute(sql.SQL("grant connect on database {} to {}").format(database, name))
    connection.execute(sql.SQL("alter role {} reset all").format(name))  # a login may change its own settings
    connection.execute(sql.SQL("alter role {} in database {} reset all").format(name, database))
    for setting, value in (
        ("statement_timeout", _STATEMENT_TIMEOUT[login]),
        ("idle_in_transaction_session_timeout", "5min"),
        ("timezone", "UTC"),
        ("enable_bitmapscan", "off"),  # without statistics it would be chosen over reading 100 rows in order
    ):
        statement = sql.SQL("alter role {} set {} = {}")
        connection.execute(statement.format(name, sql.Identifier(setting), sql.Literal(value)))
    return is_new or reset


def _as_login(owner_url: str, login: str, password: str) -> str:
    return make_conninfo(owner_url, user=login, password=password)
