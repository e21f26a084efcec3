"""The faster CPU kernels compute the same values."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from onbrand.engine import compilation
from onbrand.engine.compilation import compile_passes, keep_memory


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own setting")
def test_the_c_library_takes_the_setting_that_keeps_memory():
    assert keep_memory()


@pytest.mark.slow
def test_compiling_is_undone(layers):
    calls = []
    torch._dynamo.reset()
    compile_passes(layers, lambda graph, inputs: calls.append(graph) or graph.forward)
    x = torch.randn(2, 64)
    expected = layers(x)
    assert len(calls) == 1
    layers._compiled_call_impl = None
    torch.testing.assert_close(layers(x), expected)
    assert layers._compiled_call_impl is None
    torch._dynamo.reset()


def test_a_shape_beyond_the_last_graph_is_computed_without_one(layers, monkeypatch):
    calls = []
    torch._dynamo.reset()
    monkeypatch.setattr(compilation, "_MOST_COMPILED", 2)
    compile_passes(layers, lambda graph, inputs: calls.append(graph) or graph.forward)
    inputs = [torch.randn(num, 64) for num in (1, 2, 3, 4, 1)]
    drawn = [layers(x) for x in inputs]
    layers._compiled_call_impl = None
    for x, y in zip(inputs, drawn, strict=True):
        torch.testing.assert_close(layers(x), y)
    assert len(calls) == 2
    torch._dynamo.reset()
