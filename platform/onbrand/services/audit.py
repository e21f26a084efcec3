"""The brand's audit record for its admins: actor, action, time and objects. `write_audit_line` writes it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from onbrand.db.session import Session
from onbrand.errors import InvalidInput
from onbrand.services.pagination import PAGE_MAX, Page, Row

Actor = Literal["user", "key", "system"]
Order = Literal["desc", "asc"]

_BEYOND_ALL = 2**63 - 1
LINE = """
select seq, brand_id, at, actor, user_id::text, credential, action, detail, encode(prev, 'hex') as prev,
  encode(hash, 'hex') as hash from audit.events
"""


class AuditEvent(Row):
    """One line of the record: ids, numbers and codes, no text written by people.

    Args:
        actor: a `user`, a `key` on behalf of its maker, or the `system` for one job on behalf of its owner.
        user_id: the user, the key's maker, or the job's owner.
        credential: the key's id, or the job's (or generation's); None for a user.
        detail: ids of the objects.
        prev, hash: hashes of the previous line and of this one, hex; `onbrand audit verify` recomputes them.
    """

    seq: int
    brand_id: str
    at: datetime
    actor: Actor
    user_id: str | None
    credential: str | None
    action: str
    detail: dict[str, Any] = Field(default_factory=dict)
    prev: str | None
    hash: str


async def list_events(
    session: Session, brand_id: str, limit: int = 20, cursor: str | None = None, order: Order = "desc"
) -> Page[AuditEvent]:
    """A page of the record, newest first, or in the order of its chain (`asc`). Empty for callers who are not admins.

    Raises InvalidInput for a limit outside 1 to 100, or an invalid cursor.
    """
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidInput(f"limit must be 1 to {PAGE_MAX}", param="limit")
    beyond, start = (">", 0) if order == "asc" else ("<", _BEYOND_ALL)
    after = start if cursor is None else _place(cursor)
    rows = await session.all(
        f"{LINE} where brand_id = %s and seq {beyond} %s::bigint order by seq {order} limit {limit + 1:d}",
        (brand_id, after),
    )
    more = len(rows) > limit
    return Page[AuditEvent](
        data=[AuditEvent.of(row) for row in rows[:limit]],
        has_more=more,
        next_cursor=_cursor(rows[limit - 1]["seq"]) if more else None,
    )


def _cursor(seq: int) -> str:
    return base64.urlsafe_b64encode(f"line {seq}".encode()).decode().rstrip("=")


def _place(cursor: str) -> int:
    try:
        word, seq = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii").split(" ")
        if word == "line" and seq.isdigit() and len(seq) <= 18:
            return int(seq)
    except (binascii.Error, ValueError):
        pass
    raise InvalidInput("the cursor is not one that a list of ours gave", param="cursor")


async def write_audit_line(session: Session, brand_id: str, what: str, detail: Mapping[str, Any]) -> None:
    """Append a line to the brand's chained audit record; `what` is the action (``model.download``). Ids, no content."""
    from psycopg.types.json import Jsonb

    await session.run("select private.record(%s, %s, %s)", [brand_id, what, Jsonb(dict(detail))])
