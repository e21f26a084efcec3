"""The full-size denoisers of `benchmarks.engine --real-shapes`: the right architectures, and a path that runs."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import engine
from benchmarks.real_shapes import ARCHITECTURES, measure


@pytest.mark.parametrize(("family", "num"), [("sd15", 859_520_964), ("sdxl", 2_567_463_684), ("flux", 11_901_408_320)])
def test_the_architectures_have_the_published_numbers_of_parameters(family, num):
    with torch.device("meta"):
        denoiser = ARCHITECTURES[family].build()
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == num


SMALL = {
    "sdxl": {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 1],
        "cross_attention_dim": 32,
        "layers_per_block": 1,
    },
    "flux": {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 14, 14),
    },
}


@pytest.mark.filterwarnings(
    "ignore:Already found a `peft_config` attribute:UserWarning", "ignore:.*torch.jit.script_method:DeprecationWarning"
)
@pytest.mark.parametrize("family", SMALL)
def test_the_path_of_real_shapes_draws_what_diffusers_draws(family):
    """On a CPU with small configurations: every row of the compiled pass is the row that `set_adapters` gives alone."""
    whole = ARCHITECTURES[family]
    small = replace(whole, config={**whole.config, **SMALL[family]})
    torch._dynamo.reset()
    lines = measure(
        small, 64, device="cpu", dtype=torch.float32, num_brands=2, rank=4, repeats=1, backend="eager", all_steps=(1, 2)
    )
    torch._dynamo.reset()
    assert [line["steps"] for line in lines] == [1, 2]
    assert all(line["relative_error"] < 1e-5 for line in lines)
    assert {"mixed_over_single", "over_set_adapters", "switch_ms"} <= set(lines[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would draw")
def test_real_shapes_without_a_gpu_end_with_a_clear_error(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["engine", "--real-shapes", "--json"])
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        engine.main()
