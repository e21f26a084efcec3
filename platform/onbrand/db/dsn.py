"""Parses DSNs with libpq and connects; errors are one line and never repeat a part of the DSN.

Any part of a DSN may contain the password (an unquoted `@` moves it into the host). So no error quotes one, and
libpq's messages are only matched, not passed on.
"""

from __future__ import annotations

import difflib
import re

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from onbrand.environment import forget_postgres_variables
from onbrand.errors import ConfigurationError, OnbrandError, Unavailable

_EXAMPLE = "write it as postgresql://user:password@host:5432/database"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
_TAKEN_SCHEMES = ("postgresql://", "postgres://")
_UNKNOWN_OPTION = re.compile(r'invalid (?:connection option|URI query parameter:?) "([^"]*)"')
_MALFORMED = (
    ("percent-encoded", "has a '%' that begins no hexadecimal byte; write '%25' for '%'"),
    ("unterminated quoted", "has a quote that does not end"),
    ('missing "="', f"is no list of option=value, and no URL; {_EXAMPLE}"),
    ("port", "has a port that is no number from 1 to 65535"),
)
_REASONS = (
    ("no password supplied", "it asks for a password and the DSN has none; PG* variables are not read"),
    ("password authentication failed", "it refuses the user or the password"),
    ("does not exist", "the user or the database is not there"),
    ("definition of service", "the service that the DSN names is in no service file"),
    ("no pg_hba.conf entry", "its pg_hba.conf lets nobody in from here"),
    ("certificate", "its certificate is not accepted"),
    ("SSL", "they do not agree on SSL; look at sslmode"),
    ("resolve host", "the host's name is not known"),
    ("translate host name", "the host's name is not known"),
    ("refused", "nobody listens at the host and port"),
    ("timeout", "nobody answers at the host and port"),
    ("No such file or directory", "there is no socket at the host and port"),
    ("too many clients", "all its connections are taken"),
    ("too many connections", "all its connections are taken"),
)
_WRONG_SETTINGS = ("definition of service", "invalid ")


def must_be_dsn(dsn: str, setting: str = "database_url") -> str:
    """Return `dsn` if libpq can read it.

    Args:
        setting: the setting that holds it, for the error.

    Raises ConfigurationError, without any part of it.
    """
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as problem:
        raise _refused(setting, _why_unreadable(dsn, str(problem))) from None
    except (UnicodeError, ValueError):
        raise _refused(setting, "has bytes that are not UTF-8, or a NUL") from None
    if not all(_is_port(port) for port in str(parts.get("port") or "").split(",")):
        raise _refused(setting, "has a port that is no number from 1 to 65535")
    return dsn


def explicit_dsn(connection: psycopg.Connection) -> str:
    """The DSN of an open connection, independent of service files, password files and this machine's defaults.

    Other processes, which lack these, connect to the same database with it. It contains the password.
    """
    known = connection.info.get_parameters()
    elsewhere = ("service", "servicefile", "passfile")
    password = {"password": connection.info.password} if connection.info.password else {}
    return make_conninfo(**{name: value for name, value in known.items() if name not in elsewhere}, **password)


def connect(dsn: str, setting: str = "database_url", **how: object) -> psycopg.Connection:
    """Connect with the DSN and ignore `PG*` variables. `how` goes to psycopg.

    Raises:
        ConfigurationError: the DSN cannot be parsed, or names an unknown service.
        Unavailable: the server does not answer or refuses the connection; the message gives the reason, not the DSN.
    """
    must_be_dsn(dsn, setting)
    forget_postgres_variables()
    try:
        return psycopg.connect(dsn, **how)  # type: ignore[arg-type]
    except psycopg.Error as problem:
        raise _not_connected(setting, str(problem)) from None
    except UnicodeError:
        raise _refused(setting, "has bytes that are not UTF-8") from None


def _not_connected(setting: str, message: str) -> OnbrandError:
    reason = next((reason for sign, reason in _REASONS if sign in message), "the server's log says why")
    kind = ConfigurationError if any(sign in message for sign in _WRONG_SETTINGS) else Unavailable
    known = reason if kind is Unavailable or "service" in message else "an option of it has a value that libpq refuses"
    return kind(f"the database of {_variable(setting)} does not accept the owner's connection: {known}", param=setting)


def _why_unreadable(dsn: str, message: str) -> str:
    scheme = _SCHEME.match(dsn.strip())
    if scheme and scheme.group() not in _TAKEN_SCHEMES:
        form = "is in SQLAlchemy's form" if "+" in scheme.group() else "has a scheme that is not PostgreSQL's"
        return f"{form}; {_EXAMPLE}"
    if found := _UNKNOWN_OPTION.search(message):
        return f"has an option that libpq does not know{_nearest_option(found.group(1))}"
    return next((reason for sign, reason in _MALFORMED if sign in message), f"cannot be read; {_EXAMPLE}")


def _nearest_option(name: str) -> str:
    """A hint at libpq's nearest option name. The given name is not repeated: it may be part of a password."""
    known = sorted(option.keyword.decode() for option in pq.Conninfo.get_defaults())
    found = difflib.get_close_matches(name, known, n=1)
    return f"; do you mean {found[0]}?" if found else ""


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535)


def _refused(setting: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{_variable(setting)} {why}", param=setting)


def _variable(setting: str) -> str:
    return f"ONBRAND_{setting.upper()}"
