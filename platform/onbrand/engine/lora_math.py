"""The LoRA deltas of a batch whose rows have different adapters, from stacked weights."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onbrand.engine.cpu.exact_batching import is_moderate, random_like
from onbrand.errors import AdapterRefused

RANK_CLASSES = (8, 16, 32, 64, 128)
"""Ranks are zero-padded to the next class. Classes are kept apart because further padding would change low bits."""
_BYTES_GATHERED = 2**26
_ALIGNED_NUMBERS = 16


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one adapter. Index 0 of every class is the base model."""

    rank_class: int
    index: int


@dataclass(frozen=True, slots=True)
class RowAdapter:
    """The adapter of one batch row: a slot, the `version` of its content, and the scale."""

    slot: Slot
    version: int
    scale: float


def rank_class(rank: int) -> int:
    """The smallest class that holds `rank`. Raises AdapterRefused above the largest."""
    for size in RANK_CLASSES:
        if rank <= size:
            return size
    raise AdapterRefused(f"the adapter's rank {rank} is above {RANK_CLASSES[-1]}, the highest that is served")


@dataclass
class Stack:
    """A and B of one layer for every slot of one class."""

    A: Tensor
    B: Tensor

    def gathered(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        """A and B of each row."""
        return self.A.index_select(0, index_N), self.B.index_select(0, index_N)


@dataclass(frozen=True)
class RowSubset:
    """Some rows of a pass, in runs of neighbours: a run's places among such rows of the batch, and in the pass."""

    runs: list[tuple[slice, slice]]
    _places: dict[tuple[int, ...], Hashable] = field(default_factory=dict)

    def places(self, *strides: int) -> Hashable:
        """Run lengths, and alignments of run starts for kernels that depend on them; `strides`: numbers per row."""
        if strides not in self._places:
            self._places[strides] = frozenset(
                (run.stop - run.start, *(run.start * stride % _ALIGNED_NUMBERS for stride in strides))
                for _, run in self.runs
            )
        return self._places[strides]


class Binding:
    """The rows of a forward pass: one index tensor per rank class for all layers, and the A and B gathered with it.

    Rows mostly stay together for many steps, so A and B are gathered once, with the scale multiplied into B.
    """

    def __init__(self, rows: Sequence[RowAdapter | None], device: torch.device, dtype: torch.dtype) -> None:
        self.num_rows = len(rows)
        self.sizes = sorted({row.slot.rank_class for row in rows if row is not None})
        self._scale_N = torch.tensor(row_scales(rows), device=device, dtype=dtype)
        self._index_N = {size: torch.tensor(slot_indices(rows, size), device=device) for size in self.sizes}
        self._runs = {
            size: _runs([row is not None and row.slot.rank_class == size for row in rows]) for size in self.sizes
        }
        self._subsets: dict[tuple[int, int], RowSubset | None] = {}
        self._kept: dict[tuple[int, str, int], tuple[Tensor, Tensor]] = {}
        self._num_bytes = 0

    def gathered(self, stack: Stack, size: int, name: str, num: int) -> tuple[Tensor, Tensor]:
        """A and scaled B for `num` rows, whole copies of the batch as guidance makes them."""
        pair = self._kept.get((size, name, num))
        if pair is None:
            copies = self._copies(num)
            A, B = stack.gathered(self._index_N[size].repeat(copies))
            pair = A, B * self._scale_N.repeat(copies).view(-1, 1, 1)
            self._keep((size, name, num), pair)
        return pair

    def gathered_for_subset(self, stack: Stack, size: int, name: str) -> tuple[Tensor, Tensor]:
        """A and scaled B for this class's rows of the batch only."""
        pair = self._kept.get((size, name, 0))
        if pair is None:
            places = [place for low, high in self._runs[size] for place in range(low, high)]
            A, B = stack.gathered(self._index_N[size][places])
            pair = A, B * self._scale_N[places].view(-1, 1, 1)
            self._keep((size, name, 0), pair)
        return pair

    def subset(self, size: int, num: int) -> RowSubset | None:
        """The rows of a class in a pass of `num` rows; None when all rows are of the class."""
        if (size, num) not in self._subsets:
            runs = self._runs[size]
            firsts = accumulate((high - low for low, high in runs), initial=0)
            at = [
                (slice(first, first + high - low), slice(start + low, start + high))
                for first, (low, high) in zip(firsts, runs, strict=False)
                for start in range(0, self._copies(num) * self.num_rows, self.num_rows)
            ]
            self._subsets[size, num] = None if runs == [(0, self.num_rows)] else RowSubset(at)
        return self._subsets[size, num]

    def _copies(self, num: int) -> int:
        copies, rest = divmod(num, self.num_rows)
        if rest or not copies:
            raise ValueError(f"a layer saw {num} rows where the batch has {self.num_rows}")
        return copies

    def _keep(self, key: tuple[int, str, int], pair: tuple[Tensor, Tensor]) -> None:
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in pair)
        if self._num_bytes + num_bytes <= _BYTES_GATHERED:
            self._num_bytes += num_bytes
            self._kept[key] = pair


def _runs(chosen: Sequence[bool]) -> list[tuple[int, int]]:
    """[low, high) of each run of True."""
    edges = [n for n, (left, right) in enumerate(pairwise([False, *chosen, False])) if left != right]
    return list(zip(edges[::2], edges[1::2], strict=True))


def slot_indices(rows: Sequence[RowAdapter | None], size: int) -> list[int]:
    """The slot of each row whose adapter has rank class `size`; 0 for all others."""
    return [row.slot.index if row and row.slot.rank_class == size else 0 for row in rows]


def row_scales(rows: Sequence[RowAdapter | None]) -> list[float]:
    """Each row's LoRA scale; 0 without an adapter."""
    return [row.scale if row else 0.0 for row in rows]


def added(module: nn.Module, x: Tensor, y: Tensor, A: Tensor, B_NoR: Tensor, scale_N11: Tensor | None) -> Tensor:
    """y + scale * B A x of every row, written into `y` where its layout allows: `y` is the layer's fresh output."""
    if isinstance(module, nn.Conv2d):
        h_NRP = _convolved(module, x, A, y.shape[2])
        h_NRP = h_NRP if scale_N11 is None else h_NRP * scale_N11
        if _is_of_tokens(y):
            y_NPo = y.flatten(2).transpose(1, 2)
            return _sum(y_NPo, h_NRP.transpose(1, 2), B_NoR.transpose(1, 2)).transpose(1, 2).view(y.shape)
        return _sum(y.reshape(len(y), y.shape[1], -1), B_NoR, h_NRP).view(y.shape)
    h_NTR = _multiplied(x.reshape(len(x), -1, x.shape[-1]), A)
    y_NTo = y.reshape(len(y), -1, y.shape[-1])
    return _sum(y_NTo, h_NTR if scale_N11 is None else h_NTR * scale_N11, B_NoR.transpose(1, 2)).view(y.shape)


def added_to(subset: RowSubset, module: nn.Module, x: Tensor, y: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """`y` with the deltas of some rows written into it. A and B hold these rows only."""
    for own, of_pass in subset.runs:
        added(module, x[of_pass], y[of_pass], A[own], B[own], None)
    return y


def is_rounded_alike(module: nn.Module, x: Tensor, y: Tensor, subset: RowSubset, size: int) -> bool:
    """Whether a class's rows computed alone get the bits they get among all rows. Tested with a random adapter, because
    zeros in a real one prove nothing, and with random inputs where the real ones overflow."""
    generator = torch.Generator().manual_seed(0)
    A = x.new_empty(len(y), size, *module.weight.shape[1:]).normal_(generator=generator)
    B = x.new_empty(len(y), len(module.weight), size).normal_(generator=generator)
    x, y = (each if is_moderate(each) else random_like(each, generator) for each in (x, y))
    whole, apart = added(module, x, y.clone(), A, B, None), y.clone()
    parts = [(run, added(module, x[run], apart[run], A[run], B[run], None)) for _, run in subset.runs]
    return all(torch.equal(part, whole[run]) for run, part in parts)


def _is_of_tokens(y: Tensor) -> bool:
    """Whether an image is laid out as tokens: the channels of one pixel are contiguous (`onednn`)."""
    return not y.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last)


def is_dense(y: Tensor) -> bool:
    """Whether `added` can write deltas into it in place."""
    return y.is_contiguous() or _is_of_tokens(y)


def _multiplied(x_NTi: Tensor, A_NRi: Tensor) -> Tensor:
    """A x of every row, [N, T, R]. MKL takes up to twice as long for a product as narrow as in the lowest class."""
    if A_NRi.shape[1] == RANK_CLASSES[0] and x_NTi.shape[1] > 1 and x_NTi.device.type == "cpu":
        return torch.bmm(A_NRi, x_NTi.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(x_NTi, A_NRi.transpose(1, 2))


def _sum(y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return torch.baddbmm(y, left, right) if torch.compiler.is_compiling() else y.baddbmm_(left, right)


def _convolved(conv: nn.Conv2d, x: Tensor, A_NRihw: Tensor, height: int) -> Tensor:
    """A x of every row, [N, R, P]: a convolution with one group per row; a product where the kernel is 1x1.

    A single row becomes two equal groups: a convolution with one group is of another kind and rounds differently.

    Args:
        height: of the layer's output; the layer may upsample its input itself (`onednn.Folded`).
    """
    if height == 2 * x.shape[2]:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    if conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0):
        return torch.bmm(A_NRihw.flatten(2), x.flatten(2))
    if len(x) == 1:
        return _convolved(conv, x.expand(2, -1, -1, -1), A_NRihw.expand(2, -1, -1, -1, -1), height)[:1]
    num, rank = A_NRihw.shape[:2]
    grouped = F.conv2d(
        x.reshape(1, -1, *x.shape[2:]), A_NRihw.flatten(0, 1), None, conv.stride, conv.padding, conv.dilation, num
    )
    return grouped.view(num, rank, -1)
