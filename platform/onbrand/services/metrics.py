"""A training's monitor: its metrics by step, thinned to a requested number of points, its samples, its log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from onbrand.db.session import Session
from onbrand.errors import InvalidInput
from onbrand.services.jobs import get_job
from onbrand.services.logs import LogLine, lines_of
from onbrand.services.pagination import Page, Row
from onbrand.services.training_job import TrainingJob
from onbrand.storage.layout import DrawnBy, Key, drawn_in

POINTS_MAX = 1000
_NUMBER = "case when jsonb_typeof({0}) = 'number' then ({0} #>> '{{}}')::float8 end"
_STEP = _NUMBER.format("data -> 'metrics' -> 'step'")
_JUDGED_STEP = _NUMBER.format("data -> 'facts' -> 'step'")

# A resumed run reports some steps again: its earlier reports of them are dropped.
_COURSE = """
with told as (select at, seq, data, {step} as step from app.job_events
    where brand_id = %(brand_id)s and subject_id = %(job_id)s and kind = any(%(kinds)s) and {is_one}),
  standing as (select told.*, min(step) over (order by seq rows between 1 following and unbounded following) as next
    from told),
  counted as (select at, step, data, row_number() over (order by step) as n, count(*) over () as num,
      %(limit)s - 1 as gaps
    from standing where (next is null or step < next) and step > %(after)s)
select at, step, data, num from counted
where n = 1 or num <= %(limit)s or (n - 1) * gaps / greatest(num - 1, 1) > (n - 2) * gaps / greatest(num - 1, 1)
order by step
"""
_POINTS = _COURSE.format(step=_STEP, is_one=f"{_STEP} is not null")
_JUDGEMENTS = _COURSE.format(step=_JUDGED_STEP, is_one="data ->> 'code' in ('judged', 'judged_best')")


class Point(Row):
    """Metrics of a training at one step; `loss` is the mean of the last 20."""

    step: int
    at: datetime
    progress: int | None = None
    loss: float | None = None
    prior_loss: float | None = None
    kept_loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    samples_per_s: float | None = None
    eta_seconds: float | None = None


class Validation(Row):
    """The averaged adapter's loss on the held-out pictures at one step."""

    step: int
    at: datetime
    loss: float


class MetricsSeries(Row):
    """A training's metrics in the order of its steps.

    Args:
        data: at most the requested number of points, spread evenly, with the first and the last.
        num_points: number of all points.
        validations: at most as many validations, spread alike.
        best: the best of all validations.
    """

    object: Literal["list"] = "list"
    data: list[Point]
    has_more: bool = False
    next_cursor: str | None = None
    num_points: int
    validations: list[Validation]
    num_validations: int
    best: Validation | None


class Sample(Row):
    """A sample picture of prompt `index`, by the `base` alone (once, at step 0) or by the `adapter` after `step` steps.

    Args:
        seed: the same for both, so that they differ by the adapter only.
        url: bucket and key; the API replaces it by a link.
    """

    step: int
    index: int
    drawn_by: DrawnBy
    seed: int
    url: str

    @property
    def key(self) -> Key:
        """Its key in the store."""
        return _key_of(self.url)


async def series_of(session: Session, brand_id: str, job_id: str, limit: int, after_step: int = -1) -> MetricsSeries:
    """Metrics of all steps beyond `after_step`. Raises NotFound, InvalidInput (a limit outside 2 to 1000)."""
    if not 2 <= limit <= POINTS_MAX:
        raise InvalidInput(f"limit must be 2 to {POINTS_MAX}", param="limit")
    job = await get_job(session, brand_id, job_id)
    asked = {"brand_id": brand_id, "job_id": job.id, "after": after_step, "limit": limit}
    points = await session.all(_POINTS, asked | {"kinds": ["progress"]})
    judgements = await session.all(_JUDGEMENTS, asked | {"kinds": ["log"]})
    return MetricsSeries(
        data=[_point(row) for row in points],
        num_points=points[0]["num"] if points else 0,
        validations=[Validation.of({**row, **row["data"]["facts"]}) for row in judgements],
        num_validations=judgements[0]["num"] if judgements else 0,
        best=await _best(session, brand_id, job.id),
    )


async def _best(session: Session, brand_id: str, job_id: str) -> Validation | None:
    row = await session.maybe(
        "select at, data from app.job_events where brand_id = %s and subject_id = %s and kind = 'log'"
        " and data ->> 'code' = 'judged_best' order by seq desc limit 1",
        [brand_id, job_id],
    )
    return None if row is None else Validation.of({**row, **row["data"]["facts"]})


def _point(row: Any) -> Point:
    """The point of a row, without values that are not numbers."""
    numbers = {name: value for name, value in row["data"]["metrics"].items() if isinstance(value, int | float)}
    return Point.of(numbers | {"step": int(row["step"]), "at": row["at"], "progress": row["data"].get("progress")})


def samples_of(job: TrainingJob) -> list[Sample]:
    """All samples of the job: those of the base first, then step by step."""
    seed = job.training_config.get("seed") or 0
    found = []
    for url in job.sample_images_urls:
        drawn = drawn_in(_key_of(url))
        found.append(Sample(step=drawn.step, index=drawn.index, drawn_by=drawn.by, seed=seed + drawn.index, url=url))
    return sorted(found, key=lambda sample: (sample.drawn_by == "adapter", sample.step, sample.index))


async def samples(session: Session, brand_id: str, job_id: str, limit: int, cursor: str | None) -> Page[Sample]:
    """A page of `samples_of`. Raises NotFound, InvalidInput for an invalid cursor."""
    found = samples_of(await get_job(session, brand_id, job_id))
    after = _count(cursor)
    return _page(found[after : after + limit + 1], limit, after + limit)


async def logs(session: Session, brand_id: str, job_id: str, limit: int, cursor: str | None) -> Page[LogLine]:
    """A page of the job's log, oldest first. Raises NotFound, InvalidInput for an invalid cursor."""
    job = await get_job(session, brand_id, job_id)
    lines = await lines_of(session, brand_id, job.id, _count(cursor), limit + 1)
    return _page(lines, limit, lines[limit - 1].seq if len(lines) > limit else 0)


def _page(things: Sequence[Any], limit: int, next_place: int) -> Page[Any]:
    has_more = len(things) > limit
    return Page[Any](data=list(things[:limit]), has_more=has_more, next_cursor=str(next_place) if has_more else None)


def _count(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise InvalidInput("the cursor is not one that a list of ours gave", param="cursor")
    return int(cursor)


def _key_of(url: str) -> Key:
    return Key("generated-content", url.removeprefix("generated-content/"))
