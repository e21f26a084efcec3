"""What oneDNN computes of a base's layers is what they compute."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from onbrand.engine.onednn import use_onednn


class Layers(nn.Module):
    """Linear layers, convolutions, and a doubling."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(64, 96), nn.Linear(96, 32, bias=False)
        self.conv, self.down = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 24, 3, stride=2, padding=1, bias=False)
        self.up = Upsample2D(24, use_conv=True, out_channels=16)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        tokens = self.narrow(torch.relu(self.wide(x.permute(0, 2, 3, 1))))
        return self.up(self.down(self.conv(tokens.permute(0, 3, 1, 2))), size)


@pytest.fixture
def layers() -> Layers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Layers().requires_grad_(False)


@pytest.mark.parametrize("shape", [(3, 64, 8, 8), (1, 64, 6, 10)])
def test_onednn_computes_what_the_layers_do(layers, shape):
    x = torch.randn(shape)
    expected = layers(x)
    use_onednn(layers)
    with torch.inference_mode():
        torch.testing.assert_close(layers(x), expected, rtol=1e-5, atol=1e-6)
        strided = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(layers(strided), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(7, 9), (8, 9), (8, 10)])
def test_a_picture_that_was_halved_to_an_odd_size_is_computed_as_it_is(layers, size):
    x = torch.randn(2, 64, *size)
    expected = layers(x, size)
    use_onednn(layers)
    with torch.inference_mode():
        torch.testing.assert_close(layers(x, size), expected, rtol=1e-5, atol=1e-6)


def test_a_row_is_computed_alike_whatever_the_others_are(layers):
    use_onednn(layers)
    x = torch.randn(4, 64, 8, 8)
    others = torch.cat([x[:1], torch.randn(3, 64, 8, 8)])
    with torch.inference_mode():
        assert torch.equal(layers(x)[0], layers(others)[0])


def test_onednn_takes_part_only_where_nothing_is_learned(layers):
    use_onednn(layers)
    x = torch.randn(2, 64, 4, 4, requires_grad=True)
    layers(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", ["wide", "conv", "up.conv"])
def test_weights_changed_in_place_are_what_onednn_reads(layers, name):
    use_onednn(layers)
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
    use_onednn(layers)
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)  # PyTorch's own choice would be im2col
    with torch.inference_mode():
        torch.testing.assert_close(layers(x), expected, rtol=1e-5, atol=1e-6)


def _plain(layers: Layers) -> Layers:
    """The same weights in layers that oneDNN was not asked to compute."""
    plain = Layers()
    plain.load_state_dict(layers.state_dict())
    return plain.requires_grad_(False)


def test_other_precisions_are_left_alone(layers):
    use_onednn(layers.to(torch.bfloat16))
    assert all("forward" not in vars(layer) for layer in layers.modules())
