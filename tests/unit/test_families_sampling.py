"""Each sampler equals the diffusers scheduler of the same configuration on the same predictions."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from onbrand.families.sampling import guided, sampler_for

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
ZERO_SNR = {**BETAS, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


def schedulers():
    return {
        "ddim-eps": DDIMScheduler(**BETAS, clip_sample=False),
        "ddim-v": DDIMScheduler(**ZERO_SNR, clip_sample=False),
        "euler-eps": EulerDiscreteScheduler(**BETAS),
        "euler-v": EulerDiscreteScheduler(**ZERO_SNR),
        "flow": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
    }


def denoise(x, t):
    """A smooth stand-in for a denoiser: both sides see the same one."""
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


@pytest.mark.parametrize("name", list(schedulers()))
@pytest.mark.parametrize("num_steps", [3, 8, 20])
def test_a_sampler_equals_the_diffusers_scheduler_of_its_configuration(name, num_steps):
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = schedulers()[name]
    sampler = sampler_for(scheduler)
    schedule = sampler.schedule(num_steps, image_tokens=64)
    latents = noise * schedule.init_scale
    for t, row in zip(schedule.timesteps, schedule.table, strict=True):
        table = row.expand(2, -1)
        latents = sampler.step(denoise(sampler.scale_input(latents, table), t.expand(2)), latents, table)
    torch.testing.assert_close(latents, by_diffusers(scheduler, noise, num_steps, 64), atol=1e-5, rtol=1e-5)


def test_rows_at_different_steps_are_what_they_are_alone():
    sampler = sampler_for(schedulers()["euler-v"])
    long, short = sampler.schedule(8, 64), sampler.schedule(3, 64)
    latents = torch.randn(2, 4, 8, 8)
    prediction = torch.randn(2, 4, 8, 8)
    both = sampler.step(prediction, latents, torch.stack([long.table[5], short.table[1]]))
    alone = sampler.step(prediction[1:], latents[1:], short.table[1:2])
    assert torch.equal(both[1:], alone)


def test_guidance_takes_each_rows_own_scale():
    negative, positive = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    assert guided(torch.cat([negative, positive]), torch.tensor([2.0, 5.0])).flatten().tolist() == [2.0, 5.0]
