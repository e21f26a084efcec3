"""Sets role and signed claims on a plain connection, as the platform does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from onbrand.db.claims import STAMP, ClaimsSigner

SET = (
    "select set_config('role', %s, true), set_config('request.jwt.claims', %s, true),"
    " set_config('request.scope', %s, true), set_config('request.claims_signature', %s, true)"
)


def become(
    connection: psycopg.Connection[Any], signer: ClaimsSigner, role: str = "authenticated", **claims: Any
) -> None:
    """Set this role and these signed claims for the rest of the transaction."""
    connection.execute(SET, [role, *signer.sign(role, claims, stamp_of(connection))])


def forge(connection: psycopg.Connection[Any], role: str, claims: Mapping[str, Any]) -> None:
    """Set role and claims without a signature, as an attacker with a stolen login can."""
    connection.execute(SET, [role, *ClaimsSigner("00" * 32).sign(role, claims, stamp_of(connection))])


def stamp_of(connection: psycopg.Connection[Any]) -> str:
    """The stamp of the connection's transaction."""
    row = connection.execute(f"select {STAMP}").fetchone()
    assert row is not None
    return str(row[0] if isinstance(row, tuple) else row["stamp"])
