"""The roles of a PostgreSQL cluster that Onbrand runs on, and the two logins that can never become each other.

Roles belong to the cluster, so they are made here and not in the migrations of one database.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from onbrand.db.dsn import connect
from onbrand.errors import ConfigurationError

WEB, SYSTEM = "onbrand_web", "onbrand_system"
_NOLOGIN = ("onbrand_owner", "onbrand_identity", "anon", "authenticated", "brand_system", "onbrand_dispatcher")
_MAY_BECOME = {WEB: ("anon", "authenticated"), SYSTEM: ("brand_system", "onbrand_dispatcher")}
_STATEMENT_TIMEOUT = {WEB: "20s", SYSTEM: "60s"}
_OLDEST = {15: 150014, 16: 160010, 17: 170006}
_LOCK = 0x0B4A4D


@dataclass(frozen=True, slots=True, repr=False)
class DatabaseUrls:
    """DSNs of the owner (migrations only) and of the two logins. Their passwords are in them: never log one."""

    owner_url: str
    web_url: str
    system_url: str

    def __repr__(self) -> str:
        return "DatabaseUrls(...)"


def prepare(owner_url: str, web_password: str | None = None, system_password: str | None = None) -> DatabaseUrls:
    """Make the roles and logins that are missing in the cluster of `owner_url`, and set the logins' passwords.

    Passwords that are not given are generated. Safe to repeat and to race.

    Raises:
        ConfigurationError: the server is too old, or the owner may not make roles.
        Unavailable: nobody answers.
    """
    passwords = {WEB: web_password or secrets.token_hex(24), SYSTEM: system_password or secrets.token_hex(24)}
    with connect_as_owner(owner_url) as connection:
        must_be_new_enough(connection.info.server_version)
        connection.execute("select pg_advisory_xact_lock(%s)", [_LOCK])
        try:
            _make_roles(connection)
            for login, password in passwords.items():
                _let_in(connection, login, password)
        except psycopg.errors.InsufficientPrivilege:
            raise ConfigurationError(
                "the owner of the database may not make roles; give it CREATEROLE and BYPASSRLS, or use a superuser",
                param="database_url",
            ) from None
    return DatabaseUrls(
        owner_url,
        _as_login(owner_url, WEB, passwords[WEB]),
        _as_login(owner_url, SYSTEM, passwords[SYSTEM]),
    )


def connect_as_owner(owner_url: str, *, autocommit: bool = False) -> psycopg.Connection:
    """A plain connection of the owner. Raises ConfigurationError and Unavailable without saying the DSN."""
    return connect(owner_url, connect_timeout=10, autocommit=autocommit, application_name="onbrand-owner")


def must_be_new_enough(version: int) -> None:
    """Raise ConfigurationError below 15.14, 16.10 and 17.6: older ones have holes in row security."""
    if version < _OLDEST.get(version // 10000, 0 if version >= 180000 else 150014):
        found = f"{version // 10000}.{version % 10000}"
        raise ConfigurationError(
            f"PostgreSQL {found} is too old; use 15.14, 16.10, 17.6, 18 or newer", param="database_url"
        )


def _make_roles(connection: psycopg.Connection) -> None:
    for role in _NOLOGIN:
        _make_role(connection, role, "nologin noinherit")
    _make_role(connection, "onbrand_definer", "nologin noinherit bypassrls")
    connection.execute(
        "do $$ begin if not (select rolsuper from pg_roles where rolname = current_user) then "
        "execute format('grant onbrand_owner, onbrand_identity, onbrand_definer to %I', current_user); "
        "end if; end $$"
    )


def _make_role(connection: psycopg.Connection, role: str, attributes: str) -> None:
    if connection.execute("select 1 from pg_roles where rolname = %s", [role]).fetchone() is None:
        connection.execute(sql.SQL("create role {} {}").format(sql.Identifier(role), sql.SQL(attributes)))  # type: ignore[arg-type]


def _let_in(connection: psycopg.Connection, login: str, password: str) -> None:
    """Make `login` able to connect, and to become its own roles and no others."""
    _make_role(connection, login, "login noinherit")
    name = sql.Identifier(login)
    verifier = connection.pgconn.encrypt_password(password.encode(), login.encode(), b"scram-sha-256").decode()
    connection.execute(sql.SQL("alter role {} with login noinherit password {}").format(name, sql.Literal(verifier)))
    for role in _MAY_BECOME[login]:
        connection.execute(sql.SQL("grant {} to {}").format(sql.Identifier(role), name))
    timeout = sql.Literal(_STATEMENT_TIMEOUT[login])
    connection.execute(sql.SQL("alter role {} set statement_timeout = {}").format(name, timeout))
    connection.execute(sql.SQL("alter role {} set idle_in_transaction_session_timeout = '5min'").format(name))
    database = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("revoke temporary on database {} from public").format(database))
    connection.execute(sql.SQL("grant connect on database {} to {}").format(database, name))


def _as_login(owner_url: str, login: str, password: str) -> str:
    return make_conninfo(owner_url, user=login, password=password)
