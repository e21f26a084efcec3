"""What shares a forward pass: jobs, their rows, the keys that keep rows apart, and the sizes that batches come in.

Whose turn it is: `onbrand.engine.fairness`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from onbrand.engine.adapters import AdapterUse, Lease
from onbrand.engine.request import Plan, Request
from onbrand.engine.slots import RowAdapter
from onbrand.families.family import Conditioning
from onbrand.families.sampling import Sampler, Schedule


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
    """What a job needs before its first step: its sampler's table, its prompts' conditioning, its adapters as one.

    Args:
        cut: what was not read of its prompts, as its receipts say it.
    """

    sampler: Sampler
    schedule: Schedule
    positive: Conditioning
    negative: Conditioning | None
    use: AdapterUse | None
    cut: tuple[dict[str, Any], ...] = ()


@dataclass(eq=False)
class Job:
    """A request on its way.

    Args:
        lease: of its adapter's slot, while rows of it step; may be recalled while they pause.
        rows: pictures that have begun and are not through their steps, in their order.
        num_stepped: pictures that are through their steps.
        num_finished: pictures that were told.
        preparing: its conditioning is being made.
        claiming: it was refused a slot, which is being drained for it.
    """

    request: Request
    plan: Plan
    prepared: Prepared | None = None
    lease: Lease | None = None
    rows: list[Row] = field(default_factory=list)
    num_started: int = 0
    num_stepped: int = 0
    num_finished: int = 0
    steps_done: int = 0
    preparing: bool = False
    claiming: bool = False
    ended: bool = False
    key: BatchKey = field(init=False)

    def __post_init__(self) -> None:
        alone = self.request.brand_id if self.request.exclusive else None
        self.key = BatchKey(self.plan.height, self.plan.width, self.plan.guided, alone)

    @property
    def brand_id(self) -> str:
        return self.request.brand_id

    @property
    def account_id(self) -> str:
        """Whose share of the engine it is drawn from."""
        return self.request.account_id or self.request.brand_id

    @property
    def num_waiting(self) -> int:
        """Pictures that have not begun."""
        return self.request.num_images - self.num_started

    @property
    def num_to_step(self) -> int:
        """Pictures that could take part in a pass now; each can once."""
        return self.request.num_images - self.num_stepped if self.prepared else 0

    @property
    def step_charge(self) -> float:
        """What one step of one picture counts for in the ledgers of its account and its brand."""
        return self.plan.step_cost / self.request.weight

    @property
    def finished(self) -> bool:
        return self.num_finished == self.request.num_images


@dataclass(eq=False)
class Row:
    """One picture between noise and decoding.

    Args:
        clean_1CHW: the clean latents foreseen at its last step; zeros before the first.
        slot_generation: of the slot its last step used; None without an adapter.
        overflowed: its latents are known to hold values that are not finite.
    """

    job: Job
    index: int
    latents_1CHW: Tensor
    clean_1CHW: Tensor
    step: int = 0
    batch_sizes: set[int] = field(default_factory=set)
    slot_generation: int | None = None
    overflowed: bool = False

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

    def adapter(self) -> RowAdapter | None:
        """What the row binds in a forward pass; None: the base."""
        use, lease = self.prepared.use, self.job.lease
        if use is None:
            return None
        assert lease is not None, "a row with an adapter steps only with a lease of its slot"
        return lease.row(use.scale)


def size_classes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to and with `max_batch`."""
    return (*(2**k for k in range(max_batch.bit_length()) if 2**k < max_batch), max_batch)


def size_class(num_rows: int, classes: Sequence[int]) -> int:
    """The smallest class that holds `num_rows`."""
    return min(size for size in classes if size >= num_rows)
