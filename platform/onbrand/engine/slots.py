"""Slots: adapters on the device, selected row by row in one forward pass of the base.

Row b of a batch has slot s_b and scale c_b. An adapted layer W then computes (Hu et al. 2021, eq. 3, per row)

    Y_b = X_b W^T + c_b (X_b A_{s_b}^T) B_{s_b}^T          A: [S, R, i]   B: [S, o, R]   slot 0 = zeros = the base.

`onbrand.engine.residency` decides which adapter is in which slot, and for how long.
Shapes: S slots, R rank class, i/o a layer's inputs and outputs, N rows of a forward pass, T tokens.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from onbrand.engine.lora_math import (
    RANK_CLASSES,
    Binding,
    RowAdapter,
    RowSubset,
    Slot,
    Stack,
    added,
    added_to,
    is_dense,
    is_rounded_alike,
    rank_class,
    row_scales,
    slot_indices,
)
from onbrand.errors import AdapterRefused
from onbrand.families.lora import LayerWeights

_BINDINGS_KEPT = 4
_KINDS_REMEMBERED = 2**14
_TRIALS_A_PASS = 64


class StaleSlot(RuntimeError):
    """A row refers to a slot that was written again since. Going on would use another brand's adapter."""


@dataclass
class _Layer:
    """An adapted layer of the base: the number of resident adapters that use it, and its hook while there are any."""

    module: nn.Linear | nn.Conv2d
    num_users: int = 0
    hook: Any = None


@dataclass
class _Group:
    """The slots of one rank class. Compiled passes read `index_M`: always the same tensor, written in place."""

    versions: list[int]
    free: list[int]
    index_M: Tensor | None = None
    stacks: dict[str, Stack] = field(default_factory=dict)
    names: dict[int, list[str]] = field(default_factory=dict)


class Slots:
    """The slots of one denoiser. Layers that no resident adapter uses cost nothing.

    Args:
        denoiser: the base. Its weights are never changed; hooks add to its layers' outputs.
        num_slots: adapters at once, in each rank class.
        max_rank: the highest accepted rank.
        max_rows: for compiled passes: the most rows of a pass, guidance included. Index, scale and stacks are then
            always the same tensors, written in place, and an adapted layer stays adapted. So brands, ranks (of the
            classes in use), scales and weights never cause a recompilation. None: for passes that are not compiled;
            they skip layers and classes that their rows do not use.
    """

    def __init__(
        self, denoiser: nn.Module, num_slots: int, max_rank: int = RANK_CLASSES[-1], max_rows: int | None = None
    ) -> None:
        self.num_slots, self.max_rank = num_slots, max_rank
        weight = next(denoiser.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        adaptable = ((n, m) for n, m in denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
        self._layers = {name: _Layer(module) for name, module in adaptable}
        weakref.finalize(self, _unhook, self._layers)
        self._groups: dict[int, _Group] = {}
        self._bindings: OrderedDict[tuple[RowAdapter | None, ...], Binding] = OrderedDict()
        self._binding: Binding | None = None
        self._bound = False
        self._is_exact: OrderedDict[Hashable, bool] = OrderedDict()
        self._num_trials = 0
        self._scale_M11 = None if max_rows is None else self._fixed(torch.zeros(max_rows, 1, 1, dtype=self._dtype))

    def must_fit(self, layers: Mapping[str, LayerWeights], rank: int) -> None:
        """Raise AdapterRefused unless `layers` can be put into a slot of this denoiser."""
        if rank > self.max_rank:
            raise AdapterRefused(f"the adapter's rank {rank} is above {self.max_rank}, the highest that is served")
        rank_class(rank)
        for name, weights in layers.items():
            _must_fit_layer(name, self._layers.get(name), weights)

    def allocate(self, rank: int) -> Slot | None:
        """Take a free slot for an adapter of `rank`; None when all are taken."""
        size = rank_class(rank)
        group = self._group(size)
        return Slot(size, group.free.pop()) if group.free else None

    @torch.inference_mode()
    def write(self, slot: Slot, layers: Mapping[str, LayerWeights]) -> int:
        """Copy an adapter into an allocated slot; returns the slot's new version.

        If it raises (no memory), `release` can still give the slot back, and other slots are unchanged.
        """
        group = self._groups[slot.rank_class]
        names = group.names[slot.index] = []
        for name, layer in layers.items():
            stack = self._stack(group, slot.rank_class, name)
            self._use(name)
            names.append(name)
            stack.A[slot.index, : len(layer.a)].copy_(layer.a, non_blocking=True)
            stack.B[slot.index, :, : len(layer.a)].copy_(layer.b, non_blocking=True)
        group.versions[slot.index] += 1
        return group.versions[slot.index]

    @torch.inference_mode()
    def release(self, slot: Slot) -> None:
        """Give a slot back and set it to zero, so that nothing of its adapter blends into the next one."""
        group = self._groups[slot.rank_class]
        group.versions[slot.index] += 1
        self._bindings.clear()
        for name in group.names.pop(slot.index, ()):
            stack = group.stacks[name]
            stack.A[slot.index].zero_()
            stack.B[slot.index].zero_()
            self._drop(name)
        group.free.append(slot.index)

    def version(self, slot: Slot) -> int:
        """Number of writes and releases of the slot."""
        return self._groups[slot.rank_class].versions[slot.index]

    @contextmanager
    def bind(self, rows: Sequence[RowAdapter | None]) -> Iterator[None]:
        """Within the context, row b of a forward pass uses `rows[b]` (None: the base). Raises StaleSlot."""
        for row in rows:
            if row is not None and self.version(row.slot) != row.version:
                raise StaleSlot(f"slot {row.slot.index} is at {self.version(row.slot)}, the row at {row.version}")
        if self._scale_M11 is None:
            self._binding = self._binding_of(tuple(rows))
        else:
            self._write_rows(rows)
        self._bound, self._num_trials = True, 0
        try:
            yield
        finally:
            self._bound, self._binding = False, None

    def _binding_of(self, rows: tuple[RowAdapter | None, ...]) -> Binding:
        """The binding of these rows. The last few are kept; rows include slot versions, so none is stale."""
        binding = self._bindings.pop(rows, None) or Binding(rows, self._device, self._dtype)
        self._bindings[rows] = binding
        while len(self._bindings) > _BINDINGS_KEPT:
            self._bindings.popitem(last=False)
        return binding

    @torch.inference_mode()
    def _write_rows(self, rows: Sequence[RowAdapter | None]) -> None:
        """Write the rows repeatedly into the tensors that compiled passes read, for any number of whole copies."""
        assert self._scale_M11 is not None
        copies = -(-len(self._scale_M11) // len(rows))
        for size, group in self._groups.items():
            assert group.index_M is not None
            group.index_M.copy_(
                torch.tensor(slot_indices(rows, size) * copies)[: len(group.index_M)], non_blocking=True
            )
        scales = torch.tensor(row_scales(rows) * copies, dtype=self._dtype)[: len(self._scale_M11)]
        self._scale_M11.copy_(scales.view(-1, 1, 1), non_blocking=True)

    def _group(self, size: int) -> _Group:
        if size not in self._groups:
            free = list(range(self.num_slots, 0, -1))
            index_M = None
            if self._scale_M11 is not None:
                index_M = self._fixed(torch.zeros(len(self._scale_M11), dtype=torch.long))
            self._groups[size] = _Group([0] * (self.num_slots + 1), free, index_M)
        return self._groups[size]

    def _fixed(self, tensor: Tensor) -> Tensor:
        """The tensor on the device at a fixed address, so that CUDA graphs do not copy it into each pass."""
        placed = tensor.to(self._device)
        torch._dynamo.mark_static_address(placed)
        return placed

    def _stack(self, group: _Group, size: int, name: str) -> Stack:
        if name not in group.stacks:
            weight = self._layers[name].module.weight
            A = weight.new_zeros(self.num_slots + 1, size, *weight.shape[1:], requires_grad=False)
            B = weight.new_zeros(self.num_slots + 1, weight.shape[0], size, requires_grad=False)
            if self._scale_M11 is not None:
                A, B = self._fixed(A), self._fixed(B)
            group.stacks[name] = Stack(A, B)
        return group.stacks[name]

    def _use(self, name: str) -> None:
        layer = self._layers[name]
        layer.num_users += 1
        if layer.hook is None:
            layer.hook = layer.module.register_forward_hook(self._hook(name))

    def _drop(self, name: str) -> None:
        layer = self._layers[name]
        layer.num_users -= 1
        if not layer.num_users and self._scale_M11 is None:
            layer.hook.remove()
            layer.hook = None
            for group in self._groups.values():
                group.stacks.pop(name, None)

    def _hook(self, name: str) -> Callable[..., Tensor]:
        """Without `max_rows` the base holds a weak reference to its slots: deleting the engine frees its adapters."""
        if self._scale_M11 is not None:
            return partial(self._add_deltas, name)
        return partial(_add_deltas_if_alive, weakref.ref(self), name)

    def _add_deltas(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not self._bound:
            return output
        if self._scale_M11 is not None:
            return self._add_every_class(name, module, inputs[0], output)
        assert self._binding is not None
        for size in self._binding.sizes:
            stack = self._groups[size].stacks.get(name)
            if stack is not None:
                output = self._add_class(name, module, inputs[0], output, stack, size)
        return output

    def _add_class(self, name: str, module: nn.Module, x: Tensor, y: Tensor, stack: Stack, size: int) -> Tensor:
        """y with the deltas of one class's rows: computed for these alone where that was verified bit-identical."""
        binding = self._binding
        assert binding is not None
        subset = binding.subset(size, len(y)) if self._device.type == "cpu" and is_dense(y) else None
        if subset is not None and self._is_exact_for(name, module, x, y, subset, size):
            return added_to(subset, module, x, y, *binding.gathered_for_subset(stack, size, name))
        return added(module, x, y, *binding.gathered(stack, size, name, len(y)), None)

    def _is_exact_for(self, name: str, module: nn.Module, x: Tensor, y: Tensor, subset: RowSubset, size: int) -> bool:
        """Whether that was verified. Trials per pass are limited, because other brands wait meanwhile."""
        kind = (name, size, x.shape, x.stride(), y.shape, y.stride(), subset.places(x.stride(0), y.stride(0)))
        is_exact = self._is_exact.get(kind)
        if is_exact is None and self._num_trials < _TRIALS_A_PASS:
            self._num_trials += 1
            is_exact = self._is_exact[kind] = is_rounded_alike(module, x, y, subset, size)
            while len(self._is_exact) > _KINDS_REMEMBERED:
                self._is_exact.popitem(last=False)
        return bool(is_exact)

    def _add_every_class(self, name: str, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The same operations for any rows: classes that a row does not use add zeros to it."""
        assert self._scale_M11 is not None
        for group in self._groups.values():
            stack = group.stacks.get(name)
            if stack is not None:
                assert group.index_M is not None
                A, B = stack.gathered(group.index_M[: len(y)])
                y = added(module, x, y, A, B, self._scale_M11[: len(y)])
        return y


def _add_deltas_if_alive(
    slots: weakref.ref[Slots], name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    alive = slots()
    return output if alive is None else alive._add_deltas(name, module, inputs, output)


def _unhook(layers: Mapping[str, _Layer]) -> None:
    for layer in layers.values():
        if layer.hook is not None:
            layer.hook.remove()


def _must_fit_layer(name: str, layer: _Layer | None, weights: LayerWeights) -> None:
    if layer is None:
        raise AdapterRefused(f"the adapter names the layer {name}, which the base does not have")
    module, base = layer.module, layer.module.weight
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        raise AdapterRefused(f"the layer {name} is a convolution of a kind that cannot be adapted")
    a, b = weights.a, weights.b
    if a.shape[1:] != base.shape[1:] or b.shape != (base.shape[0], len(a)):
        raise AdapterRefused(f"the adapter's shapes at {name} do not fit the base: {[*a.shape]} and {[*b.shape]}")
