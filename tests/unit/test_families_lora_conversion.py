"""Files of other trainers are converted completely or refused with the reason. A picture proves each conversion."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from onbrand.errors import AdapterRefused
from onbrand.families import lora, lora_conversion
from onbrand.families.lora_kohya import kohya_file
from onbrand.safetensors_header import must_be_plain_safetensors
from onbrand.training.lora_import import import_adapter
from tests.unit.test_families_lora import file_of, rewritten


def imported(data, family):
    return import_adapter(data, family, "zilgo", "a title")


def tensors_of(data):
    return safetensors.torch.load(data)


def header_of(data):
    return must_be_plain_safetensors(data).metadata


def kohya_of(family, rank=4, targets="all"):
    return b"".join(kohya_file(file_of(family, rank, targets), family.spec.name))


def same_updates(one, other):
    """Both canonical files add the same to every layer's weights."""
    mine, theirs = tensors_of(one), tensors_of(other)
    assert set(mine) == set(theirs)
    for down in [key for key in mine if key.endswith(".lora_A.weight")]:
        up = down.replace("lora_A", "lora_B")
        a, b = (tensors[up].flatten(1) @ tensors[down].flatten(1) for tensors in (mine, theirs))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    return True


def with_alpha(data, factor):
    """The kohya file with another alpha, and ups that make up for it."""

    def change(tensors):
        return {
            key: value * factor if key.endswith(".alpha") else value / factor if "lora_up" in key else value
            for key, value in tensors.items()
        }

    return safetensors.torch.save(change(tensors_of(data)), metadata={"ss_tag_frequency": "x" * 100_000})


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_kohya_file_comes_back_as_the_adapter_it_was(sd15, factor):
    assert same_updates(imported(with_alpha(kohya_of(sd15), factor), sd15).data, file_of(sd15, 4, "all"))


@pytest.mark.slow
def test_every_layer_of_every_family_comes_back_from_a_kohya_file_whatever_its_alpha(family):
    done = imported(with_alpha(kohya_of(family), 0.25), family)
    assert (done.kind, done.rank) == ("kohya", 4)
    assert done.difference <= 1e-4
    assert same_updates(done.data, file_of(family, 4, "all"))


@pytest.mark.slow
def test_what_is_published_has_alpha_equal_to_rank_and_says_nothing_of_the_others_notes(sd15):
    header = header_of(imported(with_alpha(kohya_of(sd15), 0.25), sd15).data)
    config = json.loads(header[lora.LORA_METADATA])
    assert config["unet.r"] == config["unet.lora_alpha"] == 4
    assert "ss_tag_frequency" not in header
    assert header["modelspec.trigger_phrase"] == "zilgo"


@pytest.mark.slow
def test_a_file_without_any_header_as_ai_toolkit_writes_is_taken_with_alpha_of_rank(flux):
    plain = safetensors.torch.save(tensors_of(file_of(flux, 4, "strong")))
    done = imported(plain, flux)
    assert done.kind == "diffusers"
    assert same_updates(done.data, file_of(flux, 4, "strong"))


@pytest.mark.parametrize("alpha", [8, 1])
def test_a_diffusers_file_is_scaled_as_its_configuration_says(sd15, alpha):
    def change(header):
        config = json.loads(header[lora.LORA_METADATA])
        return header | {lora.LORA_METADATA: json.dumps(config | {"unet.lora_alpha": alpha})}

    done = imported(rewritten(file_of(sd15, 4), metadata=change), sd15)
    wanted = rewritten(
        file_of(sd15, 4),
        lambda tensors: {key: value * (alpha / 4 if "lora_B" in key else 1) for key, value in tensors.items()},
    )
    assert same_updates(done.data, wanted)


def test_the_old_names_of_diffusers_are_known(sd15):
    def rename(tensors):
        names = {".lora_A.weight": ".lora.down.weight", ".lora_B.weight": ".lora.up.weight"}
        return {key.replace(a, b): value for key, value in tensors.items() for a, b in names.items() if a in key}

    done = imported(safetensors.torch.save(rename(tensors_of(file_of(sd15, 4)))), sd15)
    assert same_updates(done.data, file_of(sd15, 4))


def test_layers_of_different_ranks_get_one_and_zeros_change_nothing(sd15):
    def cut(tensors):
        return {
            key: (value[:2] if "lora_A" in key else value[:, :2]).contiguous() if ".attn2.to_k." in key else value
            for key, value in tensors.items()
        }

    data = safetensors.torch.save(cut(tensors_of(file_of(sd15, 4))))
    done = imported(data, sd15)
    assert done.rank == 4
    found = tensors_of(done.data)
    key = next(key for key in found if ".attn2.to_k.lora_A" in key)
    assert torch.equal(found[key][:2], tensors_of(data)[key])
    assert not found[key][2:].any()


def test_a_file_in_half_precision_stays_so_where_nothing_is_lost(sd15):
    def halve(tensors):
        return {key: value.to(torch.bfloat16) for key, value in tensors.items()}

    done = imported(rewritten(file_of(sd15, 4), halve), sd15)
    assert {value.dtype for value in tensors_of(done.data).values()} == {torch.bfloat16}


@pytest.mark.slow
def test_the_family_draws_as_before_after_an_import_and_after_a_refusal(sd15):
    before = {name: value.clone() for name, value in sd15.denoiser.state_dict().items()}
    imported(kohya_of(sd15), sd15)
    with pytest.raises(AdapterRefused):
        imported(rewritten(file_of(sd15), widen), sd15)
    after = sd15.denoiser.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def widen(tensors):
    name = next(key for key in tensors if key.endswith("to_q.lora_A.weight"))
    return tensors | {name: torch.ones(4, tensors[name].shape[1] * 2)}


def without_one_layer(tensors):
    gone = sorted(tensors)[0].split("lora")[0]
    return {key: value for key, value in tensors.items() if not key.startswith(gone)}


def of_a_text_encoder(tensors):
    return tensors | {f"text_encoder.x.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}


def renamed(old, new):
    return lambda tensors: {key.replace(old, new): value for key, value in tensors.items()}


def with_one(suffix, value):
    def change(tensors):
        layer = sorted(tensors)[0].removesuffix(".lora_A.weight")
        return tensors | {f"{layer}{suffix}": value}

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (widen, "has other shapes"),
        (of_a_text_encoder, "text encoder"),
        (renamed("to_q", "to_qq"), "no layer .*to_qq"),
        (renamed("unet.", "transformer."), "no layer 'transformer.*to_"),
        (with_one(".dora_scale", torch.ones(4)), "DoRA"),
        (with_one(".lora_magnitude_vector", torch.ones(4)), "DoRA"),
        (with_one(".lora_B.bias", torch.ones(4)), "biases .*lora_B.bias is not zero"),
        (with_one(".lokr_w1", torch.ones(4, 4)), "LoKr"),
        (with_one(".hada_w1_a", torch.ones(4, 4)), "LoHa"),
        (with_one(".diff", torch.ones(4, 4)), "full differences"),
        (with_one(".alpha", torch.ones(3)), "alpha"),
        (lambda tensors: dict(sorted(tensors.items())[1:]), "for every layer"),
        (lambda tensors: {key: value * 0 for key, value in tensors.items()}, "adds nothing"),
        (lambda tensors: {key: value * float("nan") for key, value in tensors.items()}, "not finite"),
    ],
)  # fmt: skip
def test_what_would_draw_something_else_is_refused_with_its_reason(sd15, change, why):
    with pytest.raises(AdapterRefused, match=why):
        imported(rewritten(file_of(sd15), change), sd15)


def stronger(factor):
    return lambda tensors: {key: value * factor for key, value in tensors.items()}


@pytest.mark.parametrize("factor", [1e15, 1e18])
def test_an_adapter_that_overflows_when_drawn_is_refused(sd15, factor):
    with pytest.raises(AdapterRefused, match="in float32 holds values that are not finite"):
        imported(rewritten(file_of(sd15, 4, "all"), stronger(factor)), sd15)
    assert not hasattr(sd15.denoiser, "peft_config") or not sd15.denoiser.peft_config


@pytest.mark.slow
def test_the_trial_takes_all_the_steps_that_the_base_recommends(sd15, monkeypatch):
    """The proof's pictures are of three steps; what grows from step to step would pass them."""
    times = []
    real = sd15.denoise
    monkeypatch.setattr(sd15, "denoise", lambda x, t, *given: times.append(float(t[0])) or real(x, t, *given))
    imported(file_of(sd15), sd15)
    assert len(set(times)) == sd15.recommended.num_inference_steps > 3


def test_a_rank_over_the_bound_is_refused(sd15):
    tensors = tensors_of(file_of(sd15))
    many = {key: value.repeat(40, 1) if "_A." in key else value.repeat(1, 40) for key, value in tensors.items()}
    with pytest.raises(AdapterRefused, match="rank is 160"):
        imported(safetensors.torch.save(many), sd15)


@pytest.mark.parametrize("name", ["use_dora", "lora_bias", "modules_to_save", "layer_replication"])
def test_what_a_configuration_may_do_beside_scaling_is_refused(sd15, name):
    def change(header):
        return header | {lora.LORA_METADATA: json.dumps(json.loads(header[lora.LORA_METADATA]) | {f"unet.{name}": [1]})}

    with pytest.raises(AdapterRefused, match=name):
        imported(rewritten(file_of(sd15), metadata=change), sd15)


@pytest.mark.slow
def test_nothing_that_a_configuration_names_is_imported(sd15):
    def change(header):
        wish = {"unet.megatron_config": {"a": 1}, "unet.megatron_core": "antigravity"}
        return header | {lora.LORA_METADATA: json.dumps(json.loads(header[lora.LORA_METADATA]) | wish)}

    import sys

    imported(rewritten(file_of(sd15), metadata=change), sd15)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("config", ["[1]", "{", '{"unet.r": "4", "unet.lora_alpha": 4}', '{"unet.r": 4}'])
def test_a_configuration_that_is_none_is_refused(sd15, config):
    with pytest.raises(AdapterRefused, match="lora_adapter_metadata"):
        imported(rewritten(file_of(sd15), metadata=lambda header: header | {lora.LORA_METADATA: config}), sd15)


def test_a_pattern_that_would_run_for_ever_is_refused(sd15):
    def change(header):
        wish = {"unet.alpha_pattern": {"(a+)+$": 4}}
        return header | {lora.LORA_METADATA: json.dumps(json.loads(header[lora.LORA_METADATA]) | wish)}

    with pytest.raises(AdapterRefused, match="patterns"):
        imported(rewritten(file_of(sd15), metadata=change), sd15)


@pytest.mark.slow
def test_files_of_another_family_are_refused(sd15, flux):
    for data in (file_of(sd15), kohya_of(sd15)):
        with pytest.raises(AdapterRefused, match=r"FLUX\.1"):
            imported(data, flux)
    for data in (file_of(flux), kohya_of(flux)):
        with pytest.raises(AdapterRefused, match=r"Stable Diffusion 1\.5"):
            imported(data, sd15)


def test_a_layer_that_a_converter_forgets_is_noticed(sd15, monkeypatch):
    """As diffusers treats FLUX' outer layers: it drops some keys silently."""
    forget = lora_conversion.placed
    monkeypatch.setattr(lora_conversion, "placed", lambda *given: without_one_layer(forget(*given)))
    with pytest.raises(AdapterRefused, match="got lost"):
        imported(kohya_of(sd15), sd15)
