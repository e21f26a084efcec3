"""Admission: which waiting jobs start now, and why each of the others waits. Pure functions: no clock, no Ray.

Order: the account with the fewest running jobs relative to its brands' weights, within it the brand with the fewest,
then the oldest job. By default an account leaves one job and one worker to others, even if no other job waits: a
training lasts for hours, and the next account would wait as long. If the next job finds the machines busy, it keeps its
place: no later job takes resources that become free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from onbrand.services.job_queue import QueueEntry, WaitingFor
from onbrand.training.dispatch.providers.provider import Capacity


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits on jobs that run at once.

    Args:
        jobs: over all brands.
        jobs_per_brand: for a brand without a limit of its own.
        jobs_per_account: if None, one less than `jobs`, and at least one.
    """

    jobs: int = 2
    jobs_per_brand: int = 2
    jobs_per_account: int | None = None

    @property
    def of_account(self) -> int:
        return max(1, self.jobs - 1) if self.jobs_per_account is None else self.jobs_per_account


@dataclass(frozen=True, slots=True)
class Turns:
    """Result of `admit`: the jobs that start, in order, and the others with the reason why each waits."""

    begin: list[QueueEntry]
    wait: list[tuple[QueueEntry, WaitingFor]]


@dataclass(slots=True)
class _Busy:
    """Jobs that run or start now, counted by brand and by account."""

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
        """Sort key: the job with the lowest starts first."""
        return self.share_of_account.get(job.account, 0.0), self.jobs[job.brand_id] / job.weight


def fair_order(waiting: Iterable[QueueEntry], running: Iterable[QueueEntry]) -> list[QueueEntry]:
    """The waiting jobs in fair order: the account with the least share comes next, within it the brand with the least,
    then the oldest job. Shares count running jobs and those ahead in this order."""
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
    """Decide which waiting jobs start.

    Args:
        running: jobs that are submitted and have not ended.
        capacity: room for workers, less the workers of submitted jobs that do not occupy theirs yet; None: unknown.
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
    """True if there is room now, or on machines that the autoscaler adds when a job asks."""
    return capacity is None or free is None or job.num_workers <= free + max(0, capacity.most - capacity.total)


def _must_leave_room(job: QueueEntry, busy: _Busy, bounds: Bounds, capacity: Capacity | None) -> bool:
    """True if the account is at its limit. Its first job is exempt, as it may need all machines. A limit that the
    operator set for the brand overrides the account's.

    If another brand of the account causes it, the job's reason is "platform".
    """
    num_jobs = busy.jobs_of_account[job.account]
    if num_jobs == 0 or job.max_running is not None:
        return False
    workers = busy.workers_of_account[job.account] + job.num_workers
    takes_all = bounds.jobs_per_account is None and capacity is not None and workers >= capacity.most
    return num_jobs >= bounds.of_account or takes_all


def is_too_large(job: QueueEntry, capacity: Capacity | None) -> bool:
    """True if the job needs more workers than all present and possible machines can hold."""
    return capacity is not None and job.num_workers > capacity.most
