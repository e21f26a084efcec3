"""Slots: the adapters that one forward pass of the base can use, row by row.

Row b of a batch has slot s_b and scale c_b; an adapted layer W then computes (Hu et al. 2021, eq. 3, per row)

    Y_b = X_b W^T + c_b (X_b A_{s_b}^T) B_{s_b}^T          A: [S, R, i]   B: [S, o, R]   slot 0 = zeros = the base.

Which adapter sits in which slot, and for how long, is `onbrand.engine.adapters`' business.
Shapes: S slots, R rank class, i/o a layer's inputs and outputs, N rows of a forward pass, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onbrand.errors import AdapterRefused
from onbrand.families.lora import LayerWeights

RANK_CLASSES = (8, 16, 32, 64, 128)
"""Ranks are zero-padded to the next class. Classes are kept apart because padding further would change low bits."""


class StaleSlot(RuntimeError):
    """A row points at a slot that was written again since; drawing on would use another brand's adapter."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one adapter; index 0 of every class is the base model."""

    rank_class: int
    index: int


@dataclass(frozen=True, slots=True)
class RowAdapter:
    """What one row of a batch wants: a slot as it was at `generation`, and how much of it."""

    slot: Slot
    generation: int
    scale: float


def rank_class(rank: int) -> int:
    """The class that holds `rank`. Raises AdapterRefused above the largest."""
    for size in RANK_CLASSES:
        if rank <= size:
            return size
    raise AdapterRefused(f"the adapter's rank {rank} is above {RANK_CLASSES[-1]}, the highest that is served")


@dataclass
class _Stack:
    """A and B of one layer for every slot of one class."""

    A: Tensor
    B: Tensor


@dataclass
class _Layer:
    """An adapted layer of the base: how many resident adapters name it, and its hook while any does."""

    module: nn.Linear | nn.Conv2d
    num_users: int = 0
    hook: Any = None


@dataclass
class _Group:
    """The slots of one rank class."""

    generations: list[int]
    free: list[int]
    stacks: dict[str, _Stack] = field(default_factory=dict)
    names: dict[int, tuple[str, ...]] = field(default_factory=dict)


class _Binding:
    """The rows of the forward pass in progress: per rank class one index tensor and one scale tensor for all layers."""

    def __init__(self, rows: Sequence[RowAdapter | None], device: torch.device, dtype: torch.dtype) -> None:
        self.num_rows = len(rows)
        sizes = sorted({row.slot.rank_class for row in rows if row is not None})
        self._scale = torch.tensor([row.scale if row else 0.0 for row in rows], device=device, dtype=dtype)
        self._index = {size: torch.tensor(_indices(rows, size), device=device) for size in sizes}
        self._repeated: dict[int, tuple[dict[int, Tensor], Tensor]] = {}

    def rows(self, num: int) -> tuple[dict[int, Tensor], Tensor]:
        """Index per rank class and scale for a pass of `num` rows: guidance stacks whole copies of the batch."""
        copies, rest = divmod(num, self.num_rows)
        if rest or not copies:
            raise ValueError(f"a layer saw {num} rows where the batch has {self.num_rows}")
        if copies not in self._repeated:
            index = {size: index.repeat(copies) for size, index in self._index.items()}
            self._repeated[copies] = index, self._scale.repeat(copies)
        return self._repeated[copies]


def _indices(rows: Sequence[RowAdapter | None], size: int) -> list[int]:
    return [row.slot.index if row and row.slot.rank_class == size else 0 for row in rows]


def _linear_delta(x: Tensor, y: Tensor, A_NRi: Tensor, B_NoR: Tensor, scale_N: Tensor) -> Tensor:
    x_NTi = x.reshape(len(x), -1, x.shape[-1])
    h_NTR = torch.bmm(x_NTi, A_NRi.transpose(1, 2)) * scale_N.view(-1, 1, 1)
    y_NTo = y.reshape(len(y), -1, y.shape[-1])
    return torch.baddbmm(y_NTo, h_NTR, B_NoR.transpose(1, 2)).view(y.shape)


def _conv_delta(conv: nn.Conv2d, x: Tensor, y: Tensor, A_NRihw: Tensor, B_NoR: Tensor, scale_N: Tensor) -> Tensor:
    num, rank = A_NRihw.shape[:2]
    grouped = F.conv2d(
        x.reshape(1, -1, *x.shape[2:]), A_NRihw.flatten(0, 1), None, conv.stride, conv.padding, conv.dilation, num
    )
    h_NRP = grouped.view(num, rank, -1) * scale_N.view(-1, 1, 1)
    return torch.baddbmm(y.reshape(num, y.shape[1], -1), B_NoR, h_NRP).view(y.shape)


class Slots:
    """The slots of one denoiser. Layers that no resident adapter names cost nothing.

    Args:
        denoiser: the base; its weights are never touched, hooks add to its layers' outputs.
        num_slots: adapters at once, in each rank class.
        max_rank: the highest rank taken.
    """

    def __init__(self, denoiser: nn.Module, num_slots: int, max_rank: int = RANK_CLASSES[-1]) -> None:
        self.num_slots, self.max_rank = num_slots, max_rank
        weight = next(denoiser.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        adaptable = ((n, m) for n, m in denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
        self._layers = {name: _Layer(module) for name, module in adaptable}
        self._groups: dict[int, _Group] = {}
        self._binding: _Binding | None = None

    @property
    def adapted_layers(self) -> list[str]:
        """The layers that pay for adapters now."""
        return [name for name, layer in self._layers.items() if layer.num_users]

    def must_fit(self, layers: Mapping[str, LayerWeights], rank: int) -> None:
        """Raise AdapterRefused unless `layers` can be put into a slot of this denoiser."""
        if rank > self.max_rank:
            raise AdapterRefused(f"the adapter's rank {rank} is above {self.max_rank}, the highest that is served")
        rank_class(rank)
        for name, weights in layers.items():
            _must_fit_layer(name, self._layers.get(name), weights)

    def allocate(self, rank: int) -> Slot | None:
        """Take a free slot for an adapter of `rank`, or None when all are taken."""
        size = rank_class(rank)
        group = self._groups.get(size)
        if group is None:
            group = self._groups[size] = _Group([0] * (self.num_slots + 1), list(range(self.num_slots, 0, -1)))
        return Slot(size, group.free.pop()) if group.free else None

    @torch.inference_mode()
    def write(self, slot: Slot, layers: Mapping[str, LayerWeights]) -> int:
        """Copy an adapter into an allocated slot; returns the slot's new generation."""
        group = self._groups[slot.rank_class]
        group.names[slot.index] = tuple(layers)
        for name, layer in layers.items():
            stack = self._stack(group, slot.rank_class, name)
            stack.A[slot.index, : len(layer.a)].copy_(layer.a)
            stack.B[slot.index, :, : len(layer.a)].copy_(layer.b)
            self._use(name)
        group.generations[slot.index] += 1
        return group.generations[slot.index]

    @torch.inference_mode()
    def release(self, slot: Slot) -> None:
        """Give a slot back: zeros again, so that nothing of its adapter can blend into the next one."""
        group = self._groups[slot.rank_class]
        group.generations[slot.index] += 1
        for name in group.names.pop(slot.index, ()):
            stack = group.stacks[name]
            stack.A[slot.index].zero_()
            stack.B[slot.index].zero_()
            self._drop(name)
        group.free.append(slot.index)

    def generation(self, slot: Slot) -> int:
        """How often the slot was written or released."""
        return self._groups[slot.rank_class].generations[slot.index]

    @contextmanager
    def bind(self, rows: Sequence[RowAdapter | None]) -> Iterator[None]:
        """Within the context, row b of a forward pass uses `rows[b]` (None: the base). Raises StaleSlot."""
        for row in rows:
            if row is not None and self.generation(row.slot) != row.generation:
                raise StaleSlot(f"slot {row.slot.index} is at {self.generation(row.slot)}, the row at {row.generation}")
        self._binding = _Binding(rows, self._device, self._dtype)
        try:
            yield
        finally:
            self._binding = None

    def _stack(self, group: _Group, size: int, name: str) -> _Stack:
        if name not in group.stacks:
            weight = self._layers[name].module.weight
            A = weight.new_zeros(self.num_slots + 1, size, *weight.shape[1:], requires_grad=False)
            B = weight.new_zeros(self.num_slots + 1, weight.shape[0], size, requires_grad=False)
            group.stacks[name] = _Stack(A, B)
        return group.stacks[name]

    def _use(self, name: str) -> None:
        layer = self._layers[name]
        layer.num_users += 1
        if layer.hook is None:
            layer.hook = layer.module.register_forward_hook(partial(self._add_deltas, name))

    def _drop(self, name: str) -> None:
        layer = self._layers[name]
        layer.num_users -= 1
        if not layer.num_users:
            layer.hook.remove()
            layer.hook = None
            for group in self._groups.values():
                group.stacks.pop(name, None)

    def _add_deltas(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._binding is None:
            return output
        index, scale = self._binding.rows(len(output))
        for size, index_N in index.items():
            stack = self._groups[size].stacks.get(name)
            if stack is None:
                continue
            A, B = stack.A[index_N], stack.B[index_N]
            if isinstance(module, nn.Conv2d):
                output = _conv_delta(module, inputs[0], output, A, B, scale)
            else:
                output = _linear_delta(inputs[0], output, A, B, scale)
        return output


def _must_fit_layer(name: str, layer: _Layer | None, weights: LayerWeights) -> None:
    if layer is None:
        raise AdapterRefused(f"the adapter names the layer {name}, which the base does not have")
    module, base = layer.module, layer.module.weight
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        raise AdapterRefused(f"the layer {name} is a convolution of a kind that cannot be adapted")
    a, b = weights.a, weights.b
    if a.shape[1:] != base.shape[1:] or b.shape != (base.shape[0], len(a)):
        raise AdapterRefused(f"the adapter's shapes at {name} do not fit the base: {[*a.shape]} and {[*b.shape]}")
