"""A row of a mixed-brand batch equals the image that diffusers draws alone with `load_lora_weights`."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.engine import Engine
from onbrand.families.lora import LORA_METADATA, read_adapter
from tests.numerics.drawing import PROMPTS, largest_difference, pictures, request, run
from tools.harness.tiny_families import family_of

TOLERANCE = 1e-4
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")


def arguments(family, guidance, number):
    """The same request as arguments of diffusers."""
    said = {"prompt": PROMPTS[number], "negative_prompt": "blurry", "height": 64, "width": 64}
    if family.spec.name == "flux":
        return {**said, "guidance_scale": 3.5, "true_cfg_scale": guidance}
    return {**said, "guidance_scale": guidance}


def asked(family, name, number, guidance, **more):
    scales = {"guidance_scale": 3.5, "true_cfg_scale": guidance}
    return request(name, number, **(scales if family.spec.name == "flux" else {"guidance_scale": guidance}), **more)


def test_each_row_of_a_mixed_batch_is_what_diffusers_draws(family, make_adapter, diffusers_picture):
    wanted = [(4, 1.0, 2.0, 4), (8, 0.7, 3.0, 3), (16, 1.3, 4.5, 2)]
    adapters = [
        make_adapter(family, rank, seed=n, brand=f"brand-{n}", scale=s) for n, (rank, s, *_) in enumerate(wanted)
    ]
    requests = [
        asked(family, str(n), n, guidance, num_inference_steps=steps, adapters=(adapters[n].use,))
        for n, (_, _, guidance, steps) in enumerate(wanted)
    ]
    requests.append(asked(family, "base", 3, 2.5))
    drawn = pictures(run(Engine(family, max_batch=4), requests))
    for n, (_, scale, guidance, steps) in enumerate(wanted):
        expected = diffusers_picture(
            family, adapters[n].data, scale, 100 + n, num_inference_steps=steps, **arguments(family, guidance, n)
        )
        assert largest_difference(drawn[str(n), 0], expected) < TOLERANCE
    expected = diffusers_picture(family, None, 1.0, 103, num_inference_steps=3, **arguments(family, 2.5, 3))
    assert largest_difference(drawn["base", 0], expected) < TOLERANCE


def test_picture_i_is_drawn_with_seed_plus_i(sd15, make_adapter, diffusers_picture):
    adapter = make_adapter(sd15, brand="brand-0")
    drawn = pictures(run(Engine(sd15, max_batch=4), [asked(sd15, "r", 0, 3.0, num_images=3, adapters=(adapter.use,))]))
    for index in range(3):
        said = arguments(sd15, 3.0, 0)
        expected = diffusers_picture(sd15, adapter.data, 1.0, 100 + index, num_inference_steps=3, **said)
        assert largest_difference(drawn["r", index], expected) < TOLERANCE


def test_without_guidance_the_negative_prompt_is_not_looked_at(family, diffusers_picture):
    drawn = pictures(run(Engine(family, max_batch=2), [asked(family, "r", 1, 1.0)]))
    expected = diffusers_picture(family, None, 1.0, 101, num_inference_steps=3, **arguments(family, 1.0, 1))
    assert largest_difference(drawn["r", 0], expected) < TOLERANCE


def test_no_negative_prompt_is_diffusers_own_default(family, diffusers_picture):
    said = {**arguments(family, 3.0, 0), "negative_prompt": "" if family.spec.name == "flux" else None}
    drawn = pictures(run(Engine(family, max_batch=2), [asked(family, "r", 0, 3.0, negative_prompt=None)]))
    expected = diffusers_picture(family, None, 1.0, 100, num_inference_steps=3, **said)
    assert largest_difference(drawn["r", 0], expected) < TOLERANCE


def test_alpha_of_the_file_counts(sd15, make_adapter, diffusers_picture, tmp_path):
    """r = 8 and alpha = 2: a quarter of the update, in both."""
    path = tmp_path / "whole.safetensors"
    path.write_bytes(make_adapter(sd15, rank=8).data)
    with safe_open(path, "pt") as file:
        header = dict(file.metadata())
    config = json.loads(header[LORA_METADATA])
    header[LORA_METADATA] = json.dumps({**config, "unet.lora_alpha": 2})
    data = safetensors.torch.save(safetensors.torch.load(path.read_bytes()), metadata=header)
    use = AdapterUse(AdapterKey("brand-0", "quarter"), read_adapter(data, sd15))
    drawn = pictures(run(Engine(sd15, max_batch=2), [asked(sd15, "r", 0, 3.0, adapters=(use,))]))
    expected = diffusers_picture(sd15, data, 1.0, 100, num_inference_steps=3, **arguments(sd15, 3.0, 0))
    assert largest_difference(drawn["r", 0], expected) < TOLERANCE


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_prompts_are_encoded_as_by_the_pipeline(name):
    family = family_of(name)
    prompts = ["a red square on blue", "", "a yellow star beside a ring " * 40]
    made = family.pipeline.encode_prompt(
        prompts, device=family.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    ours = family.encode_prompts(prompts).tensors
    assert [torch.equal(value, made[2 * place]) for place, value in enumerate(ours.values())] == [True] * len(ours)
