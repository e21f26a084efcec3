"""Memory-saving settings of a run, from the plan's own to the most economical."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from onbrand.families.training_config import Quantization
from onbrand.training.recipes import Plan


@dataclass(frozen=True, slots=True)
class MemorySavings:
    """Memory-saving settings.

    Args:
        micro_rows: rows per forward and backward pass; gradients of the passes are added.
        sharded: the base is sharded over all workers (FSDP).
    """

    micro_rows: int
    gradient_checkpointing: bool
    quantization: Quantization
    sharded: bool = False

    def words(self) -> str:
        """The settings in words, for monitor and error messages."""
        told = [f"{self.micro_rows} row{'s' * (self.micro_rows > 1)} at a time"]
        told += ["gradient checkpointing"] * self.gradient_checkpointing
        told += [f"base in {self.quantization}"] * (self.quantization != "none")
        told += ["base shared out to the workers"] * self.sharded
        return ", ".join(told)


def savings_levels(plan: Plan, large: bool, num_workers: int = 1) -> Iterator[MemorySavings]:
    """Memory-saving levels, from the plan's own settings down: fewer rows per pass, gradient checkpointing, sharding,
    quantization.

    Args:
        large: use gradient checkpointing by default.
        num_workers: with several, sharding the base comes before quantization.
    """
    wished = plan.gradient_checkpointing
    now = MemorySavings(
        plan.num_rows // plan.num_shards, large if wished is None else wished, plan.quantization or "none"
    )
    yield now
    if now.micro_rows > 1:
        now = replace(now, micro_rows=1)
        yield now
    if not now.gradient_checkpointing:
        now = replace(now, gradient_checkpointing=True)
        yield now
    if num_workers > 1 and now.quantization == "none":
        yield replace(now, sharded=True)
    for how in ("int8", "nf4") if plan.quantization is None else ():
        now = replace(now, quantization=how)
        yield now


def is_out_of_memory(problem: BaseException) -> bool:
    """True if an allocation failed, on a GPU or on a CPU (where torch only has a message for it)."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and "can't allocate memory" in str(problem)
