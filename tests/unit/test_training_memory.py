"""A run's memory is estimated before anything is loaded; a run that does not fit uses less memory or is refused."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from onbrand.errors import OutOfMemory, RanOutOfMemory
from onbrand.families.meta import MetaFamily, num_bytes
from onbrand.families.spec import SPECS, with_family_defaults
from onbrand.families.training_config import TrainingConfig
from onbrand.training.memory import estimate
from onbrand.training.memory.estimate import GB, Admission, Allowance, MemoryEstimator, admit
from onbrand.training.memory.savings import MemorySavings, savings_levels
from onbrand.training.recipes import make_plan
from tests.unit.test_training_trainer import Together
from tests.unit.training_bases import FAMILIES, base_of, fresh_family, small_plan, small_trainer, trained

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_hollow_family_has_the_size_and_the_shapes_of_the_real_one(name):
    meta, family = MetaFamily(name, base_of(name), torch.float32), fresh_family(name)
    assert num_bytes(meta.family.denoiser) == num_bytes(family.denoiser)
    assert num_bytes(meta.family.vae) == num_bytes(family.vae)
    told = family.encode_prompts(["a cat"])
    assert {key: told[key].shape[-1] for key in told.tensors} == {
        key: value.shape[-1] for key, value in meta.conditioning(1).tensors.items()
    }


@pytest.fixture(scope="module")
def estimator() -> MemoryEstimator:
    """One estimator for all tests, as an estimate takes seconds and is cached."""
    return MemoryEstimator(small_plan(prior_rows=0), base_of("sd15"), torch.float32, parked=False)


def sizes_of(estimator: MemoryEstimator) -> list[int]:
    return [estimator.estimate(way).peak for way in savings_levels(estimator.plan, large=False)]


@pytest.mark.slow
def test_fewer_rows_checkpointing_and_fewer_bits_each_take_less_memory(estimator):
    sizes = sizes_of(estimator)
    assert len(sizes) == len(set(sizes)) == 5
    assert sizes == sorted(sizes, reverse=True)


def test_the_rungs_are_in_the_order_of_what_they_cost():
    plan = small_plan(prior_rows=0, batch_size=4)
    ways = list(savings_levels(plan, large=False, num_workers=2))
    assert [(w.micro_rows, w.gradient_checkpointing, w.quantization, w.sharded) for w in ways] == [
        (2, False, "none", False),
        (1, False, "none", False),
        (1, True, "none", False),
        (1, True, "none", True),
        (1, True, "int8", False),
        (1, True, "nf4", False),
    ]


def test_what_the_owner_chose_stays():
    ways = list(savings_levels(small_plan(quantization="nf4", gradient_checkpointing=True), large=False))
    assert {(way.gradient_checkpointing, way.quantization) for way in ways} == {(True, "nf4")}
    assert {way.quantization for way in savings_levels(small_plan(quantization="none"), large=False)} == {"none"}


@pytest.fixture
def admitted(estimator, monkeypatch) -> Callable[..., Admission]:
    monkeypatch.setattr(estimate, "MemoryEstimator", lambda *_: estimator)

    def admitted(gb: float | None, steps_down: int = 0) -> Admission:
        allowance = Allowance(gb, steps_down)
        return admit(estimator.plan, base_of("sd15"), torch.float32, allowance, CPU, allowance.budget(CPU))

    return admitted


def test_without_a_bound_a_cpu_does_what_is_wished(admitted):
    assert admitted(None).savings == MemorySavings(2, False, "none")
    assert admitted(None).facts() is None


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_admitted_as_far_down_as_it_must(admitted, estimator):
    for place, size in enumerate(sizes_of(estimator)):
        found = admitted((size + 1) / GB)
        assert (found.steps_down, found.needed) == (place, size)


def test_a_run_that_never_fits_is_refused_with_what_it_needs_and_what_to_do(admitted):
    with pytest.raises(OutOfMemory, match=r"needs 0\.\d GB .* may take 0\.0 GB; lower resolution"):
        admitted(0.001)


def test_after_running_out_of_memory_it_is_one_step_lower_until_none_is_left(admitted):
    assert admitted(None, 1).savings == MemorySavings(1, False, "none")
    assert admitted(None, 1).facts() == {"way": "1 row at a time", "steps_down": 1}
    with pytest.raises(OutOfMemory, match="as thriftily as it can be"):
        admitted(None, 9)


def real_base(folder: Path) -> Path:
    """The configuration of FLUX.1 without weights. diffusers' defaults have its sizes."""
    index = {
        "_class_name": "FluxPipeline",
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    vae = {
        "latent_channels": 16,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.1159,
        "scaling_factor": 0.3611,
    }
    parts = {"vae": vae, "transformer": {"guidance_embeds": True}, "scheduler": {}}
    for name, config in parts.items():
        (folder / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name / file).write_text(json.dumps(config))
    transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    ).save_pretrained(folder / "text_encoder")
    transformers.T5Config(
        d_model=4096, d_ff=10240, d_kv=64, num_heads=64, num_layers=24, vocab_size=32128, feed_forward_proj="gated-gelu"
    ).save_pretrained(folder / "text_encoder_2")
    return folder


@pytest.mark.skipif(
    "ONBRAND_TEST_REAL_SIZES" not in os.environ, reason="takes half a minute; set ONBRAND_TEST_REAL_SIZES=1"
)
def test_flux_at_rank_16_needs_what_others_measured(tmp_path):
    """30 GB in bfloat16 and 18 in int8 are what users of the known trainers see at 1024 pixels, one row, rank 16."""
    plan = make_plan(SPECS["flux"], with_family_defaults("flux", {}), TrainingConfig(resolution=1024), "acme")
    estimator = MemoryEstimator(plan, real_base(tmp_path), torch.bfloat16, parked=True)
    assert estimator.is_large
    whole, int8, nf4 = (
        estimator.estimate(MemorySavings(1, True, how)).training / GB for how in ("none", "int8", "nf4")
    )
    assert whole == pytest.approx(30, abs=3)
    assert int8 == pytest.approx(18, abs=2)
    assert 9 < nf4 < 13


@pytest.mark.slow
def test_fewer_rows_at_once_change_the_weights_by_rounding_only():
    plan = small_plan(prior_rows=2)
    whole = trained(small_trainer(plan=plan), until=3)
    rows = small_trainer(plan=plan)
    rows.savings = replace(rows.savings, micro_rows=1)
    for one, other in zip(whole.weights, trained(rows, until=3).weights, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def on_all(trainers, work) -> None:
    with ThreadPoolExecutor(len(trainers)) as pool:
        list(pool.map(work, trainers, timeout=60))


@pytest.mark.slow
def test_when_one_worker_runs_out_of_memory_all_know_in_the_same_step_and_nothing_has_changed(monkeypatch):
    group = Together(2)
    pair = [small_trainer(collectives=group.worker(rank)) for rank in range(2)]
    on_all(pair, lambda trainer: trained(trainer, until=2))
    before = [[weight.detach().clone() for weight in trainer.weights] for trainer in pair]

    def starved(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pair[1], "_losses", starved)
    caught = []

    def step(trainer):
        try:
            trainer.train_step()
        except RanOutOfMemory as problem:
            caught.append(problem.fields["step"])

    on_all(pair, step)
    assert caught == [3, 3]
    for trainer, weights in zip(pair, before, strict=True):
        assert trainer.step == 2
        assert all(torch.equal(a, b) for a, b in zip(trainer.weights, weights, strict=True))


def test_another_error_in_a_step_is_not_taken_for_lack_of_memory(monkeypatch):
    trainer = small_trainer()

    def broken(*_):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(trainer, "_losses", broken)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        trainer.train_step()
