"""Slots on a toy denoiser: the formula per row, zero padding, guidance doubling, generations, complete removal."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from onbrand.engine import lora_math
from onbrand.engine import slots as slots_module
from onbrand.engine.cpu.onednn import use_onednn
from onbrand.engine.cpu.unet_blocks import use_blocks
from onbrand.engine.lora_math import RowAdapter, Slot, rank_class
from onbrand.engine.slots import Slots, StaleSlot
from onbrand.errors import AdapterRefused
from onbrand.families.lora import LayerWeights

LAYERS = ("conv", "point", "mix", "time")


class Toy(nn.Module):
    """Convolutions, 3x3 with a stride and 1x1, and two linear layers, as a denoiser has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.point = nn.Conv2d(6, 6, 1)
        self.mix = nn.Linear(6, 10)
        self.time = nn.Linear(4, 10)

    def forward(self, x_BCHW: Tensor, t_BK: Tensor) -> Tensor:
        tokens = self.point(self.conv(x_BCHW)).flatten(2).transpose(1, 2)
        return self.mix(tokens) + self.time(t_BK).unsqueeze(1)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def toy() -> nn.Module:
    return Toy().eval().requires_grad_(False)


def weights(toy: nn.Module, rank: int, *names: str) -> dict[str, LayerWeights]:
    modules = dict(toy.named_modules())
    shapes = {name: modules[name].weight.shape for name in names or LAYERS}
    return {
        name: LayerWeights(torch.randn(rank, *shape[1:]), torch.randn(shape[0], rank)) for name, shape in shapes.items()
    }


def put(slots: Slots, layers: dict[str, LayerWeights], rank: int, scale: float = 1.0) -> RowAdapter:
    slot = slots.allocate(rank)
    assert slot is not None
    return RowAdapter(slot, slots.write(slot, layers), scale)


def merged(toy: nn.Module, layers: dict[str, LayerWeights], scale: float) -> nn.Module:
    """The base with the update added to its weights, the reference for one row."""
    alone = type(toy)().eval().requires_grad_(False)
    alone.load_state_dict(toy.state_dict())
    for name, module in alone.named_modules():
        if name in layers:
            delta = (layers[name].b @ layers[name].a.flatten(1)).view_as(module.weight)
            module.weight += scale * delta
    return alone


def inputs(num: int) -> tuple[Tensor, Tensor]:
    return torch.randn(num, 3, 8, 8), torch.randn(num, 4)


def test_each_row_uses_its_own_adapter_rank_and_scale(toy):
    slots = Slots(toy, num_slots=4)
    wanted = [(weights(toy, 2), 2, 1.0), (weights(toy, 8), 8, -0.5), (weights(toy, 13), 13, 2.0)]
    rows = [put(slots, *adapter) for adapter in wanted]
    x, t = inputs(4)
    with slots.bind([*rows, None]):
        mixed = toy(x, t)
    for b, (layers, _, scale) in enumerate(wanted):
        torch.testing.assert_close(mixed[b], merged(toy, layers, scale)(x, t)[b], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[3], toy(x, t)[3], rtol=0, atol=0)


def test_guidance_repeats_whole_copies_of_the_batch(toy):
    """[negative rows..., positive rows...]: row b's adapter serves rows b and B + b, never its neighbour's branch."""
    slots = Slots(toy, num_slots=4)
    rows = [put(slots, weights(toy, 4), 4, scale) for scale in (1.0, 0.7)]
    x, t = inputs(4)
    with slots.bind(rows):
        doubled = toy(x, t)
    for copy in (0, 1):
        with slots.bind(rows):
            single = toy(x[2 * copy : 2 * copy + 2], t[2 * copy : 2 * copy + 2])
        torch.testing.assert_close(doubled[2 * copy : 2 * copy + 2], single, rtol=1e-4, atol=1e-3)


def replace_added(monkeypatch: pytest.MonkeyPatch, replacement: Callable[..., Any]) -> None:
    """Replace `lora_math.added` in both modules that call it."""
    for module in (lora_math, slots_module):
        monkeypatch.setattr(module, "added", replacement)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows in each addition of deltas."""
    nums: list[int] = []
    real = lora_math.added
    replace_added(monkeypatch, lambda *asked: nums.append(len(asked[2])) or real(*asked))
    return nums


def of_two_classes(toy: nn.Module) -> tuple[Slots, list[RowAdapter | None]]:
    slots = Slots(toy, num_slots=4)
    wide, first, second = (put(slots, weights(toy, rank), rank) for rank in (13, 2, 8))
    return slots, [None, first, second, wide]


def test_deltas_are_made_for_the_rows_of_their_class_once_that_was_seen_to_change_no_bit(toy, added, monkeypatch):
    slots, rows = of_two_classes(toy)
    x, t = inputs(8)
    drawn = []
    for _ in range(3):
        added.clear()
        with slots.bind(rows):
            drawn.append(toy(x, t))
    is_exact = list(slots._is_exact.values())
    assert len(is_exact) == 2 * len(LAYERS)
    assert any(is_exact)
    assert added.count(8) == is_exact.count(False)
    assert added.count(2) + added.count(1) == 2 * is_exact.count(True)
    monkeypatch.setattr(slots_module, "is_dense", lambda y: False)
    with slots.bind(rows):
        drawn.append(toy(x, t))
    assert all(torch.equal(each, drawn[0]) for each in drawn)


def test_where_a_bit_would_change_deltas_are_made_for_all_rows(toy, monkeypatch):
    slots, rows = of_two_classes(toy)
    x, t = inputs(8)
    with slots.bind(rows):
        toy(x, t)  # seen to be exact, but not of what comes now
    slots._is_exact.clear()
    real = lora_math.added
    replace_added(monkeypatch, lambda *asked: real(*asked).mul_(1 + len(asked[2]) * 1e-6))
    drawn = []
    for _ in range(3):
        with slots.bind(rows):
            drawn.append(toy(x, t))
    assert slots._is_exact
    assert not any(slots._is_exact.values())
    assert all(torch.equal(each, drawn[0]) for each in drawn)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_rows_that_overflow_decide_nothing_for_those_that_come_after(toy, value):
    """Whether bits change is seen with numbers, whoever is the first to draw."""
    validations = []
    for first in (value, None):
        slots, rows = of_two_classes(toy)
        x, t = inputs(8)
        if first is not None:
            x[1] = first
        with slots.bind(rows):
            toy(x, t)
        validations.append(dict(slots._is_exact))
    assert validations[0] == validations[1]
    assert any(validations[1].values())


def test_a_row_that_overflows_changes_no_bit_of_the_others(toy):
    slots, rows = of_two_classes(toy)
    x, t = inputs(4)
    with slots.bind(rows):
        alone = toy(x, t)
        x[1] = float("nan")
        beside = toy(x, t)
    assert torch.equal(alone[[0, 2, 3]], beside[[0, 2, 3]])
    assert beside[1].isnan().any()


def test_rows_that_are_no_multiple_of_the_batch_are_refused(toy):
    slots = Slots(toy, num_slots=2)
    row = put(slots, weights(toy, 4), 4)
    with slots.bind([row, None]), pytest.raises(ValueError, match="3 rows"):
        toy(*inputs(3))


def test_layers_that_no_adapter_names_have_no_hook(toy):
    slots = Slots(toy, num_slots=2)
    row = put(slots, weights(toy, 4, "mix"), 4)
    assert [name for name, layer in slots._layers.items() if layer.num_users] == ["mix"]
    assert not toy.conv._forward_hooks
    slots.release(row.slot)
    assert not any(layer.num_users for layer in slots._layers.values())
    assert not toy.mix._forward_hooks


def test_the_base_outside_a_step_is_the_pristine_base(toy):
    x, t = inputs(2)
    before = toy(x, t)
    slots = Slots(toy, num_slots=2)
    put(slots, weights(toy, 4), 4)
    assert torch.equal(toy(x, t), before)


def test_a_slot_written_again_leaves_no_blend(toy):
    """A -> B -> A: the first adapter's layers that the second does not name are zero again."""
    slots = Slots(toy, num_slots=2)
    put(slots, weights(toy, 8), 8)  # keeps every layer adapted meanwhile
    first, second = weights(toy, 8), weights(toy, 3, "mix")
    x, t = inputs(1)
    slots.release(put(slots, first, 8).slot)
    row = put(slots, second, 3)
    with slots.bind([row]):
        torch.testing.assert_close(toy(x, t), merged(toy, second, 1.0)(x, t), rtol=1e-4, atol=1e-4)
    slots.release(row.slot)
    again = put(slots, first, 8)
    with slots.bind([again]):
        torch.testing.assert_close(toy(x, t), merged(toy, first, 1.0)(x, t), rtol=1e-4, atol=1e-4)


def test_a_row_of_an_older_generation_is_refused(toy):
    slots = Slots(toy, num_slots=1)
    old = put(slots, weights(toy, 4), 4)
    slots.release(old.slot)
    put(slots, weights(toy, 4), 4)
    with pytest.raises(StaleSlot), slots.bind([old]):
        raise AssertionError("a stale row was bound")


def test_slots_of_a_class_run_out_and_come_back(toy):
    slots = Slots(toy, num_slots=2)
    taken = [slots.allocate(8), slots.allocate(5)]
    assert slots.allocate(8) is None
    assert slots.allocate(9) == Slot(16, 1)
    slots.release(taken[0])
    assert slots.allocate(8) == taken[0]


@pytest.mark.parametrize(("rank", "size"), [(1, 8), (8, 8), (9, 16), (64, 64), (65, 128), (128, 128)])
def test_a_rank_is_padded_to_its_class(rank, size):
    assert rank_class(rank) == size


def test_a_rank_above_all_classes_is_refused():
    with pytest.raises(AdapterRefused, match="129"):
        rank_class(129)


def test_an_adapter_that_does_not_fit_is_refused_with_the_layer_named(toy):
    slots = Slots(toy, num_slots=1)
    good = weights(toy, 4, "mix")["mix"]
    with pytest.raises(AdapterRefused, match="attic"):
        slots.must_fit({"attic": good}, 4)
    with pytest.raises(AdapterRefused, match="time"):
        slots.must_fit({"time": good}, 4)
    with pytest.raises(AdapterRefused, match="rank 40"):
        Slots(toy, num_slots=1, max_rank=32).must_fit({"mix": good}, 40)


@pytest.mark.parametrize("num_neighbours", [0, 3])
def test_a_row_has_the_same_bits_whatever_ranks_its_neighbours_have(toy, num_neighbours):
    slots = Slots(toy, num_slots=4)
    row = put(slots, weights(toy, 4), 4)
    x, t = inputs(4)
    with slots.bind([row, None, None, None]):
        alone = toy(x, t)[0]
    others = [put(slots, weights(toy, rank), rank) for rank in (8, 32, 100)][:num_neighbours]
    x[1:], t[1:] = torch.randn_like(x[1:]), torch.randn_like(t[1:])
    with slots.bind([row, *others, *[None] * (3 - num_neighbours)]):
        assert torch.equal(toy(x, t)[0], alone)


@pytest.mark.parametrize(("rank", "side", "stride"), [(16, 16, 1), (8, 24, 2), (8, 12, 1), (64, 16, 1)])
def test_a_row_alone_has_the_bits_of_the_same_row_among_others(rank, side, stride):
    """Of a convolution's delta: what the base makes of it, zero here, is another question (`onednn`)."""
    alone = nn.Sequential(nn.Conv2d(64, 64, 3, stride=stride, padding=1)).requires_grad_(False)
    nn.init.zeros_(alone[0].weight)
    nn.init.zeros_(alone[0].bias)
    slots = Slots(alone, 2, 64)
    row = put(slots, {"0": LayerWeights(torch.randn(rank, 64, 3, 3), torch.randn(64, rank))}, rank)
    x_3CHW = torch.randn(3, 64, side, side)
    with slots.bind([row] * 3):
        among = alone(x_3CHW)[:1]
    with slots.bind([row]):
        assert torch.equal(alone(x_3CHW[:1]), among)


@pytest.mark.parametrize("num", [1, 3])
def test_layers_that_are_computed_otherwise_are_adapted_alike(num):
    """A 1x1 convolution that makes tokens, one that takes them, and a 3x3 one that doubles what it sees."""
    base = Pictures().eval().requires_grad_(False)
    layers = weights(base, 4, "seen.proj_in", "seen.proj_out", "point", "up.conv")
    x = torch.randn(num, 16, 6, 4)
    plain = merged(base, layers, 0.5)(x)
    use_onednn(base)
    use_blocks(base)
    slots = Slots(base, 2)
    row = put(slots, layers, 4, 0.5)
    with torch.inference_mode(), slots.bind([row] * num):
        torch.testing.assert_close(base(x), plain, rtol=1e-3, atol=1e-3)


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen = Transformer2DModel(2, 8, in_channels=16, norm_num_groups=4, cross_attention_dim=8)
        self.point, self.up = nn.Conv2d(16, 8, 1), Upsample2D(8, use_conv=True)
        self.register_buffer("text", torch.randn(1, 3, 8))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.seen(x, encoder_hidden_states=self.text.expand(len(x), -1, -1), return_dict=False)[0]
        doubled: Tensor = self.up(self.point(seen))
        return doubled


def test_what_was_gathered_for_a_slot_is_not_used_for_its_next_adapter(toy):
    """Rows keep what they gathered from step to step; the next adapter of the same slot must not be drawn with it."""
    slots = Slots(toy, num_slots=1)
    x, t = inputs(1)
    old = put(slots, weights(toy, 4), 4)
    for _ in range(2):
        with slots.bind([old]):
            toy(x, t)
    slots.release(old.slot)
    layers = weights(toy, 4)
    new = put(slots, layers, 4)
    assert new.slot == old.slot
    with slots.bind([new]):
        torch.testing.assert_close(toy(x, t), merged(toy, layers, 1.0)(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_base_forgets_slots_that_nobody_has(toy):
    slots = Slots(toy, num_slots=1)
    put(slots, weights(toy, 4), 4)
    assert toy.mix._forward_hooks
    del slots
    gc.collect()
    assert not any(module._forward_hooks for module in toy.modules())


# --- compiled passes --------------------------------------------------------------------------------------------


class Graphs:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.num = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.num += 1
        return graph.forward


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


def compiled(toy: nn.Module, graphs: Graphs) -> Any:
    return torch.compile(toy, fullgraph=True, dynamic=False, backend=graphs)


@pytest.mark.slow
def test_brands_ranks_scales_and_weights_compile_nothing_again(toy, graphs):
    """Two rank classes in use; any rows, any scales, slots written anew between passes: one graph, right pictures."""
    chance = random.Random(0)
    slots, model = Slots(toy, num_slots=4, max_rows=6), compiled(toy, graphs)
    adapters = [(weights(toy, rank), rank) for rank in (2, 8, 9, 16)]
    resident = [(put(slots, *adapter), adapter[0]) for adapter in adapters]
    x, t = inputs(6)
    for _ in range(20):
        place = chance.randrange(4)
        slots.release(resident[place][0].slot)
        layers, rank = chance.choice(adapters)
        resident[place] = put(slots, layers, rank), layers
        chosen = [chance.choice(resident) for _ in range(3)]
        rows = [RowAdapter(row.slot, row.version, chance.uniform(-1, 2)) for row, _ in chosen]
        with slots.bind(rows):
            drawn = model(x, t)
        for b, (row, (_, used)) in enumerate(zip(rows * 2, chosen * 2, strict=True)):
            torch.testing.assert_close(drawn[b], merged(toy, used, row.scale)(x, t)[b], rtol=1e-3, atol=1e-3)
    assert graphs.num == 1


def test_a_compiled_pass_of_base_rows_alone_is_the_base(toy, graphs):
    slots, model = Slots(toy, num_slots=1, max_rows=4), compiled(toy, graphs)
    put(slots, weights(toy, 4), 4)
    x, t = inputs(4)
    with slots.bind([None] * 4):
        torch.testing.assert_close(model(x, t), toy(x, t), rtol=0, atol=0)


def test_layers_and_classes_that_were_used_once_stay_in_the_graph(toy, graphs):
    slots, model = Slots(toy, num_slots=2, max_rows=2), compiled(toy, graphs)
    for rank in (8, 16):
        slots.release(put(slots, weights(toy, rank), rank).slot)
    x, t = inputs(2)
    with slots.bind([None, None]):
        model(x, t)
    layers = weights(toy, 16)
    row = put(slots, layers, 16)
    with slots.bind([row, None]):
        torch.testing.assert_close(model(x, t)[0], merged(toy, layers, 1.0)(x, t)[0], rtol=1e-4, atol=1e-4)
    assert graphs.num == 1


def test_compiled_passes_read_the_same_tensors_for_ever(toy):
    """CUDA graphs keep addresses: brands come and go, what a pass reads stays where it is."""
    slots = Slots(toy, num_slots=2, max_rows=4)

    def addresses() -> list[int]:
        group = slots._groups[8]
        stacks = [tensor for stack in group.stacks.values() for tensor in (stack.A, stack.B)]
        return [tensor.data_ptr() for tensor in (*stacks, group.index_M, slots._scale_M11)]

    row = put(slots, weights(toy, 4), 4)
    before = addresses()
    slots.release(row.slot)
    with slots.bind([put(slots, weights(toy, 8), 8)]):
        assert addresses() == before
