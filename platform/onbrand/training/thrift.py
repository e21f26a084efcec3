"""What a run goes without to take less memory, from what is wished to the least that works."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from onbrand.families.spec import Quantization
from onbrand.training.recipes import Plan


@dataclass(frozen=True, slots=True)
class Thrift:
    """What a run does to take less memory.

    Args:
        micro_rows: rows that go through the denoiser at once; gradients of the rest are added.
        sharded: the base lies in parts on all workers (FSDP).
    """

    micro_rows: int
    gradient_checkpointing: bool
    quantization: Quantization
    sharded: bool = False

    def words(self) -> str:
        told = [f"{self.micro_rows} row{'s' * (self.micro_rows > 1)} at a time"]
        told += ["gradient checkpointing"] * self.gradient_checkpointing
        told += [f"base in {self.quantization}"] * (self.quantization != "none")
        told += ["base shared out to the workers"] * self.sharded
        return ", ".join(told)


def rungs(plan: Plan, large: bool, num_workers: int = 1) -> Iterator[Thrift]:
    """From what the plan wishes down to the most thrifty: fewer rows at once, checkpointing, a base in fewer bits.

    Args:
        large: the base is one that is not trained without checkpointing on a GPU, unless the owner says so.
        num_workers: with several, a base that fits none of them whole is shared out before it loses bits.
    """
    wished = plan.gradient_checkpointing
    now = Thrift(plan.num_rows // plan.num_shards, large if wished is None else wished, plan.quantization or "none")
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
    """Whether an allocation failed, on a GPU or on a CPU (where torch says so in words only)."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and "can't allocate memory" in str(problem)
