"""Log lines of a training run: stored as a code with numbers, and put into words (`internal.log_lines`) when read.

So a log has no place for a caption, prompt, path or secret, whatever error the worker meets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from onbrand.brand import Ticket
from onbrand.db.session import Session
from onbrand.internal.log_lines import LOG_TEMPLATES, Level, Line
from onbrand.services.events import Event, append_event
from onbrand.services.pagination import Row

KIND = "log"
LINES_MAX = 10_000
"""Maximum lines of a job; further ones are dropped."""
_TOLD = ("status", "sample", KIND)


class LogLine(Row):
    """A readable line: `message` in words, `code` and `facts` for programs."""

    seq: int
    at: datetime
    level: Level
    code: str
    message: str
    facts: dict[str, Any]


def log_line(event: Event) -> LogLine:
    """The line of a `status`, `sample` or `log` event."""
    code, facts = _said_by(event)
    level, message = _in_words(code, facts)
    return LogLine(seq=event.seq, at=event.at, level=level, code=code, message=message, facts=facts)


def readable(event: Event) -> Event:
    """A `log` event with level and message added; other events unchanged."""
    if event.kind != KIND:
        return event
    line = log_line(event)
    return event.model_copy(update={"data": {**event.data, "level": line.level, "message": line.message}})


async def lines_of(session: Session, brand_id: str, job_id: str, after: int, limit: int) -> list[LogLine]:
    """The job's lines after the event `after`, oldest first."""
    rows = await session.all(
        "select seq, subject_id, at, kind, data from app.job_events"
        " where brand_id = %s and subject_id = %s and seq > %s and kind = any(%s) order by seq limit %s",
        [brand_id, job_id, after, list(_TOLD), limit],
    )
    return [log_line(Event.of(row)) for row in rows]


async def write(session: Session, ticket: Ticket, lines: Sequence[Line]) -> None:
    """Append lines to the ticket's job up to `LINES_MAX`. The caller locks the job's row."""
    if not lines:
        return
    row = await session.one(
        "select count(*) as num from app.job_events where brand_id = %s and subject_id = %s and kind = %s",
        [ticket.brand_id, ticket.job_id, KIND],
    )
    for line in lines[: max(0, LINES_MAX - row["num"])]:
        await append_event(session, ticket, KIND, line.model_dump())


def _said_by(event: Event) -> tuple[str, dict[str, Any]]:
    data = event.data
    if event.kind == KIND:
        return str(data.get("code")), dict(data.get("facts") or {})
    if event.kind == "sample":
        return "sample", {"step": data["step"], "index": data["index"], "drawn_by": data.get("drawn_by", "adapter")}
    return str(data["status"]), {name: value for name, value in data.items() if name != "status"}


def _in_words(code: str, facts: Mapping[str, Any]) -> tuple[Level, str]:
    if code in LOG_TEMPLATES:
        return LOG_TEMPLATES[code].level, LOG_TEMPLATES[code].words.format(**facts)
    if code == "sample":
        by = "by the base alone" if facts["drawn_by"] == "base" else f"at step {facts['step']}"
        return "info", f"sample {facts['index']} is drawn {by}"
    if code == "failed":
        return "error", f"failed: {facts['error']['message']}"
    return "info", {"training": "training begins", "completed": f"published as {facts.get('model')}"}.get(code, code)
