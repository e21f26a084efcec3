"""Fast passes of a denoiser: kept memory on a CPU (the rest is in `onednn`), and compiled graphs on any device.

Results differ by rounding only, and a row's result does not depend on the other rows.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_MMAP_BYTES = 32 * 2**20
_KEPT_BYTES = 2**30
_MOST_COMPILED = 64


def keep_memory() -> bool:
    """Have the C library keep memory that a step frees for the next step; for a process that draws on a CPU.

    glibc returns blocks of some MiB to the kernel at once, and a step's activations are such blocks. Faulting them in
    again costs more than some of the computation on them. Returns whether the C library accepted the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


def compile_passes(denoiser: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the denoiser in place: one graph per shape, on a GPU as CUDA graphs. `Slots` must have `max_rows`."""
    on_gpu = next(denoiser.parameters()).device.type == "cuda"
    mode = "reduce-overhead" if on_gpu and backend == "inductor" else None
    denoiser.compile(fullgraph=True, dynamic=False, backend=backend, mode=mode, recompile_limit=_MOST_COMPILED)
    denoiser._compiled_call_impl = _uncompiled_beyond_limit(denoiser, denoiser._compiled_call_impl)


def _uncompiled_beyond_limit(denoiser: nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Compute passes of shapes beyond the graph limit without a graph: slower, but correct."""
    is_warned = False

    def call(*inputs: Any, **named: Any) -> Any:
        nonlocal is_warned
        try:
            return compiled(*inputs, **named)
        except FailOnRecompileLimitHit:
            if not is_warned:
                log.warning("%d graphs are compiled, and no more: passes of further shapes are slower", _MOST_COMPILED)
            is_warned = True
            return denoiser._call_impl(*inputs, **named)

    return call
