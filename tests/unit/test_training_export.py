"""The published file: diffusers reads it, its metadata is right, and it was validated."""

import json

import pytest
import safetensors.torch
import torch

from onbrand.errors import TrainingFailed
from onbrand.families import lora
from onbrand.families.lora_kohya import kohya_file
from onbrand.safetensors_header import must_be_plain_safetensors
from onbrand.training.export import content_hash, export, must_be_same_tensors
from tests.unit.training_bases import FAMILIES, base_of, small_plan, small_trainer, trained


def exported(name="sd15", **options):
    trainer = trained(small_trainer(name, plan=small_plan(name, targets="all", **options)), until=3)
    with trainer.averaged():
        proved = export(trainer.family, base_of(name), trainer.plan, trainer.adapter(), "photo of acme logo", "a title")
    return trainer, proved


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_plain_diffusers_loads_the_file_and_draws_the_same_picture(name):
    trainer, proved = exported(name)
    assert proved.difference <= 1e-4
    tensors = must_be_plain_safetensors(proved.data).tensors
    assert set(tensors) == {f"{trainer.family.spec.component}.{key}" for key in trainer.adapter()}


@pytest.mark.slow
def test_the_header_tells_rank_and_alpha_and_what_it_is_for():
    trainer, proved = exported(trigger_word="zorblax")
    header = must_be_plain_safetensors(proved.data).metadata
    config = json.loads(header["lora_adapter_metadata"])
    assert config["unet.r"] == config["unet.lora_alpha"] == trainer.plan.rank
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["modelspec.trigger_phrase"] == "zorblax"
    assert header["modelspec.hash_sha256"] == f"0x{content_hash(trainer.adapter())}"


@pytest.mark.slow
def test_the_header_holds_no_caption_tag_count_or_file_name():
    _, proved = exported()
    header = must_be_plain_safetensors(proved.data).metadata
    assert "ss_tag_frequency" not in header
    assert "photo of acme logo" not in json.dumps(header)
    assert "asset-" not in json.dumps(header)


@pytest.mark.slow
def test_a_file_that_loads_differently_is_not_published():
    trainer, _ = exported()
    state = lora.extract(trainer.family.denoiser)
    key = next(iter(state))
    state[key] = state[key] + 1
    with pytest.raises(TrainingFailed, match="1 of"):
        must_be_same_tensors(trainer.family.denoiser, state)


@pytest.mark.slow
def test_a_file_that_kohyas_form_would_tell_otherwise_is_not_published(monkeypatch):
    def with_another_first_tensor(data, family):
        tensors = safetensors.torch.load(b"".join(kohya_file(data, family)))
        first = next(key for key in sorted(tensors) if "lora_up" in key)
        yield safetensors.torch.save(tensors | {first: tensors[first] + 1})

    monkeypatch.setattr("onbrand.training.export.kohya_file", with_another_first_tensor)
    with pytest.raises(TrainingFailed, match="1 of"):
        exported()


@pytest.mark.slow
def test_a_picture_that_differs_is_not_published():
    trainer = trained(small_trainer(plan=small_plan(targets="all")), until=2)
    state = {key: value + 0.05 for key, value in trainer.adapter().items()}
    with trainer.averaged(), pytest.raises(TrainingFailed, match="another picture"):
        export(trainer.family, base_of("sd15"), trainer.plan, state, "photo of acme logo", "a title")


def test_the_content_hash_is_of_tensors_only():
    state = {"b": torch.ones(2), "a": torch.zeros(3)}
    assert content_hash(state) == content_hash(dict(reversed(state.items())))
    assert content_hash(state) != content_hash({"b": torch.ones(2), "a": torch.ones(3)})
