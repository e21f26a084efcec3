"""One operation for a layer and its LoRA: PEFT's numbers, PEFT's own way wherever it does not fit."""

import pytest
import torch

from onbrand.families import lora
from onbrand.training.layers import frozen_base, fuse
from tests.unit.training_bases import FAMILIES, fresh_family


def attached(name: str, targets: str = "all"):
    family = fresh_family(name)
    lora.attach(family.denoiser, 4, family.spec.targets[targets], seed=1)
    random = torch.Generator().manual_seed(2)
    weights = lora.trainable(family.denoiser)
    for weight in weights:
        weight.data = 0.05 * torch.randn(weight.shape, generator=random)
    latents = torch.randn(2, *family.latent_shape(64, 64), generator=random)
    noise = torch.randn(latents.shape, generator=random)
    told = family.encode_prompts(["photo of acme logo", "a red circle"])
    times = family.training_times(torch.tensor([0.3, 0.7]))
    return family, weights, lambda: family.loss(latents, told, times, noise)


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_and_gradients_are_pefts(name):
    family, weights, loss = attached(name)
    plain = loss()
    wanted = torch.autograd.grad(plain.sum(), weights)
    assert fuse(family.denoiser) > 10
    fused = loss()
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(fused.sum(), weights), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_drawing_keeps_pefts_bits_and_the_base_can_be_asked_without_the_adapter():
    family, weights, loss = attached("sd15")
    with torch.no_grad():
        plain = loss()
        fuse(family.denoiser)
        assert torch.equal(loss(), plain)
    with frozen_base(family.denoiser):
        base = loss()
    assert not torch.allclose(base, plain)
    assert not base.requires_grad
    assert all(weight.requires_grad for weight in weights)
    lora.detach(family.denoiser)
    assert torch.equal(loss(), base)


def test_a_layer_with_another_scale_stays_pefts():
    family, _, _ = attached("sd15", "attention")
    layer = next(module for module in family.denoiser.modules() if hasattr(module, "lora_A"))
    num_layers = sum(hasattr(module, "lora_A") for module in family.denoiser.modules())
    layer.scaling[lora.ADAPTER] = 0.5
    assert fuse(family.denoiser) == num_layers - 1
