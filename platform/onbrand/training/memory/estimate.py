"""Estimates a run's device memory from the base's configuration, before weights are loaded, and chooses the
memory-saving settings that fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from onbrand.errors import OutOfMemory
from onbrand.families import lora
from onbrand.families.meta import MetaFamily, num_bytes
from onbrand.training.kernels.lora_layers import fuse
from onbrand.training.memory.quantization import saved_bytes
from onbrand.training.memory.savings import MemorySavings, savings_levels
from onbrand.training.ray.collectives import Collectives
from onbrand.training.recipes import Plan

GB = 1e9
LARGE_BASE = 2_000_000_000
"""Number of parameters above which a denoiser and its activations do not fit on most GPUs."""
_RESERVE_BYTES = 1.0 * GB
"""Memory of the GPU itself and the libraries, and fragmentation."""
_OF_GPU = 0.95
_STATES = 9
"""Float32 numbers per weight of the adapter: weight, two moments, average, best average, copy of the weight while an
average is in use, gradient, and packet before and after the exchange; one more for every gathered shard."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Peak device memory of a worker in the three phases of a run, in bytes.

    Args:
        encoding: while pictures and captions are encoded.
        training: in a step.
        drawing: while a sample picture is decoded.
    """

    encoding: int
    training: int
    drawing: int

    @property
    def peak(self) -> int:
        return max(self.encoding, self.training, self.drawing)


class MemoryEstimator:
    """Estimates the memory of a plan on a base.

    Args:
        parked: models that a phase does not need are moved to the host's memory (on a GPU).
        num_workers: number of workers over which a base is sharded.
    """

    def __init__(self, plan: Plan, folder: Path, dtype: torch.dtype, parked: bool, num_workers: int = 1) -> None:
        self.plan, self.parked, self.num_workers = plan, parked, num_workers
        self._folder, self._dtype = folder, dtype
        self._hollow = MetaFamily(plan.family, folder, dtype)
        self._base = num_bytes(self._hollow.family.denoiser)
        self._vae = num_bytes(self._hollow.family.vae)
        self._steps: dict[tuple[int, bool], tuple[int, int]] = {}

    @property
    def is_large(self) -> bool:
        return self._base > LARGE_BASE * self._dtype.itemsize

    def estimate(self, savings: MemorySavings) -> Footprint:
        """The device memory of a run with these settings."""
        base = self._base - saved_bytes(self._hollow.family.denoiser, savings.quantization)
        base //= self.num_workers if savings.sharded else 1
        text, vae = self._hollow.text_bytes, self._vae
        step, adapter = self._step(savings)
        reserve = int(_RESERVE_BYTES) if self.parked else 0
        encode, decode = self._pictures
        beside_text, beside_base = (0, 0) if self.parked else (base, text)
        return Footprint(
            encoding=reserve + text + vae + beside_text + encode,
            training=reserve + base + vae + beside_base + adapter + step,
            drawing=reserve + base + vae + beside_base + adapter + decode,
        )

    def _step(self, savings: MemorySavings) -> tuple[int, int]:
        """(activations and gradients of one forward and backward pass, the adapter's own state), in bytes."""
        asked = (savings.micro_rows, savings.gradient_checkpointing)
        if asked not in self._steps:
            self._steps[asked] = self._weighed_step(*asked)
        return self._steps[asked]

    def _weighed_step(self, rows: int, checkpointing: bool) -> tuple[int, int]:
        meta = MetaFamily(self.plan.family, self._folder, self._dtype)
        family, plan = meta.family, self.plan

        lora.attach(family.denoiser, plan.rank, family.spec.targets[plan.targets], plan.seed)
        meta.settle()
        fuse(family.denoiser)
        if checkpointing:
            family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        weights, text = lora.trainable(family.denoiser), meta.conditioning(rows)
        shape = family.latent_shape(plan.resolution, plan.resolution)

        def step() -> Any:
            latents = torch.zeros(rows, *shape)
            times = family.times_at(torch.full((rows,), 0.5))
            passes = 2 if plan.prior_weight else 1
            losses = [family.loss(latents, text, times, torch.zeros_like(latents)).sum() for _ in range(passes)]
            return torch.autograd.grad(sum(losses), weights)  # type: ignore[arg-type]

        numbers = sum(weight.numel() for weight in weights)
        return meta.peak_bytes(step), 4 * numbers * (_STATES + plan.num_shards)

    @cached_property
    def _pictures(self) -> tuple[int, int]:
        """(encoding a picture, decoding one), in bytes, without the VAE's weights."""
        meta = MetaFamily(self.plan.family, self._folder, self._dtype)
        meta.settle()
        family, side = meta.family, self.plan.resolution
        latents = (1, *family.latent_shape(side, side))
        encode = meta.peak_bytes(lambda: family.encode_images(torch.zeros(1, 3, side, side)))
        return encode, meta.peak_bytes(lambda: family.decode(torch.zeros(latents)))


@dataclass(frozen=True, slots=True)
class Allowance:
    """Memory limit of a worker.

    Args:
        memory_gb: device memory in 10^9 bytes; None: 95 % of a GPU's memory, and no limit on a CPU.
        steps_down: levels below the first that fits, after that one ran out of memory.
    """

    memory_gb: float | None = None
    steps_down: int = 0

    def budget(self, device: torch.device) -> int | None:
        """The limit in bytes; None: no limit."""
        if self.memory_gb is not None:
            return int(self.memory_gb * GB)
        if device.type != "cuda":
            return None
        return int(torch.cuda.get_device_properties(device).total_memory * _OF_GPU)


@dataclass(frozen=True, slots=True)
class Admission:
    """The memory-saving settings chosen for a run, and why.

    Args:
        needed, budget: bytes; None if there is no limit.
        steps_down: levels below the plan's own settings.
    """

    savings: MemorySavings
    steps_down: int = 0
    needed: int | None = None
    budget: int | None = None

    def facts(self) -> dict[str, Any] | None:
        """Facts for the monitor; None without a limit and with the plan's own settings."""
        if self.budget is None and not self.steps_down:
            return None
        sizes = {"needed_gb": self.needed, "budget_gb": self.budget}
        told = {name: round(size / GB, 2) for name, size in sizes.items() if size is not None}
        return {"way": self.savings.words(), "steps_down": self.steps_down, **told}


def admit_together(
    plan: Plan, folder: Path, dtype: torch.dtype, allowance: Allowance, device: torch.device, collectives: Collectives
) -> Admission:
    """`admit` with the smallest budget of all workers; same result on all. Raises OutOfMemory."""
    own = allowance.budget(device)
    told = collectives.gather(torch.tensor([float("inf") if own is None else float(own)], dtype=torch.float64))
    least = float(told.min())
    budget = None if math.isinf(least) else int(least)
    return admit(plan, folder, dtype, allowance, device, budget, collectives.num_workers)


def admit(
    plan: Plan,
    folder: Path,
    dtype: torch.dtype,
    allowance: Allowance,
    device: torch.device,
    budget: int | None,
    num_workers: int = 1,
) -> Admission:
    """The first level that fits, or `allowance.steps_down` levels below it.

    Args:
        budget: the smallest of all workers, in bytes; None: no limit.

    Raises OutOfMemory: no level fits or is left. If none fits, the message says how much memory is needed.
    """
    if budget is None:
        ways = [way for way in savings_levels(plan, large=False) if not way.sharded]
        return Admission(_at(ways, allowance.steps_down), allowance.steps_down)
    estimator = MemoryEstimator(plan, folder, dtype, device.type == "cuda", num_workers)
    ways = list(savings_levels(plan, estimator.is_large and device.type == "cuda", num_workers))
    sizes = (estimator.estimate(way).peak for way in ways)
    first = next((place for place, size in enumerate(sizes) if size <= budget), None)
    if first is None:
        raise _too_much(estimator.estimate(ways[-1]), ways[-1], budget)
    place = first + allowance.steps_down
    way = _at(ways, place)
    return Admission(way, place, estimator.estimate(way).peak, budget)


def _at(ways: list[MemorySavings], place: int) -> MemorySavings:
    if place >= len(ways):
        raise OutOfMemory(
            "the device's memory is not enough for this job, though it was done as thriftily as it can be; "
            "lower resolution, rank or num_workers and retry",
            param="training_config.resolution",
        )
    return ways[place]


def _too_much(least: Footprint, way: MemorySavings, budget: int) -> OutOfMemory:
    return OutOfMemory(
        f"this job needs {least.peak / GB:.1f} GB of a device's memory even with {way.words()}, and may take "
        f"{budget / GB:.1f} GB; lower resolution or rank, or train on a device with more memory",
        param="training_config.resolution",
    )
