"""Answers remembered by their caller's Idempotency-Key, in the same transaction as the call's effects.

A failed call leaves no key. Of two concurrent calls, the second waits for the first and gets its answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from onbrand.db.session import Session
from onbrand.errors import Conflict

KEPT_HOURS = 24


@dataclass(frozen=True, slots=True)
class Remembered:
    """The answer to an earlier call with this key."""

    status: int
    body: Any


@dataclass(frozen=True, slots=True)
class CallKey:
    """One key of one caller in one brand (or in none), and the request made with it. An API key is a separate caller.

    Args:
        request_sha256: digest of address and body, hex.
    """

    user_id: str
    brand_id: str | None
    key: str
    route: str
    request_sha256: str
    key_id: str | None = None


async def claim(session: Session, call: CallKey) -> Remembered | None:
    """Take the key: None means proceed and `remember`. Raises Conflict if it was used for another request."""
    await _forget_old(session, call.user_id)
    taken = await session.maybe(
        "insert into app.idempotency_keys (brand_id, user_id, key_id, key, route, request_sha256)"
        " values (%s, %s, %s, %s, %s, %s) on conflict (caller, key) do nothing returning key",
        [call.brand_id, call.user_id, call.key_id or "", call.key, call.route, call.request_sha256],
    )
    return None if taken else await _earlier(session, call)


async def remember(session: Session, call: CallKey, status: int, body: Any) -> None:
    """Store the answer to a claimed key, as text within JSON: jsonb would reorder its fields."""
    await session.run(
        "update app.idempotency_keys set status = %s, body = %s::jsonb"
        " where user_id = %s and brand_id is not distinct from %s and key = %s",
        [status, json.dumps(json.dumps(body)), call.user_id, call.brand_id, call.key],
    )


async def _earlier(session: Session, call: CallKey) -> Remembered:
    row = await session.maybe(
        "select route, request_sha256, status, body from app.idempotency_keys"
        " where user_id = %s and brand_id is not distinct from %s and key = %s",
        [call.user_id, call.brand_id, call.key],
    )
    if row is None or row["status"] is None:
        raise Conflict("a call with this Idempotency-Key is under way; try again", param="Idempotency-Key")
    if (row["route"], row["request_sha256"]) != (call.route, call.request_sha256):
        raise Conflict("this Idempotency-Key was used for another request; take a new one", param="Idempotency-Key")
    return Remembered(row["status"], json.loads(row["body"]))


async def _forget_old(session: Session, user_id: str) -> None:
    await session.run(
        "delete from app.idempotency_keys where user_id = %s and created_at < now() - make_interval(hours => %s)",
        [user_id, KEPT_HOURS],
    )
