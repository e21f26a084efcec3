"""Tests of `benchmarks.engine --real-shapes`: the architectures are right, and the code runs on a small base."""

from __future__ import annotations

import argparse
import sys

import pytest
import torch

from benchmarks import engine
from benchmarks.engine import of_shapes, over
from benchmarks.lib.architectures import ARCHITECTURES
from benchmarks.lib.random_base import FULL_SIZE, random_base
from benchmarks.lib.workload import share_weights
from onbrand.families.loading import load_family, load_pipeline


@pytest.mark.parametrize(("family", "num"), [("sd15", 859_520_964), ("sdxl", 2_567_463_684), ("flux", 11_901_408_320)])
def test_the_architectures_have_the_published_numbers_of_parameters(family, num):
    with torch.device("meta"):
        denoiser = ARCHITECTURES[family].build()
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == num


def test_a_ratio_is_the_median_of_what_it_was_in_each_turn():
    """One turn in which the machine stood still for one part is not the figure."""
    assert over([1.0, 2.0, 1.0, 5.0, 1.0], [3.0, 6.2, 3.1, 3.0, 9.0]) == (3.1, (3.0, 3.1))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A base that `random_base` wrote as it writes those of full size, and its family."""
    config = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}
    sizes = {
        "text_encoder": {"hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 77},
        "vae": FULL_SIZE["sd15"]["vae"] | config,
    }
    denoiser = ARCHITECTURES["sd15"].config | {
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    folder = tmp_path_factory.mktemp("bases") / "base"
    base = random_base("sd15", folder, device="cpu", dtype=torch.float32, sizes=sizes, denoiser=denoiser)
    return base, load_family("sd15", base)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_the_path_of_real_shapes_draws_what_its_peers_draw(small, monkeypatch):
    """On a CPU with a small base, plain: what is compared on a GPU is alike, and every object has its figures."""
    base, family = small
    monkeypatch.setattr(engine, "_STEPS", (1, 2))
    chosen = argparse.Namespace(
        family="sd15", brands=2, rank=4, steps=None, targets="attention", repeats=2, switches=8,
        peers=["set_adapters", "hotswap", "peft_rows"],
    )  # fmt: skip
    *lines, switches = of_shapes(chosen, family, base, sides=(64,), is_compiled=False)
    assert [(line["side"], line["steps"]) for line in lines] == [(64, 1), (64, 2)]
    assert all(line["max_error"] < 1e-4 for line in lines)
    assert {"mixed_over_single", "over_set_adapters", "over_hotswap", "over_peft_rows"} <= set(lines[0])
    assert switches["recompiles"] == 0
    assert switches["brand_switches"] >= 8
    torch._dynamo.reset()


def test_peers_on_a_gpu_compute_with_the_familys_own_weights(small):
    base, family = small
    pipeline = load_pipeline("sd15", base)
    share_weights(pipeline, family.pipeline)
    for name in ("unet", "vae", "text_encoder"):
        theirs, ours = getattr(pipeline, name), getattr(family.pipeline, name)
        assert [p.data_ptr() for p in theirs.parameters()] == [p.data_ptr() for p in ours.parameters()]
        assert theirs is not ours


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would draw")
def test_real_shapes_without_a_gpu_end_with_a_clear_error(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["engine", "--real-shapes", "--json"])
    with pytest.raises(SystemExit, match="needs a CUDA GPU"):
        engine.main()
