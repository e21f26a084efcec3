"""A layer and its LoRA as one operation: PEFT's numbers, and PEFT's own code where the operation does not apply."""

import pytest
import torch

from onbrand.families import lora
from onbrand.training.kernels.flux_attention import NormedAndTurned, Projected, fuse_attention
from onbrand.training.kernels.flux_blocks import fuse_blocks
from onbrand.training.kernels.lora_layers import TanhGelu, frozen_base, fuse, fuse_gelu
from tests.unit.training_bases import FAMILIES, fresh_family


def attached(name: str, targets: str = "all", num_rows: int = 2):
    family = fresh_family(name)
    lora.attach(family.denoiser, 4, family.spec.targets[targets], seed=1)
    random = torch.Generator().manual_seed(2)
    weights = lora.trainable(family.denoiser)
    for weight in weights:
        weight.data = 0.05 * torch.randn(weight.shape, generator=random)
    latents = torch.randn(num_rows, *family.latent_shape(64, 64), generator=random)
    noise = torch.randn(latents.shape, generator=random)
    told = family.encode_prompts(["photo of acme logo", "a red circle"][:num_rows])
    times = family.training_times(torch.tensor([0.3, 0.7])[:num_rows])
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


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("targets", ["attention", "strong"])
def test_flux_in_few_operations_has_pefts_losses_and_gradients(targets, num_rows):
    family, weights, loss = attached("flux", targets, num_rows)
    plain = loss()
    wanted = torch.autograd.grad(plain.sum(), weights)
    assert fuse_attention(family.denoiser) == fuse_blocks(family.denoiser) == 6
    assert fuse_gelu(family.denoiser) == 8
    fused = loss()
    names = names_of_nodes(fused)
    assert all(name in names for name in ("NormedAndTurned", "Projected", "TanhGelu", "Addcmul"))
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(torch.autograd.grad(fused.sum(), weights), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_the_last_block_computes_nothing_of_the_text_that_nobody_reads():
    family, _, loss = attached("flux", "attention", num_rows=1)
    fuse_blocks(family.denoiser)
    seen = []
    for block in family.denoiser.single_transformer_blocks:
        block.proj_mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    loss()
    num_text = family.recommended.max_sequence_length
    assert seen == [seen[0]] * (len(seen) - 1) + [seen[0] - num_text]


def test_flux_without_its_lora_is_the_base_again_and_one_of_another_scale_stays_pefts():
    family, _, loss = attached("flux", "attention")
    with frozen_base(family.denoiser):
        base = loss().detach()
    family.denoiser.single_transformer_blocks[0].attn.to_q.scaling[lora.ADAPTER] = 0.5
    plain = loss().detach()
    fuse_attention(family.denoiser)
    torch.testing.assert_close(loss().detach(), plain, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain, base)
    lora.detach(family.denoiser)
    torch.testing.assert_close(loss(), base, rtol=1e-5, atol=1e-6)


def names_of_nodes(loss: torch.Tensor) -> str:
    """All operations behind a loss."""
    found, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [following for following, _ in node.next_functions]
    return " ".join(type(node).__name__ for node in found)


def test_drawing_flux_keeps_pefts_bits_with_the_adapter_and_without():
    family, _, loss = attached("flux")
    with torch.no_grad():
        plain = loss()
        with frozen_base(family.denoiser):
            base = loss()
        fuse_attention(family.denoiser)
        fuse_blocks(family.denoiser)
        assert torch.equal(loss(), plain)
        with frozen_base(family.denoiser):
            assert torch.equal(loss(), base)
    with frozen_base(family.denoiser):
        torch.testing.assert_close(loss().detach(), base, rtol=1e-5, atol=1e-6)


def test_positions_are_computed_anew_for_another_shape():
    family, _, _ = attached("flux")
    fuse_attention(family.denoiser)
    embedding = family.denoiser.pos_embed
    one, other = torch.arange(12.0).view(4, 3), torch.arange(12.0, 24.0).view(4, 3)
    for ids in (one, other, one):
        for ours, theirs in zip(embedding(ids), type(embedding).forward(embedding, ids), strict=True):
            assert torch.equal(ours, theirs)


def test_the_slopes_that_are_written_out_are_those_of_the_functions():
    draw = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(TanhGelu.apply, (3 * drawn(4, 5),))
    frozen = [drawn(*shape).detach() for shape in ((6, 4), (6, 4), (6, 4), (6,), (6,), (6,))]
    trained = [drawn(*shape) for shape in ((2, 4), (2, 4), (2, 4), (6, 2), (6, 2), (6, 2))]
    for parts in ([*frozen, *trained], frozen):
        assert torch.autograd.gradcheck(lambda x, *rest: Projected.apply(x, *rest), (drawn(2, 3, 4), *parts))
    turn = torch.polar(torch.ones(3, 1, 1, 2, dtype=torch.float64), drawn(3, 1, 1, 2).detach())
    placed = (drawn(3, 2, 1, 4).detach(), turn, 1e-6)
    assert torch.autograd.gradcheck(lambda x: NormedAndTurned.apply(x, *placed), (drawn(2, 3, 2, 2, 4),))
