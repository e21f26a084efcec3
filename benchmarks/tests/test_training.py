"""Tests of the training benchmark's plain loop, a process that trains and writes as diffusers' scripts do."""

import argparse

import pytest
import safetensors.torch
import torch

from benchmarks.lib.architectures import ARCHITECTURES
from benchmarks.lib.random_base import FULL_SIZE, random_base
from benchmarks.lib.training_plain import PlainProcess
from benchmarks.training import measure, plan_of, written_pictures


@pytest.mark.slow
def test_the_plain_loop_trains_in_its_own_process_and_writes_what_diffusers_reads(tmp_path):
    chosen = argparse.Namespace(family="flux", steps=2, batch=None, seed=0, schedule=None, base=None, resolution=None)
    told = argparse.Namespace(**vars(chosen), device="cpu", threads=1, clock="cpu")
    plain = PlainProcess(told, plan_of(chosen), written_pictures(tmp_path / "pictures", 64))
    plain.turn()
    spent = plain.finish(tmp_path / "out")
    assert set(spent) == {"read", "encode_pictures", "encode_captions", "train"}
    assert all(seconds > 0 for seconds in spent.values())
    [file] = (tmp_path / "out").glob("*.safetensors")
    ups = {name: up for name, up in safetensors.torch.load_file(file).items() if name.endswith(".lora_B.weight")}
    assert len(ups) == 2 * 4 + 4 * 3
    assert all(name.startswith("transformer.") and up.any() for name, up in ups.items())


@pytest.mark.slow
def test_a_base_with_random_weights_of_any_size_is_trained_as_others_are(tmp_path):
    small = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1}
    sizes = {
        "text_encoder": {"hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 77},
        "vae": FULL_SIZE["sd15"]["vae"] | small,
    }
    denoiser = ARCHITECTURES["sd15"].config | {"cross_attention_dim": 32, "attention_head_dim": 2} | small
    base = random_base("sd15", tmp_path / "base", device="cpu", dtype=torch.bfloat16, sizes=sizes, denoiser=denoiser)
    chosen = argparse.Namespace(
        family="sd15", steps=2, batch=1, seed=0, schedule=None, base=base, resolution=64,
        device="cpu", threads=1, clock="cpu", side=64, script=None, real_shapes=False,
    )  # fmt: skip
    found = measure(chosen, tmp_path)
    assert (found["resolution"], found["batch"], found["base"]) == (64, 1, "base")
    assert min(found["samples_per_s_over_diffusers"], found["val_loss"], found["val_loss_diffusers"]) > 0
