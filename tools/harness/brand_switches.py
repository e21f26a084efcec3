"""Counts recompilations of a compiled denoiser while its rows change brands, and measures the time of a change."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from onbrand.engine.compilation import compile_passes
from onbrand.engine.lora_math import RowAdapter
from onbrand.engine.slots import Slots
from onbrand.families.family import Conditioning, Family
from onbrand.families.lora import AdapterWeights

_NUM_ROWS = 128
_NUM_SLOTS = 8
RANKS = (4, 8, 12, 16)
"""Ranks of the adapters that callers pass: two rank classes."""
_LATENT_SIDE = 8


class CountingBackend:
    """A compile backend that runs graphs unchanged and counts them."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.num_graphs += 1
        return graph.forward


def brand_switches(
    family: Family, adapters: Sequence[AdapterWeights], num: int, num_rows: int = _NUM_ROWS, seed: int = 0
) -> dict[str, Any]:
    """Change the brands of rows `num` times between passes of a denoiser compiled with `fullgraph=True`.

    Rows also change scale and rank, and a slot is rewritten before each pass.
    """
    chance = random.Random(seed)
    slots = Slots(family.denoiser, _NUM_SLOTS, max_rows=num_rows)
    inputs = _inputs(family, num_rows)
    resident = [_put(slots, adapter) for adapter in [*adapters, *adapters]]
    backend = CountingBackend()
    compile_passes(family.denoiser, backend)
    try:
        num_switched, seconds, num_passes = 0, 0.0, 0
        before: list[RowAdapter | None] = [None] * num_rows
        _pass(family, slots, before, inputs)
        first = backend.num_graphs
        while num_switched < num:
            reloaded = chance.randrange(len(resident))
            slots.release(resident[reloaded].slot)
            resident[reloaded] = _put(slots, chance.choice(adapters))
            rows = [_row(chance, resident) for _ in range(num_rows)]
            num_switched += sum(_slot(row) != _slot(old) for row, old in zip(rows, before, strict=True))
            seconds += _pass(family, slots, rows, inputs)
            num_passes, before = num_passes + 1, rows
    finally:
        family.denoiser._compiled_call_impl = None
    return {
        "recompiles": backend.num_graphs - first,
        "brand_switches": num_switched,
        "passes": num_passes,
        "switch_ms": round(1000 * seconds / num_passes, 3),
    }


def _inputs(family: Family, num_rows: int) -> tuple[torch.Tensor | Conditioning, ...]:
    channels = family.latent_shape(64, 64)[0]
    latents = torch.randn((num_rows, channels, _LATENT_SIDE, _LATENT_SIDE), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        conditioning = family.encode_prompts(["a red square"]).rows([0] * num_rows)
    inputs = latents.to(family.dtype), torch.full((num_rows,), 500.0), conditioning, torch.ones(num_rows)
    return tuple(each.to(family.device) for each in inputs)


def _put(slots: Slots, adapter: AdapterWeights) -> RowAdapter:
    slot = slots.allocate(adapter.rank)
    assert slot is not None
    return RowAdapter(slot, slots.write(slot, adapter.layers), 1.0)


def _row(chance: random.Random, resident: list[RowAdapter]) -> RowAdapter | None:
    """A random resident adapter with a random scale, or None for the base."""
    chosen = chance.choice([None, *resident])
    return chosen and RowAdapter(chosen.slot, chosen.version, chance.uniform(-1, 2))


def _slot(row: RowAdapter | None) -> Any:
    return row and row.slot


@torch.inference_mode()
def _pass(family: Family, slots: Slots, rows: list[RowAdapter | None], inputs: Any) -> float:
    """Do one pass; returns the seconds to bind adapters to all rows."""
    if family.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    with slots.bind(rows):
        if family.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        family.denoise(*inputs)
    return seconds
