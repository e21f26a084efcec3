"""Log lines of a training run. On the wire and in the row a line is a code with numbers; its words are here.

So a log has no place for a caption, prompt, path or secret, whatever error the worker meets.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from string import Formatter
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from onbrand.brand import Ticket
from onbrand.db.session import Session
from onbrand.services.events import Event, tell
from onbrand.services.pagination import Row

Level = Literal["info", "warning", "error"]
KIND = "log"
LINES_MAX = 10_000
"""Maximum lines of a job; further ones are dropped."""
AT_ONCE_MAX = 100
_LARGEST = 1e15
_TOLD = ("status", "sample", KIND)


@dataclass(frozen=True, slots=True)
class _Saying:
    words: str
    level: Level = "info"

    @property
    def names(self) -> set[str]:
        """Names of the facts in the words."""
        return {name for _, name, _, _ in Formatter().parse(self.words) if name}


SAYINGS: Mapping[str, _Saying] = {
    "submitted": _Saying("handed to the cluster, attempt {attempt}"),
    "began": _Saying("{steps} steps of {batch_size} pictures, workers: {num_workers}"),
    "pictures": _Saying("{num_trained} pictures are trained on, {num_held_out} are held out to judge by"),
    "thrifty": _Saying("done with less memory than wished, {steps_down} steps down: see the metrics' `memory`"),
    "out_of_memory": _Saying("out of memory: it goes on from its last checkpoint, a step more thrifty", "warning"),
    "leaving": _Saying("step {step}: a node will be taken away; checkpoint kept", "warning"),
    "resumed": _Saying("goes on from the checkpoint of step {step}"),
    "retried_anew": _Saying("begins anew: plan, pictures, captions or base are not those of the job that it retries"),
    "stopped": _Saying("its owner ends it at step {step}: step {best_step} is published"),
    "judged": _Saying("step {step}: loss {loss:.4f} on the held-out pictures"),
    "judged_best": _Saying("step {step}: loss {loss:.4f} on the held-out pictures, the best so far"),
    "kept": _Saying("step {step}: checkpoint kept"),
    "copied": _Saying(
        "step {step}: sample {index} is nearly a copy of the picture {asset_id}; give more and more different "
        "pictures, fewer steps or a lower rank",
        "warning",
    ),
    "ended_early": _Saying("nothing was better than step {best_step}: training ends at step {step}"),
    "trained": _Saying("all {steps} steps are done"),
    "proved": _Saying("the adapter of step {step} is proved: diffusers draws the same, to {difference:.0e}"),
}


class Line(BaseModel):
    """One line as a run sends it. Raises ValidationError for an unknown code, or facts that do not match the code.

    Args:
        facts: numbers below 1e15, and UUIDs under names that end in ``_id``; exactly those in the code's words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    facts: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _must_be_known(self) -> Self:
        saying = SAYINGS.get(self.code)
        if saying is None or set(self.facts) != saying.names:
            raise ValueError("code and facts are not a line of ours")
        for name, value in self.facts.items():
            _must_be_number_or_id(name, value)
        return self


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
    """Append lines to the ticket's job up to `LINES_MAX`. The caller locks the job's row, as for `events.tell`."""
    if not lines:
        return
    row = await session.one(
        "select count(*) as num from app.job_events where brand_id = %s and subject_id = %s and kind = %s",
        [ticket.brand_id, ticket.job_id, KIND],
    )
    for line in lines[: max(0, LINES_MAX - row["num"])]:
        await tell(session, ticket, KIND, line.model_dump())


def _said_by(event: Event) -> tuple[str, dict[str, Any]]:
    data = event.data
    if event.kind == KIND:
        return str(data.get("code")), dict(data.get("facts") or {})
    if event.kind == "sample":
        return "sample", {"step": data["step"], "index": data["index"], "drawn_by": data.get("drawn_by", "adapter")}
    return str(data["status"]), {name: value for name, value in data.items() if name != "status"}


def _in_words(code: str, facts: Mapping[str, Any]) -> tuple[Level, str]:
    if code in SAYINGS:
        return SAYINGS[code].level, SAYINGS[code].words.format(**facts)
    if code == "sample":
        by = "by the base alone" if facts["drawn_by"] == "base" else f"at step {facts['step']}"
        return "info", f"sample {facts['index']} is drawn {by}"
    if code == "failed":
        return "error", f"failed: {facts['error']['message']}"
    return "info", {"training": "training begins", "completed": f"published as {facts.get('model')}"}.get(code, code)


def _must_be_number_or_id(name: str, value: object) -> None:
    if name.endswith("_id"):
        if str(uuid.UUID(str(value))) != value:
            raise ValueError(f"{name} must be an id")
    elif not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise ValueError(f"{name} must be a number")
