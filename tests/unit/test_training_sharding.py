"""Two processes that share a base train the same adapter as one process with the whole base."""

import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from tests.unit.sharded_worker import own_numbers, results_of, trainer_of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "flux"] if "ONBRAND_TEST_REAL_SIZES" in os.environ else ["flux"])
def test_two_workers_with_half_a_base_each_come_to_what_one_with_all_of_it_does(name, tmp_path):
    command = [sys.executable, "-m", "tests.unit.sharded_worker", name]
    workers = [subprocess.Popen([*command, str(rank), "2", str(tmp_path)]) for rank in range(2)]
    trainer = trainer_of(name)
    whole = results_of(trainer)
    try:
        assert [worker.wait(120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    halves = [safetensors.torch.load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]
    for half in halves:
        for key, value in whole.items():
            assert torch.allclose(half[key], value, atol=1e-5), key
    shares = [int(half["own_numbers"]) / own_numbers(trainer) for half in halves]
    assert sum(shares) == pytest.approx(1, abs=0.05)
    assert max(shares) < 0.6
