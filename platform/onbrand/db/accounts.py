"""Verifies and releases accounts' email addresses, as the database's owner. The API uses `services.identity`."""

from __future__ import annotations

from typing import Any

import psycopg

from onbrand.db.logins import connect_as_owner
from onbrand.errors import ConfigurationError, Conflict, NotFound

_VERIFY = """
update identity.users set email_verified_at = coalesce(email_verified_at, clock_timestamp())
where email = lower(%s) returning id::text
"""
_RELEASE = """
update identity.users set email = null where email = lower(%s) and email_verified_at is null returning id::text
"""
_END_SESSIONS = "update identity.sessions set ended_at = clock_timestamp() where user_id = %s and ended_at is null"


def verify_address(owner_url: str, email: str) -> str:
    """Mark an account's address as verified; the account's id. Raises NotFound, Unavailable, ConfigurationError."""
    with connect_as_owner(owner_url) as connection:
        found = _run(connection, _VERIFY, email)
        if found is None:
            raise NotFound(f"there is no account with the address {email}", param="email")
        return found


def release_address(owner_url: str, email: str) -> str:
    """Take an unverified address from an account; the account's id.

    The address's owner can then sign up with it. The account remains without an address: password login stops working,
    its page sessions end, and its tokens remain valid until they expire.

    Raises:
        Conflict: the address is verified.
        NotFound: no account has it.
    """
    with connect_as_owner(owner_url) as connection:
        found = _run(connection, _RELEASE, email)
        if found is None:
            raise _cannot_release(connection, email)
        connection.execute(_END_SESSIONS, [found])
        return found


def _cannot_release(connection: psycopg.Connection[Any], email: str) -> Conflict | NotFound:
    if _run(connection, "select id::text from identity.users where email = lower(%s)", email) is None:
        return NotFound(f"there is no account with the address {email}", param="email")
    return Conflict(f"the address {email} is verified; it stays with its account", param="email")


def _run(connection: psycopg.Connection[Any], statement: str, email: str) -> str | None:
    """Run the statement as the role that owns accounts; the id of the affected account, or None."""
    try:
        connection.execute("set local role onbrand_identity")
        row = connection.execute(statement, [email]).fetchone()  # type: ignore[arg-type]
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidParameterValue):
        raise ConfigurationError(
            "this login may not settle addresses; use the owner that ran this version's migrations",
            param="database_url",
        ) from None
    return None if row is None else str(row[0])
