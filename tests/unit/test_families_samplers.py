"""Each sampler equals the diffusers scheduler of the same configuration on the same predictions."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from onbrand.errors import BaseModelRefused
from onbrand.families.samplers import guided, own_sampler, selectable_samplers
from onbrand.families.spec import SPECS

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
ZERO_SNR = {**BETAS, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


def schedulers():
    return {
        "ddim-eps": DDIMScheduler(**BETAS, clip_sample=False),
        "ddim-v": DDIMScheduler(**ZERO_SNR, clip_sample=False),
        "euler-eps": EulerDiscreteScheduler(**BETAS),
        "euler-v": EulerDiscreteScheduler(**ZERO_SNR),
        "dpm-eps": DPMSolverMultistepScheduler(**BETAS),
        "dpm-v-karras": DPMSolverMultistepScheduler(**BETAS, prediction_type="v_prediction", use_karras_sigmas=True),
        "flow": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
    }


def others():
    """Schedulers of bases that have no sampler of their own kind here, and of other settings."""
    leading = {**BETAS, "timestep_spacing": "leading", "steps_offset": 1}
    return {
        "pndm": PNDMScheduler(**leading, skip_prk_steps=True),
        "leading-sigma-min": EulerDiscreteScheduler(**leading, final_sigmas_type="sigma_min"),
    }


def denoise(x, t):
    """A smooth function in place of a denoiser, the same for both sides."""
    return torch.sin(x * 1.3) * 0.7 + t.float().view(-1, 1, 1, 1) * 1e-4


def by_diffusers(scheduler, noise, num_steps, tokens):
    import numpy as np
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
        latents = noise
    else:
        scheduler.set_timesteps(num_steps)
        latents = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        latents = scheduler.step(denoise(seen, t.expand(len(latents))), t, latents, return_dict=False)[0]
    return latents


def drawn(sampler, noise, num_steps, tokens=64):
    """The latents after all steps of one request."""
    schedule = sampler.schedule(num_steps, tokens)
    latents, clean = noise * schedule.init_scale, torch.zeros_like(noise)
    for t, row in zip(schedule.timesteps, schedule.table, strict=True):
        table = row.expand(len(noise), -1)
        prediction = denoise(sampler.scale_input(latents, table), t.expand(len(noise)))
        latents, clean = sampler.step(prediction, latents, clean, table)
    return latents


@pytest.fixture
def noise():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(schedulers()))
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 14, 15, 20])
def test_a_sampler_equals_the_diffusers_scheduler_of_its_configuration(name, num_steps, noise):
    scheduler = schedulers()[name]
    expected = by_diffusers(scheduler, noise, num_steps, 64)
    torch.testing.assert_close(drawn(own_sampler(scheduler), noise, num_steps), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", ["ddim-eps", "ddim-v", "euler-eps", "euler-v", "pndm", "leading-sigma-min"])
@pytest.mark.parametrize(
    ("name", "peer"), [("euler", EulerDiscreteScheduler), ("dpm++2m", DPMSolverMultistepScheduler)]
)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 14, 15, 20])
def test_a_sampler_by_name_equals_diffusers_on_the_same_base(base, name, peer, num_steps, noise):
    """The scheduler of diffusers' `pipeline.scheduler = Peer.from_config(pipeline.scheduler.config)`."""
    own = {**schedulers(), **others()}[base]
    expected = by_diffusers(peer.from_config(own.config), noise, num_steps, 64)
    torch.testing.assert_close(drawn(selectable_samplers(own)[name], noise, num_steps), expected, atol=1e-5, rtol=1e-5)


def test_a_request_may_name_the_samplers_that_its_family_says():
    names = {"sd15": "ddim-v", "sdxl": "euler-v", "flux": "flow"}
    for family, base in names.items():
        assert set(selectable_samplers(schedulers()[base])) == set(SPECS[family].samplers)


def test_a_base_that_predicts_what_is_not_known_here_is_refused():
    with pytest.raises(BaseModelRefused, match="'sample'"):
        own_sampler(EulerDiscreteScheduler(**BETAS, prediction_type="sample"))


def test_second_order_needs_what_the_step_before_foresaw(noise):
    sampler = selectable_samplers(schedulers()["euler-v"])["dpm++2m"]
    middle = sampler.schedule(8, 64).table[4:5].expand(2, -1)
    one, _ = sampler.step(noise, noise, torch.zeros_like(noise), middle)
    other, _ = sampler.step(noise, noise, torch.ones_like(noise), middle)
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("name", list(schedulers()))
def test_what_is_foreseen_at_the_last_step_is_the_result(name, noise):
    """x0 is read off rightly: with nothing left to remove, the step lands on it."""
    sampler = own_sampler(schedulers()[name])
    last = sampler.schedule(6, 64).table[-1:].expand(2, -1)
    latents, clean = sampler.step(noise * 0.3, noise, torch.zeros_like(noise), last)
    tolerance = 0.05 if "ddim" in name else 1e-5  # DDIM ends at the first training step's noise, not at none
    torch.testing.assert_close(latents, clean, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["euler", "dpm++2m"])
def test_rows_at_different_steps_are_what_they_are_alone(name, noise):
    sampler = selectable_samplers(schedulers()["euler-v"])[name]
    long, short = sampler.schedule(8, 64), sampler.schedule(3, 64)
    clean, prediction = noise.flip(0), noise.flip(2)
    both, _ = sampler.step(prediction, noise, clean, torch.stack([long.table[5], short.table[1]]))
    alone, _ = sampler.step(prediction[1:], noise[1:], clean[1:], short.table[1:2])
    assert torch.equal(both[1:], alone)


def test_a_schedule_does_not_depend_on_those_made_before():
    for sampler in (*selectable_samplers(schedulers()["ddim-v"]).values(), own_sampler(schedulers()["flow"])):
        first = sampler.schedule(5, 64)
        sampler.schedule(9, 1024)
        assert torch.equal(sampler.schedule(5, 64).table, first.table)
        assert first.num_steps == 5


def test_guidance_takes_each_rows_own_scale():
    negative, positive = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    assert guided(torch.cat([negative, positive]), torch.tensor([2.0, 5.0])).flatten().tolist() == [2.0, 5.0]
