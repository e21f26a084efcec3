"""Our blocks compute what diffusers' blocks compute, mostly bit by bit. Keys and values of a text are computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from onbrand.engine.cpu import unet_blocks
from onbrand.engine.cpu.unet_blocks import Passes, TextKVCache, use_blocks


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def residual(out: int = 32, **more: Any) -> ResnetBlock2D:
    return ResnetBlock2D(**{"in_channels": 32, "out_channels": out, "temb_channels": 16, "groups": 8, **more})


def attention(**more: Any) -> Attention:
    return Attention(query_dim=32, heads=4, dim_head=8, **more)


def transformer(**more: Any) -> BasicTransformerBlock:
    return BasicTransformerBlock(32, num_attention_heads=4, attention_head_dim=8, **more)


class OfPictures(nn.Module):
    """A picture's transformer; only the picture comes out."""

    def __init__(self, is_linear: bool) -> None:
        super().__init__()
        self.transformer = Transformer2DModel(
            4, 8, in_channels=32, norm_num_groups=8, cross_attention_dim=24, use_linear_projection=is_linear
        )

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        picture: Tensor = self.transformer(x, encoder_hidden_states=text, return_dict=False)[0]
        return picture


def crossing() -> nn.Module:
    """A denoiser that attends to itself and to a text of 24 numbers a token."""
    return ready(nn.ModuleDict({"own": attention(), "text": attention(cross_attention_dim=24)}))


def ready(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


Given = Callable[[], tuple[Any, ...]]


def pictures() -> tuple[Any, ...]:
    return (torch.randn(3, 32, 6, 10),)


def timed() -> tuple[Any, ...]:
    return torch.randn(3, 32, 6, 10), torch.randn(3, 16)


def tokens() -> tuple[Any, ...]:
    return (torch.randn(3, 20, 32),)


def tokens_and_text() -> tuple[Any, ...]:
    return torch.randn(3, 20, 32), torch.randn(3, 7, 24)


def many_tokens() -> tuple[Any, ...]:
    return (torch.randn(3, 65, 32),)


def tokens_without_mask_and_text() -> tuple[Any, ...]:
    x, text = tokens_and_text()
    return x, None, text


def pictures_and_text() -> tuple[Any, ...]:
    return torch.randn(3, 32, 6, 10), torch.randn(3, 7, 24)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], Given]] = {
    "residual": (residual, timed),
    "residual to other channels": (lambda: residual(48), timed),
    "residual without time": (lambda: residual(temb_channels=None), lambda: (*pictures(), None)),
    "doubling": (lambda: Upsample2D(32, use_conv=True, out_channels=16), pictures),
    "doubling to a size": (lambda: Upsample2D(32, use_conv=True), lambda: (*pictures(), (11, 19))),
    "attention of many tokens": (attention, many_tokens),
    "attention of few tokens": (attention, tokens),
    "attention to text": (lambda: attention(cross_attention_dim=24), tokens_and_text),
    "gated": (lambda: GEGLU(32, 64), tokens),
    "transformer": (lambda: transformer(cross_attention_dim=24), tokens_without_mask_and_text),
    "transformer of pictures": (lambda: OfPictures(is_linear=False), pictures_and_text),
    "transformer of pictures with linear layers": (lambda: OfPictures(is_linear=True), pictures_and_text),
}
ROUNDED = [
    name for name in BLOCKS if name.startswith(("attention", "transformer")) and name != "attention of many tokens"
]
OTHERS: dict[str, tuple[Callable[[], nn.Module], Given]] = {
    "divided residual": (lambda: residual(output_scale_factor=2.0), timed),
    "scaled and shifted residual": (lambda: residual(time_embedding_norm="scale_shift"), timed),
    "halving residual": (lambda: residual(down=True), timed),
    "divided attention": (lambda: attention(rescale_output_factor=2.0), tokens),
    "attention with a norm": (lambda: attention(qk_norm="layer_norm"), tokens),
    "attention of pictures": (lambda: attention(residual_connection=True, norm_num_groups=8), pictures),
    "doubling alone": (lambda: Upsample2D(32), pictures),
    "transformer without text": (transformer, many_tokens),
}


@pytest.mark.parametrize("name", [*BLOCKS, *OTHERS])
def test_a_block_computes_what_it_did(name):
    make, given = (BLOCKS | OTHERS)[name]
    block, inputs = ready(make()), given()
    with torch.inference_mode():
        expected = block(*inputs)
        use_blocks(block)
        if name in ROUNDED:
            torch.testing.assert_close(block(*inputs), expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(block(*inputs), expected)


@pytest.mark.parametrize("name", ROUNDED)
def test_a_row_of_a_block_has_the_same_bits_whatever_the_others_are(name):
    make, given = BLOCKS[name]
    block, inputs, others = ready(make()), given(), given()
    use_blocks(block)
    others = tuple(
        other if one is None else torch.cat([one[:1], other[1:]]) for one, other in zip(inputs, others, strict=True)
    )
    turned = tuple(one if one is None else one.roll(1, 0) for one in others)
    with torch.inference_mode():
        assert torch.equal(block(*inputs)[0], block(*others)[0])
        assert torch.equal(block(*others)[0], block(*turned)[1])


@pytest.mark.parametrize("name", BLOCKS)
def test_what_a_block_is_given_is_left_as_it_was(name):
    make, given = BLOCKS[name]
    block, inputs = ready(make()), given()
    before = deepcopy(inputs)
    use_blocks(block)
    with torch.inference_mode():
        block(*inputs)
    changed = [
        one for one, other in zip(inputs, before, strict=True) if isinstance(one, Tensor) and (one != other).any()
    ]
    assert changed == []


@pytest.mark.parametrize("name", OTHERS)
def test_blocks_of_other_kinds_are_left_alone(name):
    block = ready(OTHERS[name][0]())
    use_blocks(block)
    assert "forward" not in vars(block)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_learn_as_they_did(name):
    make, given = BLOCKS[name]
    block, inputs = make(), given()
    use_blocks(block)
    inputs[0].requires_grad_()
    block(*inputs).sum().backward()
    assert inputs[0].grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_compiled_whole_as_they_were(name):
    make, given = BLOCKS[name]
    block, inputs = ready(make()), given()
    torch._dynamo.reset()
    with torch.inference_mode():
        expected = block(*inputs)
        use_blocks(block)
        Passes(block, [block])
        assert torch.equal(torch.compile(block, fullgraph=True, backend="eager")(*inputs), expected)


def test_a_mask_is_seen():
    block, (x,) = ready(attention()), tokens()
    mask = torch.zeros(3, 1, 20)
    mask[:, :, 10:] = -torch.inf
    with torch.inference_mode():
        expected = block(x, attention_mask=mask)
        use_blocks(block)
        assert torch.equal(block(x, attention_mask=mask), expected)
        assert not torch.equal(block(x), expected)


# --- keys and values of text ------------------------------------------------------------------------------------


class Counted:
    """Counts how often a layer was computed."""

    def __init__(self, layer: nn.Module) -> None:
        self.num = 0
        layer.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.num += 1


def test_keys_of_a_text_that_stays_are_computed_once():
    model, kept = crossing(), TextKVCache()
    use_blocks(model)
    passes, (x, text) = Passes(model, []), tokens_and_text()
    keys, values, own = (Counted(layer) for layer in (model.text.to_k, model.text.to_v, model.own.to_k))
    with torch.inference_mode():
        for _ in range(3):
            expected = model.text(x, text)
            with passes.of(kept, 1):
                assert torch.equal(model.text(x, text), expected)
                model.own(x)
    assert (keys.num, values.num, own.num) == (3 + 1, 3 + 1, 3)


def test_another_text_has_other_keys_though_its_place_is_kept():
    model, kept = crossing(), TextKVCache()
    use_blocks(model)
    passes, (x, text), other = Passes(model, []), tokens_and_text(), torch.randn(3, 7, 24)
    with torch.inference_mode():
        expected = model.text(x, other)
        with passes.of(kept, 1):
            model.text(x, text)
            assert torch.equal(model.text(x, other), expected)


def test_keys_are_kept_up_to_a_number_of_bytes(monkeypatch):
    monkeypatch.setattr(unet_blocks, "_BYTES_KEPT", 2 * 3 * 7 * 32 * 4)
    model, kept = ready(nn.ModuleList([attention(cross_attention_dim=24) for _ in range(2)])), TextKVCache()
    use_blocks(model)
    passes, (x, text) = Passes(model, []), tokens_and_text()
    first, second = (Counted(layer.to_k) for layer in model)
    with torch.inference_mode(), passes.of(kept, 1):
        for _ in range(2):
            for layer in model:
                layer(x, text)
    assert (first.num, second.num) == (1, 2)


def test_nothing_is_kept_outside_of_a_pass():
    model = crossing()
    use_blocks(model)
    passes, (x, text) = Passes(model, []), tokens_and_text()
    keys = Counted(model.text.to_k)

    def fail() -> None:
        with passes.of(TextKVCache(), 1):
            model.text(x, text)
            raise RuntimeError("a pass fails")

    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="a pass fails"):
            fail()
        model.text(x, text)
    assert keys.num == 2


# --- both branches of guidance ----------------------------------------------------------------------------------


class Halves(nn.Module):
    """A part that tells a picture and what it went through, as the blocks of a UNet do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.rows: list[int] = []

    def forward(self, x: Tensor, temb: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        self.rows.append(len(x))
        y = self.conv(x) + temb[:, :, None, None]
        return y, (x, y)


def test_what_both_branches_share_is_computed_for_the_rows_of_one():
    part = ready(Halves())
    passes, x, temb = Passes(part, [part]), torch.randn(3, 4, 8, 8), torch.randn(3, 6)
    doubled = x.repeat(2, 1, 1, 1), temb.repeat(2, 1)
    expected, (_, went) = part(*doubled)
    with passes.of(TextKVCache(), 2):
        y, (given, through) = part(doubled[0], temb=doubled[1])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(through, went)
    assert torch.equal(given, doubled[0])
    part(*doubled)
    assert part.rows == [6, 3, 6]


def test_a_part_is_shared_once_however_many_engines_use_its_base():
    part = ready(Halves())
    Passes(part, [part])
    passes = Passes(part, [part])
    with passes.of(TextKVCache(), 2):
        part(torch.randn(4, 4, 8, 8), torch.randn(4, 6))
    assert part.rows == [2]
