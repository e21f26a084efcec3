"""A LoRA file reads back as it was written, and a file that does not fit the base is refused."""

import json

import pytest
import safetensors.torch
import torch

from onbrand.errors import AdapterRefused
from onbrand.families import lora
from onbrand.families.family import draw

PROMPT = "a photo of a red circle on a blue background"


def random_state(family, rank, targets="attention", seed=0):
    """Extracted tensors of a LoRA whose B is not zero; the base is left as it was."""
    lora.attach(family.denoiser, rank, family.spec.targets[targets], seed)
    try:
        generator = torch.Generator().manual_seed(seed)
        return {k: torch.randn(v.shape, generator=generator) * 0.05 for k, v in lora.extract(family.denoiser).items()}
    finally:
        lora.detach(family.denoiser)


def file_of(family, rank=4, targets="attention", **changes):
    state = random_state(family, rank, targets) | changes
    return lora.serialize(family, state, rank, family.spec.targets[targets], {"modelspec.title": "test"})


def rewritten(data, tensors=lambda t: t, metadata=lambda m: m):
    """The same file with changed tensors or header."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])["__metadata__"]
    return safetensors.torch.save(tensors(safetensors.torch.load(data)), metadata=metadata(header))


@pytest.mark.parametrize("targets", ["attention", "strong", "all"])
def test_what_is_saved_is_what_is_read(family, targets):
    state = random_state(family, 3, targets)
    data = lora.serialize(family, state, 3, family.spec.targets[targets], {})
    weights = lora.read_adapter(data, family)
    assert weights.rank == 3
    assert len(weights.layers) * 2 == len(state)
    for name, layer in weights.layers.items():
        assert torch.equal(layer.a, state[f"{name}.lora_A.weight"])
        assert torch.equal(layer.b, state[f"{name}.lora_B.weight"].flatten(1))


@pytest.mark.slow
def test_diffusers_draws_with_the_file_what_the_attached_lora_draws(family, tmp_path):
    state = random_state(family, 4, "all")
    lora.attach(family.denoiser, 4, family.spec.targets["all"], 0)
    lora.restore(family.denoiser, state)
    attached = draw(family, [PROMPT], [1])
    lora.detach(family.denoiser)
    path = tmp_path / "brand.safetensors"
    path.write_bytes(lora.serialize(family, state, 4, family.spec.targets["all"], {}))
    family.pipeline.load_lora_weights(str(path), adapter_name="file")
    loaded = draw(family, [PROMPT], [1])
    family.pipeline.unload_lora_weights()
    torch.testing.assert_close(loaded, attached, atol=1e-5, rtol=0)
    assert (attached - draw(family, [PROMPT], [1])).abs().max() > 0.01, (
        "the adapter must matter, or nothing was compared"
    )


def test_alpha_is_folded_into_b(sd15):
    def halve_alpha(header):
        config = json.loads(header[lora.LORA_METADATA])
        return header | {lora.LORA_METADATA: json.dumps(config | {"unet.lora_alpha": 2})}

    data = file_of(sd15, rank=4)
    plain, halved = lora.read_adapter(data, sd15), lora.read_adapter(rewritten(data, metadata=halve_alpha), sd15)
    name = next(iter(plain.layers))
    torch.testing.assert_close(halved.layers[name].b, plain.layers[name].b / 2)


def test_detaching_leaves_the_base_as_it_was(sd15):
    before = {name: value.clone() for name, value in sd15.denoiser.state_dict().items()}
    random_state(sd15, 4, "all")
    after = sd15.denoiser.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_lora_of_another_family_is_refused(sd15, flux):
    with pytest.raises(AdapterRefused, match=r"not of a FLUX\.1 transformer"):
        lora.read_adapter(file_of(sd15), flux)


def test_a_lora_of_another_base_of_the_family_is_refused(sd15):
    def widen(tensors):
        name = next(key for key in tensors if key.endswith("to_q.lora_A.weight"))
        return tensors | {name: torch.zeros(4, tensors[name].shape[1] * 2)}

    with pytest.raises(AdapterRefused, match="made for another base"):
        lora.read_adapter(rewritten(file_of(sd15), widen), sd15)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(sd15, value):
    def poison(tensors):
        name = sorted(tensors)[0]
        return tensors | {name: tensors[name].index_fill(0, torch.tensor([0]), value)}

    with pytest.raises(AdapterRefused, match="not finite"):
        lora.read_adapter(rewritten(file_of(sd15), poison), sd15)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e300])
def test_an_alpha_that_makes_a_value_not_finite_is_refused(sd15, alpha):
    def change(header):
        config = json.loads(header[lora.LORA_METADATA])
        return header | {lora.LORA_METADATA: json.dumps(config | {"unet.lora_alpha": alpha})}

    with pytest.raises(AdapterRefused, match="not finite"):
        lora.read_adapter(rewritten(file_of(sd15), metadata=change), sd15)


def test_half_a_pair_is_refused(sd15):
    def drop(tensors):
        return {key: value for key, value in tensors.items() if key != sorted(tensors)[0]}

    with pytest.raises(AdapterRefused, match="lora_A and lora_B for every layer"):
        lora.read_adapter(rewritten(file_of(sd15), drop), sd15)


def test_a_layer_that_the_base_has_not_is_refused(sd15):
    def rename(tensors):
        return {key.replace("to_q", "to_qq"): value for key, value in tensors.items()}

    with pytest.raises(AdapterRefused, match="not a linear or convolution layer"):
        lora.read_adapter(rewritten(file_of(sd15), rename), sd15)


def test_dora_is_refused(sd15):
    def dora(header):
        return header | {
            lora.LORA_METADATA: json.dumps(json.loads(header[lora.LORA_METADATA]) | {"unet.use_dora": True})
        }

    with pytest.raises(AdapterRefused, match="DoRA"):
        lora.read_adapter(rewritten(file_of(sd15), metadata=dora), sd15)


def test_a_pickle_is_refused_before_it_is_opened(sd15):
    with pytest.raises(AdapterRefused, match="safetensors"):
        lora.read_adapter(b"\x80\x04\x95" + b"0" * 100, sd15)


def test_restoring_another_rank_is_refused(sd15):
    state = random_state(sd15, 4, "strong")
    lora.attach(sd15.denoiser, 4, sd15.spec.targets["attention"], 0)
    try:
        with pytest.raises(AdapterRefused, match="another LoRA"):
            lora.restore(sd15.denoiser, state)
    finally:
        lora.detach(sd15.denoiser)
