"""A quantized frozen base: close to the original, smaller, usable by PEFT and diffusers, and trainable."""

import pytest
import torch
from torch import nn

from onbrand.families import lora
from onbrand.families.meta import num_bytes
from onbrand.training.export import export
from onbrand.training.memory.quantization import LEVELS, Packed, quantize, saved_bytes
from onbrand.training.memory.savings import MemorySavings
from tests.unit.training_bases import (
    FAMILIES,
    base_of,
    fresh_family,
    same_bits,
    small_examples,
    small_plan,
    small_trainer,
    trained,
)

WEIGHTS = torch.randn(96, 70, generator=torch.Generator().manual_seed(0))


def prediction(family) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, *family.latent_shape(64, 64), generator=random)
    with torch.no_grad():
        return family.denoise(
            noisy, family.times_at(torch.tensor([0.3, 0.8])), family.encode_prompts(["a cat", "logo"])
        )


def test_int8_is_within_half_a_step_of_each_channels_scale():
    packed = Packed(WEIGHTS, "int8")
    step = WEIGHTS.abs().amax(1, keepdim=True) / 127
    assert ((packed.whole() - WEIGHTS).abs() <= step / 2 + 1e-6).all()


def test_nf4_takes_the_nearest_of_sixteen_levels_of_each_block():
    packed = Packed(WEIGHTS, "nf4")
    blocks = nn.functional.pad(WEIGHTS.flatten(), (0, -WEIGHTS.numel() % 64)).view(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = torch.tensor(LEVELS)[(blocks[..., None] / scales[..., None] - torch.tensor(LEVELS)).abs().argmin(-1)]
    expected = (nearest * scales).flatten()[: WEIGHTS.numel()].view_as(WEIGHTS)
    assert torch.allclose(packed.whole(), expected)


@pytest.mark.parametrize("how", ["int8", "nf4"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(70, 96), (3, 5, 70)),
        (nn.Linear(64, 64, bias=False), (2, 64)),
        (nn.Conv2d(16, 32, 3, stride=2, padding=1), (2, 16, 9, 8)),
    ],
)
def test_a_quantised_layer_and_its_gradient_are_those_of_the_weight_it_stands_for(layer, shape, how):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), requires_grad=True)
    holder = nn.Sequential(layer)
    assert quantize(holder, how) == 1
    plain = type(layer)(*_arguments(layer), bias=layer.bias is not None)
    plain.weight = nn.Parameter(holder[0].weight)
    plain.bias = layer.bias
    ours, theirs = holder(x), plain(x)
    assert torch.allclose(ours, theirs, atol=1e-5)
    [mine] = torch.autograd.grad(ours.square().sum(), x)
    [wanted] = torch.autograd.grad(theirs.square().sum(), x)
    assert torch.allclose(mine, wanted, atol=1e-4)


def _arguments(layer: nn.Linear | nn.Conv2d) -> tuple[object, ...]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding


def test_no_whole_weight_is_kept_for_the_gradient():
    layer = nn.Sequential(nn.Linear(128, 128))
    quantize(layer, "int8")
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(2, 128, requires_grad=True)).sum()
    assert all(tensor.numel() < 128 * 128 for tensor in kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("how", "share", "change"), [("int8", 0.30, 0.02), ("nf4", 0.20, 0.2)])
def test_a_base_in_fewer_bits_is_smaller_by_what_was_said_and_predicts_nearly_the_same(name, how, share, change):
    family = fresh_family(name)
    before, wanted, said = num_bytes(family.denoiser), prediction(family), saved_bytes(family.denoiser, how)
    assert quantize(family.denoiser, how) > 10
    after = num_bytes(family.denoiser)
    assert before - after == pytest.approx(said, rel=0.001)
    assert after < share * before + 4 * sum(w.numel() for w in family.denoiser.parameters())
    assert family.dtype == torch.float32
    error = (prediction(family) - wanted).norm() / wanted.norm()
    assert 0 < error < change


def test_a_move_to_another_dtype_leaves_the_scales_exact():
    layer = nn.Sequential(nn.Linear(128, 128))
    quantize(layer, "int8")
    scales = layer[0].packed.scales.clone()
    assert torch.equal(layer.to(torch.bfloat16)[0].packed.scales, scales)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), [("sd15", "int8"), ("flux", "nf4")])
def test_an_adapter_trained_on_a_quantised_base_is_proved_and_resumed_with_the_same_bits(name, how, tmp_path):
    def trainer():
        family, plan = fresh_family(name), small_plan(name, steps=3, targets="strong")
        quantize(family.denoiser, how)
        return type(small_trainer())(family, plan, small_examples(family), savings=MemorySavings(3, False, how))

    unbroken = trained(trainer())
    trained(trainer(), until=1).save(tmp_path)
    heir = trainer()
    assert heir.resume(tmp_path)
    assert same_bits(trained(heir), unbroken)
    with unbroken.averaged():
        data = export(
            unbroken.family, base_of(name), unbroken.plan, unbroken.adapter(), "photo of acme logo", "a", how
        ).data
    assert lora.read_adapter(data, fresh_family(name)).rank == 2


@pytest.mark.slow
def test_training_on_an_int8_base_comes_to_nearly_the_same_adapter():
    plan = small_plan(steps=6)
    plain, family = trained(small_trainer(plan=plan)), fresh_family()
    quantize(family.denoiser, "int8")
    packed = trained(type(plain)(family, plan, small_examples(family)))
    one, other = (torch.cat([average.flatten() for average in each.average]) for each in (plain, packed))
    start = torch.cat([weight.detach().flatten() for weight in small_trainer(plan=plan).weights])
    cosine = torch.nn.functional.cosine_similarity(one - start, other - start, dim=0)
    assert cosine > 0.9
