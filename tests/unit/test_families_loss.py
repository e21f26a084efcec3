"""Noise, targets and weights of the training loss follow the published formulas, row by row."""

import torch

from onbrand.families.family import Conditioning


def rows(family, count):
    conditioning = family.encode_prompts([f"a photo of a red circle {i}" for i in range(count)])
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn((count, *family.latent_shape(64, 64)), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    return latents, conditioning, family.training_times(torch.linspace(0.1, 0.9, count)), noise


def test_a_row_of_a_batch_has_the_loss_it_has_alone(family):
    latents, conditioning, times, noise = rows(family, 3)
    together = family.loss(latents, conditioning, times, noise)
    for i in range(3):
        alone = family.loss(latents[i : i + 1], conditioning.rows([i]), times[i : i + 1], noise[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_error_of_what_denoise_predicts(family):
    latents, conditioning, times, noise = rows(family, 2)
    noisy, target = family.noised(latents, times, noise)
    expected = (family.denoise(noisy, times, conditioning) - target).pow(2).flatten(1).mean(1) * family.loss_weight(
        times
    )
    torch.testing.assert_close(family.loss(latents, conditioning, times, noise), expected)


def test_min_snr_weights_an_epsilon_loss_and_may_be_left_out(sd15):
    latents, conditioning, times, noise = rows(sd15, 3)
    sd15._prediction_type, kept = "epsilon", sd15._prediction_type
    try:
        snr = sd15._alphas_cumprod[times] / (1 - sd15._alphas_cumprod[times])
        torch.testing.assert_close(sd15.loss_weight(times, 2.0), (snr.clamp(max=2.0) / snr).float())
        plain = sd15.loss(latents, conditioning, times, noise, min_snr_gamma=None)
        torch.testing.assert_close(plain, sd15.errors(latents, conditioning, times, noise))
    finally:
        sd15._prediction_type = kept


def test_training_times_are_spread_as_asked(family):
    u = (torch.arange(4000) + 0.5) / 4000
    length = float(family.times_at(torch.ones(1)))
    part = {kind: family.training_times(u, kind).double() / length for kind in ("uniform", "logit_normal", "shift")}
    assert abs(part["uniform"].mean() - 0.5) < 0.01
    assert abs(part["uniform"].std() - 12**-0.5) < 0.01
    logits = torch.logit(part["logit_normal"].clamp(1e-3, 1 - 1e-3))
    assert abs(logits.mean()) < 0.02
    assert abs(logits.std() - 1) < 0.03
    assert part["shift"].median() > 0.65


def test_a_sigma_of_one_is_the_noisiest_timestep_and_of_less_an_earlier_one(family):
    times = family.times_at(torch.tensor([1.0, 0.75, 0.5, 0.25]))
    assert (times.diff() < 0).all()
    assert float(times[0]) == float(family.training_times(torch.tensor([1.0]), "uniform"))


def test_a_flow_goes_straight_from_noise_to_picture(flux):
    latents, _, _, noise = rows(flux, 2)
    noisy, velocity = flux.noised(latents, torch.tensor([1000.0, 250.0]), noise)
    torch.testing.assert_close(noisy[0], noise[0])
    torch.testing.assert_close(noisy[1] - 0.25 * velocity[1], latents[1])


def test_v_and_noisy_latents_give_the_picture_back(sd15):
    latents, _, _, noise = rows(sd15, 2)
    times = torch.tensor([999, 300])
    noisy, v = sd15.noised(latents, times, noise)
    torch.testing.assert_close(noisy[0], noise[0], atol=1e-3, rtol=1e-3)  # zero terminal SNR: nothing of the picture
    alpha_bar = sd15.pipeline.scheduler.alphas_cumprod[300]
    torch.testing.assert_close(
        alpha_bar.sqrt() * noisy[1] - (1 - alpha_bar).sqrt() * v[1], latents[1], atol=1e-5, rtol=0
    )


def test_rows_of_conditioning_are_taken_repeated_and_replaced():
    three = Conditioning({"text": torch.arange(3.0).view(3, 1, 1)})
    assert three.rows([2, 2, 0])["text"].flatten().tolist() == [2, 2, 0]
    absent = Conditioning({"text": torch.full((1, 1, 1), -1.0)})
    assert three.where(torch.tensor([False, True, False]), absent)["text"].flatten().tolist() == [0, -1, 2]
    assert len(Conditioning.cat([three, three])) == 6
