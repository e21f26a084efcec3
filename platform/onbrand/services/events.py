"""Events of a training job or a generation, numbered within each, for watchers. They hold no prompts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from onbrand.brand import Ticket
from onbrand.db.session import Session
from onbrand.errors import InvalidInput
from onbrand.services.pagination import Row

_LARGEST = 1e300
ENDED_STATES = ("completed", "failed", "canceled")
"""States of a job or generation that never change again."""
AT_ONCE = 500
"""Maximum events that one query returns."""


class Event(Row):
    """One event; `seq` counts from 1 within its job or generation.

    `kind`: `status` {status}, `progress` {progress, metrics}, `sample` {step, index, drawn_by, object_name},
    `log` {code, facts} (`services.logs`), `waiting` {for}, `image` {index, image_id, seed}.
    """

    seq: int
    subject_id: str
    at: datetime
    kind: str
    data: dict[str, Any]


async def events_of(
    session: Session, brand_id: str, subject_id: str, after_seq: int, limit: int = AT_ONCE
) -> list[Event]:
    """Events after `after_seq`, oldest first."""
    rows = await session.all(
        "select seq, subject_id, at, kind, data from app.job_events"
        " where brand_id = %s and subject_id = %s and seq > %s order by seq limit %s",
        [brand_id, subject_id, after_seq, limit],
    )
    return [Event.of(row) for row in rows]


async def change_names(session: Session, subject_id: str) -> tuple[str, str]:
    """The names under which the database announces events of a job or generation, and ended memberships and revoked
    keys of its brand (`onbrand.db.changes`)."""
    row = await session.one(
        "select private.change_name(%s::uuid) as subject, private.credentials_name() as brand", [subject_id]
    )
    return str(row["subject"]), str(row["brand"])


async def append_event(session: Session, ticket: Ticket, kind: str, data: Mapping[str, Any]) -> None:
    """Append an event to the ticket's subject. The caller locks the subject's row, so numbers have no gaps or twins."""
    subject = {ticket.kind: ticket.job_id}
    await session.run(
        "insert into app.job_events (brand_id, job_id, generation_id, seq, kind, data)"
        " select %(brand_id)s, %(training)s, %(generation)s, coalesce(max(seq), 0) + 1, %(kind)s, %(data)s"
        " from app.job_events where brand_id = %(brand_id)s and subject_id = %(subject)s",
        {
            "brand_id": ticket.brand_id,
            "training": subject.get("training"),
            "generation": subject.get("generation"),
            "kind": kind,
            "data": Jsonb(must_be_finite(data)),
            "subject": ticket.job_id,
        },
    )


def must_be_finite(data: Mapping[str, Any], param: str = "metrics") -> dict[str, Any]:
    """Return `data` if all its numbers fit a double. Raises InvalidInput for others, also in nested mappings."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            must_be_finite(value, f"{param}.{name}")
        elif isinstance(value, int | float) and not abs(value) < _LARGEST:
            raise InvalidInput(f"{param}.{name} is not finite", param=f"{param}.{name}")
    return dict(data)
