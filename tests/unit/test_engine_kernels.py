"""What makes passes faster on a CPU computes the same."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from onbrand.engine.kernels import compile_passes, keep_memory, uncompile_passes, use_onednn


class Layers(nn.Module):
    """Two linear layers, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(64, 96), nn.Linear(96, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.relu(self.wide(x)))


@pytest.fixture
def layers() -> Layers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Layers().requires_grad_(False)


def test_onednn_computes_what_the_layers_do(layers):
    x = torch.randn(3, 10, 64)
    expected = layers(x)
    use_onednn(layers)
    with torch.inference_mode():
        torch.testing.assert_close(layers(x), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layers(x.transpose(0, 1)), expected.transpose(0, 1), rtol=1e-5, atol=1e-6)


def test_onednn_takes_part_only_where_nothing_is_learned(layers):
    use_onednn(layers)
    x = torch.randn(2, 64, requires_grad=True)
    layers(x).sum().backward()
    assert x.grad is not None


def test_weights_changed_in_place_are_what_onednn_reads(layers):
    use_onednn(layers)
    x = torch.randn(2, 64)
    layers.wide.weight.zero_()
    with torch.inference_mode():
        torch.testing.assert_close(layers.wide(x), layers.wide.bias.expand(2, -1))


def test_other_precisions_are_left_alone(layers):
    use_onednn(layers.to(torch.bfloat16))
    assert all("forward" not in vars(layer) for layer in layers.children())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own setting")
def test_the_c_library_takes_the_setting_that_keeps_memory():
    assert keep_memory()


def test_compiling_is_undone(layers):
    calls = []
    torch._dynamo.reset()
    compile_passes(layers, lambda graph, inputs: calls.append(graph) or graph.forward)
    x = torch.randn(2, 64)
    expected = layers(x)
    assert len(calls) == 1
    uncompile_passes(layers)
    torch.testing.assert_close(layers(x), expected)
    assert layers._compiled_call_impl is None
    torch._dynamo.reset()
