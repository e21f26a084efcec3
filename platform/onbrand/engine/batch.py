"""Requests in the engine, their rows, the keys that decide which rows share a forward pass, and the batch sizes.

The order of service is in `onbrand.engine.fair_queue`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from onbrand.engine.adapters import AdapterUse
from onbrand.engine.lora_math import RowAdapter
from onbrand.engine.request import Plan, Receipt, Request
from onbrand.engine.residency import Lease
from onbrand.families.family import Conditioning, Family
from onbrand.families.samplers import Sampler, Schedule


@dataclass(frozen=True, slots=True)
class BatchKey:
    """Rows with equal keys may share a forward pass.

    Args:
        guided: the pass is doubled for classifier-free guidance. Kept apart so that bits do not depend on neighbours.
        alone: a brand that shares no pass with other brands.
    """

    height: int
    width: int
    guided: bool
    alone: str | None


@dataclass(frozen=True)
class Prepared:
    """A job's inputs to its first step: sampler table, prompt conditioning, adapters composed into one.

    Args:
        cut: the parts of its prompts that were not read, as in its receipts.
    """

    sampler: Sampler
    schedule: Schedule
    positive: Conditioning
    negative: Conditioning | None
    use: AdapterUse | None
    cut: tuple[dict[str, Any], ...] = ()


@dataclass(eq=False)
class EngineJob:
    """A request in the engine, until its last image is returned. It is no training job.

    Args:
        lease: of its adapter's slot, while its rows step; may be recalled while they pause.
        rows: images that have started and have steps left, in order.
        num_stepped: images with all steps done.
        num_finished: images returned as events.
        preparing: its conditioning is being computed.
        claiming: it was refused a slot, and claims one.
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
        alone = self.request.brand_id if self.request.parameters.exclusive else None
        self.key = BatchKey(self.plan.height, self.plan.width, self.plan.guided, alone)

    @property
    def brand_id(self) -> str:
        return self.request.brand_id

    @property
    def account_id(self) -> str:
        """The account whose share of the engine it uses."""
        return self.request.account_id or self.request.brand_id

    @property
    def num_waiting(self) -> int:
        """Number of images not yet started."""
        return self.request.parameters.num_images - self.num_started

    @property
    def num_to_step(self) -> int:
        """Number of images that could take part in a pass now; each takes one row."""
        return self.request.parameters.num_images - self.num_stepped if self.prepared else 0

    @property
    def step_charge(self) -> float:
        """Charge for one step of one image to the ledgers of its account and brand."""
        return self.plan.step_cost / self.request.weight

    @property
    def finished(self) -> bool:
        return self.num_finished == self.request.parameters.num_images


@dataclass(eq=False)
class Row:
    """One image between noise and decoding.

    Args:
        denoised_1CHW: the clean latents predicted at its last step; zeros before the first.
        slot_version: version of the slot used at its last step; None without an adapter.
        overflowed: its latents are known to hold non-finite values.
    """

    job: EngineJob
    index: int
    latents_1CHW: Tensor
    denoised_1CHW: Tensor
    step: int = 0
    batch_sizes: set[int] = field(default_factory=set)
    slot_version: int | None = None
    overflowed: bool = False

    @property
    def seed(self) -> int:
        return self.job.request.parameters.seed + self.index

    @property
    def prepared(self) -> Prepared:
        assert self.job.prepared is not None
        return self.job.prepared

    @property
    def finished(self) -> bool:
        return self.step == self.job.plan.num_steps

    def adapter(self) -> RowAdapter | None:
        """The adapter that the row uses in a forward pass; None: the base alone."""
        use, lease = self.prepared.use, self.job.lease
        if use is None:
            return None
        assert lease is not None, "a row with an adapter steps only with a lease of its slot"
        return lease.row(use.scale)

    def receipt(self, family: Family) -> Receipt:
        """How the image was made; once the row is finished."""
        request, plan = self.job.request, self.job.plan
        return Receipt(
            brand_id=request.brand_id,
            family=family.spec.name,
            adapters=tuple((use.key.sha256, use.scale) for use in request.adapters),
            base_revision=family.revision,
            sampler=self.prepared.sampler.name,
            num_inference_steps=plan.num_steps,
            guidance_scale=plan.embedded_guidance,
            true_cfg_scale=plan.cfg_scale if family.spec.embeds_guidance else None,
            seed=self.seed,
            height=plan.height,
            width=plan.width,
            batch_sizes=tuple(sorted(self.batch_sizes)),
            slot_generation=self.slot_version,
            cut=self.prepared.cut,
        )


def default_batch_sizes(max_batch: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to and with `max_batch`."""
    return (*(2**k for k in range(max_batch.bit_length()) if 2**k < max_batch), max_batch)


def batch_size_for(num_rows: int, batch_sizes: Sequence[int]) -> int:
    """The smallest batch size that holds `num_rows`."""
    return min(size for size in batch_sizes if size >= num_rows)
