"""Whose turn it is: which waiting jobs begin now, and what each of the others waits for. Pure; no clock, no Ray.

Whoever has least running for its weight comes first, in order of time among equals. A job
whose turn it is and that finds the machines busy keeps its place: nobody behind it takes what is set free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from onbrand.services.training import QueueEntry, WaitingFor
from onbrand.training.providers.provider import Capacity


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many jobs run at once: over all brands, and of one brand that has no number of its own."""

    jobs: int = 2
    jobs_per_brand: int = 2


@dataclass(frozen=True, slots=True)
class Turns:
    """What `admit` decided: the jobs that begin, in order, and the others with what each waits for."""

    begin: list[QueueEntry]
    wait: list[tuple[QueueEntry, WaitingFor]]


def fair_order(waiting: Iterable[QueueEntry], running: Iterable[QueueEntry]) -> list[QueueEntry]:
    """First in, first out, but always the brand first that has least for its weight, running or ahead in this order."""
    left, busy, order = list(waiting), Counter(job.brand_id for job in running), []
    while left:
        job = min(left, key=lambda each: busy[each.brand_id] / each.weight)
        left.remove(job)
        order.append(job)
        busy[job.brand_id] += 1
    return order


def admit(
    waiting: Iterable[QueueEntry], running: Iterable[QueueEntry], bounds: Bounds, capacity: Capacity | None
) -> Turns:
    """Decide about every waiting job.

    Args:
        running: submitted and not ended.
        capacity: room for workers, less what submitted jobs have not taken up yet; None: not known.
    """
    busy = Counter(job.brand_id for job in running)
    num_running, free = busy.total(), None if capacity is None else capacity.free
    turns = Turns([], [])
    for job in fair_order(waiting, running):
        reason = _why_not(job, busy, num_running, bounds, capacity, free)
        if reason is not None:
            turns.wait.append((job, reason))
            if reason == "resources" and not is_too_large(job, capacity):
                free = 0
            continue
        turns.begin.append(job)
        busy[job.brand_id] += 1
        num_running += 1
        free = None if free is None else max(0, free - job.num_workers)
    return turns


def _why_not(
    job: QueueEntry, busy: Counter[str], num_running: int, bounds: Bounds, capacity: Capacity | None, free: int | None
) -> WaitingFor | None:
    if bounds.jobs == 0:
        return "operator"
    if busy[job.brand_id] >= (job.max_running or bounds.jobs_per_brand):
        return "brand"
    if is_too_large(job, capacity):
        return "resources"
    if num_running >= bounds.jobs:
        return "platform"
    if capacity is None or free is None or job.num_workers <= free or job.num_workers <= free + _can_come(capacity):
        return None
    return "resources"


def _can_come(capacity: Capacity) -> int:
    """Workers on machines that are not there yet: asking for them is what brings them."""
    return capacity.most - capacity.total


def is_too_large(job: QueueEntry, capacity: Capacity | None) -> bool:
    """Whether the job could not begin on all machines that are there or can come, with nothing else on them."""
    return capacity is not None and job.num_workers > capacity.most
