"""Slots: adapters on the device, selected row by row in one forward pass of the base.

Row b of a batch has slot s_b and scale c_b. An adapted layer W then computes (Hu et al. 2021, eq. 3, per row)

    Y_b = X_b W^T + c_b (X_b A_{s_b}^T) B_{s_b}^T          A: [S, R, i]   B: [S, o, R]   slot 0 = zeros = the base.

`onbrand.engine.adapters` decides which adapter is in which slot, and for how long.
Shapes: S slots, R rank class, i/o a layer's inputs and outputs, N rows of a forward pass, T tokens.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onbrand.engine.cpu.exact_batching import by_chance, is_moderate
from onbrand.errors import AdapterRefused
from onbrand.families.lora import LayerWeights

RANK_CLASSES = (8, 16, 32, 64, 128)
"""Ranks are zero-padded to the next class. Classes are kept apart because further padding would change low bits."""

_BYTES_GATHERED = 2**26
_BINDINGS_KEPT = 4
_KINDS_REMEMBERED = 2**14
_TRIALS_A_PASS = 64
_ALIGNED_NUMBERS = 16


class StaleSlot(RuntimeError):
    """A row refers to a slot that was written again since. Going on would use another brand's adapter."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one adapter. Index 0 of every class is the base model."""

    rank_class: int
    index: int


@dataclass(frozen=True, slots=True)
class RowAdapter:
    """The adapter of one batch row: a slot at a given `generation`, and the scale."""

    slot: Slot
    generation: int
    scale: float


def rank_class(rank: int) -> int:
    """The smallest class that holds `rank`. Raises AdapterRefused above the largest."""
    for size in RANK_CLASSES:
        if rank <= size:
            return size
    raise AdapterRefused(f"the adapter's rank {rank} is above {RANK_CLASSES[-1]}, the highest that is served")


@dataclass
class _Stack:
    """A and B of one layer for every slot of one class."""

    A: Tensor
    B: Tensor

    def gathered(self, index_N: Tensor) -> tuple[Tensor, Tensor]:
        """A and B of each row."""
        return self.A.index_select(0, index_N), self.B.index_select(0, index_N)


@dataclass
class _Layer:
    """An adapted layer of the base: the number of resident adapters that use it, and its hook while there are any."""

    module: nn.Linear | nn.Conv2d
    num_users: int = 0
    hook: Any = None


@dataclass
class _Group:
    """The slots of one rank class. Compiled passes read `index_M`: always the same tensor, written in place."""

    generations: list[int]
    free: list[int]
    index_M: Tensor | None = None
    stacks: dict[str, _Stack] = field(default_factory=dict)
    names: dict[int, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Some:
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


class _Binding:
    """The rows of a forward pass: one index tensor per rank class for all layers, and the A and B gathered with it.

    Rows mostly stay together for many steps, so A and B are gathered once, with the scale multiplied into B.
    """

    def __init__(self, rows: Sequence[RowAdapter | None], device: torch.device, dtype: torch.dtype) -> None:
        self.num_rows = len(rows)
        self.sizes = sorted({row.slot.rank_class for row in rows if row is not None})
        self._scale_N = torch.tensor(_scales(rows), device=device, dtype=dtype)
        self._index_N = {size: torch.tensor(_indices(rows, size), device=device) for size in self.sizes}
        self._runs = {
            size: _runs([row is not None and row.slot.rank_class == size for row in rows]) for size in self.sizes
        }
        self._some: dict[tuple[int, int], _Some | None] = {}
        self._kept: dict[tuple[int, str, int], tuple[Tensor, Tensor]] = {}
        self._num_bytes = 0

    def gathered(self, stack: _Stack, size: int, name: str, num: int) -> tuple[Tensor, Tensor]:
        """A and scaled B for `num` rows, whole copies of the batch as guidance makes them."""
        pair = self._kept.get((size, name, num))
        if pair is None:
            copies = self._copies(num)
            A, B = stack.gathered(self._index_N[size].repeat(copies))
            pair = A, B * self._scale_N.repeat(copies).view(-1, 1, 1)
            self._keep((size, name, num), pair)
        return pair

    def gathered_for_some(self, stack: _Stack, size: int, name: str) -> tuple[Tensor, Tensor]:
        """A and scaled B for this class's rows of the batch only."""
        pair = self._kept.get((size, name, 0))
        if pair is None:
            places = [place for low, high in self._runs[size] for place in range(low, high)]
            A, B = stack.gathered(self._index_N[size][places])
            pair = A, B * self._scale_N[places].view(-1, 1, 1)
            self._keep((size, name, 0), pair)
        return pair

    def some(self, size: int, num: int) -> _Some | None:
        """The rows of a class in a pass of `num` rows; None when all rows are of the class."""
        if (size, num) not in self._some:
            runs = self._runs[size]
            firsts = accumulate((high - low for low, high in runs), initial=0)
            at = [
                (slice(first, first + high - low), slice(start + low, start + high))
                for first, (low, high) in zip(firsts, runs, strict=False)
                for start in range(0, self._copies(num) * self.num_rows, self.num_rows)
            ]
            self._some[size, num] = None if runs == [(0, self.num_rows)] else _Some(at)
        return self._some[size, num]

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


def _indices(rows: Sequence[RowAdapter | None], size: int) -> list[int]:
    return [row.slot.index if row and row.slot.rank_class == size else 0 for row in rows]


def _scales(rows: Sequence[RowAdapter | None]) -> list[float]:
    return [row.scale if row else 0.0 for row in rows]


def _added(module: nn.Module, x: Tensor, y: Tensor, A: Tensor, B_NoR: Tensor, scale_N11: Tensor | None) -> Tensor:
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


def _added_to(some: _Some, module: nn.Module, x: Tensor, y: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """`y` with the deltas of some rows written into it. A and B hold these rows only."""
    for own, of_pass in some.runs:
        _added(module, x[of_pass], y[of_pass], A[own], B[own], None)
    return y


def _is_rounded_alike(module: nn.Module, x: Tensor, y: Tensor, some: _Some, size: int) -> bool:
    """Whether a class's rows computed alone get the bits they get among all rows. Tested with a random adapter, because
    zeros in a real one prove nothing, and with random inputs where the real ones overflow."""
    chance = torch.Generator().manual_seed(0)
    A = x.new_empty(len(y), size, *module.weight.shape[1:]).normal_(generator=chance)
    B = x.new_empty(len(y), len(module.weight), size).normal_(generator=chance)
    x, y = (each if is_moderate(each) else by_chance(each, chance) for each in (x, y))
    whole, apart = _added(module, x, y.clone(), A, B, None), y.clone()
    parts = [(run, _added(module, x[run], apart[run], A[run], B[run], None)) for _, run in some.runs]
    return all(torch.equal(part, whole[run]) for run, part in parts)


def _is_of_tokens(y: Tensor) -> bool:
    """Whether a picture is laid out as tokens: the channels of one pixel are contiguous (`onednn`)."""
    return not y.is_contiguous() and y.is_contiguous(memory_format=torch.channels_last)


def _is_dense(y: Tensor) -> bool:
    """Whether `_added` can write deltas into it in place."""
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
        self._bindings: OrderedDict[tuple[RowAdapter | None, ...], _Binding] = OrderedDict()
        self._binding: _Binding | None = None
        self._bound = False
        self._is_exact: OrderedDict[Hashable, bool] = OrderedDict()
        self._num_trials = 0
        self._scale_M11 = None if max_rows is None else self._fixed(torch.zeros(max_rows, 1, 1, dtype=self._dtype))

    @property
    def adapted_layers(self) -> list[str]:
        """Names of the layers that resident adapters use."""
        return [name for name, layer in self._layers.items() if layer.num_users]

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
        """Copy an adapter into an allocated slot; returns the slot's new generation.

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
        group.generations[slot.index] += 1
        return group.generations[slot.index]

    @torch.inference_mode()
    def release(self, slot: Slot) -> None:
        """Give a slot back and set it to zero, so that nothing of its adapter blends into the next one."""
        group = self._groups[slot.rank_class]
        group.generations[slot.index] += 1
        self._bindings.clear()
        for name in group.names.pop(slot.index, ()):
            stack = group.stacks[name]
            stack.A[slot.index].zero_()
            stack.B[slot.index].zero_()
            self._drop(name)
        group.free.append(slot.index)

    def generation(self, slot: Slot) -> int:
        """Number of writes and releases of the slot."""
        return self._groups[slot.rank_class].generations[slot.index]

    @contextmanager
    def bind(self, rows: Sequence[RowAdapter | None]) -> Iterator[None]:
        """Within the context, row b of a forward pass uses `rows[b]` (None: the base). Raises StaleSlot."""
        for row in rows:
            if row is not None and self.generation(row.slot) != row.generation:
                raise StaleSlot(f"slot {row.slot.index} is at {self.generation(row.slot)}, the row at {row.generation}")
        if self._scale_M11 is None:
            self._binding = self._binding_of(tuple(rows))
        else:
            self._write_rows(rows)
        self._bound, self._num_trials = True, 0
        try:
            yield
        finally:
            self._bound, self._binding = False, None

    def _binding_of(self, rows: tuple[RowAdapter | None, ...]) -> _Binding:
        """The binding of these rows. The last few are kept; rows include slot generations, so none is stale."""
        binding = self._bindings.pop(rows, None) or _Binding(rows, self._device, self._dtype)
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
            group.index_M.copy_(torch.tensor(_indices(rows, size) * copies)[: len(group.index_M)], non_blocking=True)
        scales = torch.tensor(_scales(rows) * copies, dtype=self._dtype)[: len(self._scale_M11)]
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

    def _stack(self, group: _Group, size: int, name: str) -> _Stack:
        if name not in group.stacks:
            weight = self._layers[name].module.weight
            A = weight.new_zeros(self.num_slots + 1, size, *weight.shape[1:], requires_grad=False)
            B = weight.new_zeros(self.num_slots + 1, weight.shape[0], size, requires_grad=False)
            if self._scale_M11 is not None:
                A, B = self._fixed(A), self._fixed(B)
            group.stacks[name] = _Stack(A, B)
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

    def _add_class(self, name: str, module: nn.Module, x: Tensor, y: Tensor, stack: _Stack, size: int) -> Tensor:
        """y with the deltas of one class's rows: computed for these alone where that was verified bit-identical."""
        binding = self._binding
        assert binding is not None
        some = binding.some(size, len(y)) if self._device.type == "cpu" and _is_dense(y) else None
        if some is not None and self._is_exact_for(name, module, x, y, some, size):
            return _added_to(some, module, x, y, *binding.gathered_for_some(stack, size, name))
        return _added(module, x, y, *binding.gathered(stack, size, name, len(y)), None)

    def _is_exact_for(self, name: str, module: nn.Module, x: Tensor, y: Tensor, some: _Some, size: int) -> bool:
        """Whether that was verified. Trials per pass are limited, because other brands wait meanwhile."""
        kind = (name, size, x.shape, x.stride(), y.shape, y.stride(), some.places(x.stride(0), y.stride(0)))
        is_exact = self._is_exact.get(kind)
        if is_exact is None and self._num_trials < _TRIALS_A_PASS:
            self._num_trials += 1
            is_exact = self._is_exact[kind] = _is_rounded_alike(module, x, y, some, size)
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
                y = _added(module, x, y, A, B, self._scale_M11[: len(y)])
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
