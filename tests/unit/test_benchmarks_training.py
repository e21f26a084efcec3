"""The training benchmark's other side: a loop of its own process, which trains and writes as diffusers' scripts do."""

import argparse

import safetensors.torch

from benchmarks.training import plan_of, written_pictures
from benchmarks.training_plain import PlainProcess


def test_the_plain_loop_trains_in_its_own_process_and_writes_what_diffusers_reads(tmp_path):
    chosen = argparse.Namespace(family="flux", steps=2, batch=None, seed=0, schedule=None)
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
