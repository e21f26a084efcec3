"""The oneDNN version of a base's layers computes the same values."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from onbrand.engine.cpu.onednn import use_onednn
from onbrand.engine.cpu.unet_blocks import use_blocks


class Layers(nn.Module):
    """Linear layers, convolutions, a doubling, and a transformer of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(64, 96), nn.Linear(96, 32, bias=False)
        self.conv, self.down = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 24, 3, stride=2, padding=1, bias=False)
        self.point, self.unbiased = nn.Conv2d(24, 24, 1), nn.Conv2d(24, 24, 1, bias=False)
        self.up = Upsample2D(24, use_conv=True, out_channels=16)
        self.seen = Transformer2DModel(2, 8, in_channels=16, norm_num_groups=4, cross_attention_dim=8)
        self.register_buffer("text", torch.randn(1, 3, 8))

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        tokens = self.narrow(torch.relu(self.wide(x.permute(0, 2, 3, 1))))
        small = self.unbiased(self.point(self.down(self.conv(tokens.permute(0, 3, 1, 2)))))
        text = self.text.expand(len(x), -1, -1)
        return self.seen(self.up(small, size), encoder_hidden_states=text, return_dict=False)[0]


def use(layers: nn.Module) -> None:
    """Convert layers as the engine does."""
    use_onednn(layers)
    use_blocks(layers.eval())


@pytest.fixture
def layers() -> Layers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Layers().requires_grad_(False)


@pytest.mark.parametrize("shape", [(3, 64, 8, 8), (1, 64, 6, 10), (2, 64, 40, 36)])
def test_onednn_computes_what_the_layers_do(layers, shape):
    x = torch.randn(shape)
    expected = layers(x)
    use(layers)
    with torch.inference_mode():
        torch.testing.assert_close(layers(x), expected, rtol=1e-5, atol=1e-6)
        strided = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(layers(strided), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(7, 9), (8, 9), (8, 10)])
def test_a_picture_that_was_halved_to_an_odd_size_is_computed_as_it_is(layers, size):
    x = torch.randn(2, 64, *size)
    expected = layers(x, size)
    use(layers)
    with torch.inference_mode():
        torch.testing.assert_close(layers(x, size), expected, rtol=1e-5, atol=1e-6)


def test_a_row_is_computed_alike_whatever_the_others_are(layers):
    use(layers)
    x = torch.randn(4, 64, 8, 8)
    others = torch.cat([x[:1], torch.randn(3, 64, 8, 8)])
    with torch.inference_mode():
        assert torch.equal(layers(x)[0], layers(others)[0])


def test_onednn_takes_part_only_where_nothing_is_learned(layers):
    use(layers)
    x = torch.randn(2, 64, 4, 4, requires_grad=True)
    layers(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", ["wide", "conv", "point", "up.conv", "seen.proj_in", "seen.proj_out"])
def test_weights_changed_in_place_are_what_onednn_reads(layers, name):
    use(layers)
    layer, x = layers.get_submodule(name), torch.randn(2, 64, 4, 4)
    with torch.inference_mode():
        before = layers(x)
    layer.weight.zero_()
    expected = Layers.forward(_plain(layers), x)
    with torch.inference_mode():
        after = layers(x)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)


def test_one_small_picture_is_convolved_by_onednn(layers, monkeypatch):
    x = torch.randn(1, 64, 8, 8)
    expected = layers(x)
    use(layers)
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)  # PyTorch's own choice would be im2col
    with torch.inference_mode():
        torch.testing.assert_close(layers(x), expected, rtol=1e-5, atol=1e-6)


def _plain(layers: Layers) -> Layers:
    """The same weights in layers without oneDNN."""
    plain = Layers()
    plain.load_state_dict(layers.state_dict())
    return plain.requires_grad_(False)


def test_other_precisions_are_left_alone(layers):
    use_onednn(layers.to(torch.bfloat16))
    assert all("forward" not in vars(layer) for layer in layers.modules())
