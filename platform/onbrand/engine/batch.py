"""Which rows share a forward pass, and whose turn it is: jobs, rows, size classes, and the fair queue over brands."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count

from torch import Tensor

from onbrand.engine.adapters import AdapterUse, Lease
from onbrand.engine.request import Plan, Request
from onbrand.engine.slots import RowAdapter
from onbrand.families.family import Conditioning
from onbrand.families.sampling import Schedule


@dataclass(frozen=True, slots=True)
class BatchKey:
    """Rows with equal keys may share a forward pass.

    Args:
        guided: the pass is doubled for classifier-free guidance; kept apart, so that bits do not depend on neighbours.
        alone: the brand that asked to share with nobody.
    """

    height: int
    width: int
    guided: bool
    alone: str | None


@dataclass(frozen=True)
class Prepared:
    """What a job needs before its first step: its table, its prompts' conditioning, its adapter's slot."""

    schedule: Schedule
    positive: Conditioning
    negative: Conditioning | None
    use: AdapterUse | None
    lease: Lease | None

    def row_adapter(self) -> RowAdapter | None:
        """What each of the job's rows binds."""
        return self.lease.row(self.use.scale) if self.lease and self.use else None


@dataclass(eq=False)
class Job:
    """A request on its way: pictures waiting, running, done."""

    request: Request
    plan: Plan
    prepared: Prepared | None = None
    num_started: int = 0
    num_finished: int = 0
    steps_done: int = 0

    @property
    def key(self) -> BatchKey:
        alone = self.request.brand_id if self.request.exclusive else None
        return BatchKey(self.plan.height, self.plan.width, self.plan.guided, alone)

    @property
    def num_waiting(self) -> int:
        return self.request.num_images - self.num_started

    @property
    def finished(self) -> bool:
        return self.num_finished == self.request.num_images


@dataclass(eq=False)
class Row:
    """One picture between noise and decoding."""

    job: Job
    index: int
    latents_1CHW: Tensor
    step: int = 0
    batch_sizes: set[int] = field(default_factory=set)

    @property
    def seed(self) -> int:
        return self.job.request.seed + self.index

    @property
    def prepared(self) -> Prepared:
        assert self.job.prepared is not None
        return self.job.prepared

    @property
    def finished(self) -> bool:
        return self.step == self.job.plan.num_steps


def size_classes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to and with `max_batch`."""
    return (*(2**k for k in range(max_batch.bit_length()) if 2**k < max_batch), max_batch)


def size_class(num_rows: int, classes: Sequence[int]) -> int:
    """The smallest class that holds `num_rows`."""
    return min(size for size in classes if size >= num_rows)


class Turns:
    """Chooses the next batch: keys take turns, rows of one key go together, at most `max_batch` of them."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._last: dict[BatchKey, int] = {}
        self._clock = count(1)

    def next_batch(self, running: Sequence[Row]) -> list[Row]:
        """The rows that step now; none when nothing runs."""
        keys = list(dict.fromkeys(row.job.key for row in running))
        self._last = {key: self._last.get(key, 0) for key in keys}
        if not keys:
            return []
        key = min(keys, key=self._last.__getitem__)
        self._last[key] = next(self._clock)
        return [row for row in running if row.job.key == key][: self._max_batch]


class FairQueue:
    """Jobs that have pictures waiting, fair over brands in predicted work: the brand served least goes first.

    A brand that returns from idle starts at the minimum of the active ones (Sheng et al. 2024, algorithm 2), so it can
    neither save up credit nor be made to wait for what others got meanwhile.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, deque[Job]] = {}
        self._served: Counter[str] = Counter()
        self._floor = 0

    def push(self, job: Job) -> None:
        """Put a job at the end of its brand's line."""
        brand = job.request.brand_id
        if brand not in self._jobs:
            self._served[brand] = max(self._served[brand], self._least_served())
            self._jobs[brand] = deque()
        self._jobs[brand].append(job)

    def remove(self, job: Job) -> None:
        """Take a job out; nothing happens if it is not in."""
        line = self._jobs.get(job.request.brand_id)
        if line is None or job not in line:
            return
        self._floor = max(self._floor, self._least_served())
        line.remove(job)
        if not line:
            del self._jobs[job.request.brand_id]

    def first(self, passing_over: Collection[Job] = ()) -> Job | None:
        """The job whose turn it is, not counting those that cannot start now."""
        for brand in sorted(self._jobs, key=lambda brand: self._served[brand]):
            for job in self._jobs[brand]:
                if job not in passing_over:
                    return job
        return None

    def charge(self, job: Job) -> None:
        """One picture of the job was started."""
        self._served[job.request.brand_id] += job.plan.cost

    def num_pictures(self, brand_id: str | None = None) -> int:
        """Pictures waiting, of one brand or of all."""
        lines = self._jobs.values() if brand_id is None else [self._jobs.get(brand_id, deque())]
        return sum(job.num_waiting for line in lines for job in line)

    def _least_served(self) -> int:
        return min((self._served[brand] for brand in self._jobs), default=self._floor)
