"""Communication between the workers of a run: gradients of every step, and results of work that they divide.

Only tensors and JSON are sent; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import safetensors.torch
import torch
from torch import Tensor

from onbrand import errors
from onbrand.errors import OnbrandError, RanOutOfMemory
from onbrand.training.memory.savings import is_out_of_memory

T = TypeVar("T")
Tensors = Mapping[str, Tensor]
_MADE, _PROBLEM = b"\0", b"\1"


class Collectives:
    """Gathers tensors from all workers of a run. This one has a single worker."""

    rank, num_workers = 0, 1

    def gather(self, own_SK: Tensor) -> Tensor:
        """All workers' packets, concatenated in the order of ranks; all must have the same shape."""
        return own_SK


class ProcessGroup(Collectives):
    """The workers of torch's default process group (gloo on CPUs, NCCL on GPUs).

    Args:
        device: tensors are moved to it for the exchange, and results stay on it.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.num_workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._device = device

    def gather(self, own_SK: Tensor) -> Tensor:
        own_SK = own_SK.to(self._device).contiguous()
        parts = [torch.empty_like(own_SK) for _ in range(self.num_workers)]
        torch.distributed.all_gather(parts, own_SK)
        return torch.cat(parts)


def shared(collectives: Collectives, things: Sequence[T], make: Callable[[T], Tensors]) -> list[Tensors]:
    """Apply `make` to all `things`: each worker does its share, and all get all results, in order, on the CPU.

    Args:
        things: the same on every worker; only the worker that processes an item looks it up.

    Raises OnbrandError: the error of the lowest rank whose `make` failed; raised on every worker.
    """
    own = range(collectives.rank, len(things), collectives.num_workers)
    if collectives.num_workers == 1:
        return [_made(things[place], make) for place in own]
    parts = [_unpacked(part) for part in gather_bytes(collectives, _packed(own, things, make))]
    made = {place: tensors for part in parts for place, tensors in part.items()}
    return [made[place] for place in range(len(things))]


def gather_bytes(collectives: Collectives, own: bytes) -> list[bytes]:
    """Every worker's bytes, in the order of ranks."""
    sizes = [int(size) for size in collectives.gather(torch.tensor([len(own)]))]
    padded_1K = torch.zeros(1, max(sizes), dtype=torch.uint8)
    if own:
        padded_1K[0, : len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    everyone_NK = collectives.gather(padded_1K).cpu()
    return [everyone_NK[rank, :size].numpy().tobytes() for rank, size in enumerate(sizes)]


def _packed(own: Sequence[int], things: Sequence[T], make: Callable[[T], Tensors]) -> bytes:
    try:
        made = {f"{place}/{name}": value for place in own for name, value in _made(things[place], make).items()}
    except OnbrandError as problem:
        told = {"kind": type(problem).__name__, "message": problem.message, "fields": problem.fields}
        return _PROBLEM + json.dumps(told, default=str).encode()
    return _MADE + safetensors.torch.save(made)


def _made(thing: T, make: Callable[[T], Tensors]) -> Tensors:
    try:
        return {name: value.detach().cpu().contiguous() for name, value in make(thing).items()}
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
    raise RanOutOfMemory("encoding or drawing a picture ran out of memory")


def _unpacked(part: bytes) -> dict[int, dict[str, Tensor]]:
    if part[:1] == _PROBLEM:
        told = json.loads(part[1:])
        raise getattr(errors, told["kind"])(told["message"], **told["fields"])
    made: dict[int, dict[str, Tensor]] = {}
    for label, value in safetensors.torch.load(part[1:]).items():
        place, name = label.split("/", 1)
        made.setdefault(int(place), {})[name] = value
    return made
