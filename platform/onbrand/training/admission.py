"""Whose turn it is: which waiting jobs begin now, and what each of the others waits for. Pure; no clock, no Ray.

Which account has least running for the weight of its brands comes first, in it the brand that has least, in order of
time among equals. Unless the operator says otherwise, one account leaves a job and a worker to others, also while none
asks: a training lasts for hours, and who comes next would wait as long. A job whose turn it is and that finds the
machines busy keeps its place: nobody behind it takes what is set free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from onbrand.services.training import QueueEntry, WaitingFor
from onbrand.training.providers.provider import Capacity


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many jobs run at once: over all brands, of one brand that has no number of its own, and of one account.

    Args:
        jobs_per_account: None: one less than `jobs`, and at least one.
    """

    jobs: int = 2
    jobs_per_brand: int = 2
    jobs_per_account: int | None = None

    @property
    def of_account(self) -> int:
        return max(1, self.jobs - 1) if self.jobs_per_account is None else self.jobs_per_account


@dataclass(frozen=True, slots=True)
class Turns:
    """What `admit` decided: the jobs that begin, in order, and the others with what each waits for."""

    begin: list[QueueEntry]
    wait: list[tuple[QueueEntry, WaitingFor]]


@dataclass(slots=True)
class _Busy:
    """What runs, or begins now."""

    jobs: Counter[str] = field(default_factory=Counter)
    jobs_of_account: Counter[str] = field(default_factory=Counter)
    workers_of_account: Counter[str] = field(default_factory=Counter)
    share_of_account: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, running: Iterable[QueueEntry]) -> _Busy:
        busy = cls()
        for job in running:
            busy.add(job)
        return busy

    def add(self, job: QueueEntry) -> None:
        self.jobs[job.brand_id] += 1
        self.jobs_of_account[job.account] += 1
        self.workers_of_account[job.account] += job.num_workers
        self.share_of_account[job.account] = self.share_of_account.get(job.account, 0.0) + 1 / job.weight

    def place(self, job: QueueEntry) -> tuple[float, float]:
        """Who has the lowest comes first."""
        return self.share_of_account.get(job.account, 0.0), self.jobs[job.brand_id] / job.weight


def fair_order(waiting: Iterable[QueueEntry], running: Iterable[QueueEntry]) -> list[QueueEntry]:
    """First in, first out, but always the account first that has least for its weight, running or ahead in this order;
    and in the account the brand that has least."""
    left, busy, order = list(waiting), _Busy.of(running), []
    while left:
        job = min(left, key=busy.place)
        left.remove(job)
        order.append(job)
        busy.add(job)
    return order


def admit(
    waiting: Iterable[QueueEntry], running: Iterable[QueueEntry], bounds: Bounds, capacity: Capacity | None
) -> Turns:
    """Decide about every waiting job.

    Args:
        running: submitted and not ended.
        capacity: room for workers, less what submitted jobs have not taken up yet; None: not known.
    """
    running = list(running)
    busy, free = _Busy.of(running), None if capacity is None else capacity.free
    turns = Turns([], [])
    for job in fair_order(waiting, running):
        reason = _why_not(job, busy, bounds, capacity, free)
        if reason is not None:
            turns.wait.append((job, reason))
            if reason == "resources" and not is_too_large(job, capacity):
                free = 0
            continue
        turns.begin.append(job)
        busy.add(job)
        free = None if free is None else max(0, free - job.num_workers)
    return turns


def _why_not(
    job: QueueEntry, busy: _Busy, bounds: Bounds, capacity: Capacity | None, free: int | None
) -> WaitingFor | None:
    if bounds.jobs == 0:
        return "operator"
    if busy.jobs[job.brand_id] >= (job.max_running or bounds.jobs_per_brand):
        return "brand"
    if is_too_large(job, capacity):
        return "resources"
    if busy.jobs.total() >= bounds.jobs:
        return "platform"
    if _must_leave_room(job, busy, bounds, capacity):
        return "brand" if busy.jobs[job.brand_id] == busy.jobs_of_account[job.account] else "platform"
    return None if _fits(job, capacity, free) else "resources"


def _fits(job: QueueEntry, capacity: Capacity | None, free: int | None) -> bool:
    return capacity is None or free is None or job.num_workers <= max(free, free + _can_come(capacity))


def _must_leave_room(job: QueueEntry, busy: _Busy, bounds: Bounds, capacity: Capacity | None) -> bool:
    """Whether the account has what one account may have. Its first job may need all machines: there is no other way
    to do it. The operator's own number for a brand goes before the account's.

    A job is told that it waits for the platform, not for which brand of its account.
    """
    num_jobs = busy.jobs_of_account[job.account]
    if num_jobs == 0 or job.max_running is not None:
        return False
    workers = busy.workers_of_account[job.account] + job.num_workers
    takes_all = bounds.jobs_per_account is None and capacity is not None and workers >= capacity.most
    return num_jobs >= bounds.of_account or takes_all


def _can_come(capacity: Capacity) -> int:
    """Workers on machines that are not there yet: asking for them is what brings them."""
    return capacity.most - capacity.total


def is_too_large(job: QueueEntry, capacity: Capacity | None) -> bool:
    """Whether the job could not begin on all machines that are there or can come, with nothing else on them."""
    return capacity is not None and job.num_workers > capacity.most
