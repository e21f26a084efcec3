"""Files with other tools' layer names are imported exactly, or refused with the name of the unsupported layer."""

from __future__ import annotations

import json
import math

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from torch import nn

from onbrand.errors import AdapterRefused
from onbrand.families import lora
from onbrand.families.family import draw
from onbrand.families.lora_conversion import OwnLora, attached, read_foreign
from onbrand.families.lora_kohya import kohya_file
from onbrand.lora_names import ImportOptions
from onbrand.training.lora_import import import_adapter
from tests.unit.conftest import _loaded
from tests.unit.test_families_lora import PROMPT, file_of

RANK = 4


def drawn_and_imported(data, family, options=ImportOptions()):
    return import_adapter(data, family, "zilgo", "a title", options)


def imported(data, family, options=ImportOptions()):
    """The layers that an import would publish, without the drawing."""
    with attached(read_foreign(data, family, options), family) as own:
        return own


def pairs_of(family, rank=RANK, names=("",)):
    """Random (A, B) of every layer of the denoiser that can be adapted and whose path holds one of `names`."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for path, module in family.denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and any(name in path for name in names):
            a, b = lora.pair_shapes(module, rank)
            found[path] = tuple(torch.randn(shape, generator=generator) * 0.03 for shape in (a, b))
    return found


def named(pairs, name, down=".lora_A.weight", up=".lora_B.weight", alpha=None):
    """The tensors of a file: `name` makes a layer's name of its path."""
    tensors = {}
    for path, (a, b) in pairs.items():
        layer = name(path)
        tensors |= {f"{layer}{down}": a.contiguous(), f"{layer}{up}": b.contiguous()}
        if alpha is not None:
            tensors[f"{layer}.alpha"] = alpha.clone()
    return tensors


def kohya_named(pairs, alpha=None):
    return named(
        pairs, lambda path: f"lora_unet_{path.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight", alpha
    )


def saved(tensors, **metadata):
    return safetensors.torch.save(tensors, metadata={key: json.dumps(value) for key, value in metadata.items()})


def updates_of(state):
    """The update that an imported file adds to each layer's weights."""
    paths = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    pairs = {path: (state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"]) for path in paths}
    return {path: b.float().flatten(1) @ a.float().flatten(1) for path, (a, b) in pairs.items()}


def must_add(own, pairs, scale=1.0):
    """Check that the imported file adds to every layer what its source does."""
    found = updates_of(own.state)
    assert set(found) == set(pairs)
    for path, (a, b) in pairs.items():
        torch.testing.assert_close(found[path], scale * b.flatten(1) @ a.flatten(1), atol=1e-6, rtol=1e-4)


@pytest.fixture
def sdxl():
    return _loaded("sdxl")


@pytest.fixture
def with_lora(sd15):
    """A function that puts PEFT's LoRA on the denoiser, with random weights; it is off again afterwards."""

    def attach(**config):
        sd15.denoiser.add_adapter(LoraConfig(r=RANK, **config), adapter_name="default")
        generator = torch.Generator().manual_seed(2)
        for parameter in lora.trainable(sd15.denoiser):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
        return sd15.denoiser

    yield attach
    sd15.denoiser.unload_lora()


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": 9, "target_modules": ["to_q", "to_out.0", "conv1"]},
        {"lora_alpha": 2, "target_modules": ["to_k", "ff.net.2"], "rank_pattern": {"to_k": 2}, "use_rslora": True},
        {"lora_alpha": 4, "target_modules": ["to_k", "to_v"], "alpha_pattern": {"attn2.to_k": 7}},
    ],
)
def test_what_diffusers_model_saves_by_itself_draws_as_it_did(sd15, with_lora, tmp_path, config):
    denoiser = with_lora(**config)
    drawn = draw(sd15, [PROMPT], [1])
    denoiser.save_lora_adapter(tmp_path)
    denoiser.unload_lora()
    done = drawn_and_imported((tmp_path / "pytorch_lora_weights.safetensors").read_bytes(), sd15)
    (tmp_path / "ours.safetensors").write_bytes(done.data)
    sd15.pipeline.load_lora_weights(tmp_path, weight_name="ours.safetensors", adapter_name="ours")
    again = draw(sd15, [PROMPT], [1])
    assert (drawn - again).abs().max() < 1e-4
    sd15.pipeline.unload_lora_weights()
    assert (drawn - draw(sd15, [PROMPT], [1])).abs().max() > 0.01


def test_names_with_the_adapters_name_in_them_are_known(sd15, with_lora):
    denoiser = with_lora(lora_alpha=RANK, target_modules=["to_q", "conv2"])
    tensors = {key: value.clone() for key, value in denoiser.state_dict().items() if "lora_" in key}
    assert all(".default.weight" in key for key in tensors)
    plain = get_peft_model_state_dict(denoiser, adapter_name="default")
    pairs = {
        key.removesuffix(".lora_A.weight"): (value.clone(), plain[key.replace("lora_A", "lora_B")].clone())
        for key, value in plain.items()
        if key.endswith(".lora_A.weight")
    }
    denoiser.unload_lora()
    must_add(imported(saved(tensors), sd15), pairs)


def test_two_adapters_in_one_file_are_refused(sd15):
    one, other = (
        named(pairs_of(sd15, names=["to_q"]), str, f".lora_A.{name}.weight", f".lora_B.{name}.weight")
        for name in ("default", "second")
    )
    with pytest.raises(AdapterRefused, match=r"two adapters for down_blocks.*to_q"):
        imported(saved(one | other), sd15)


def peft_file(tmp_path, family, alpha):
    """The file that PEFT's `save_pretrained` writes (its configuration is in another file), and the layers."""
    model = get_peft_model(family.denoiser, LoraConfig(r=RANK, lora_alpha=alpha, target_modules=["to_q", "conv1"]))
    generator = torch.Generator().manual_seed(3)
    for parameter in lora.trainable(model):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    drawn = draw(family, [PROMPT], [1])
    model.save_pretrained(tmp_path)
    model.unload()
    return (tmp_path / "adapter_model.safetensors").read_bytes(), drawn


@pytest.mark.slow
def test_a_file_of_pefts_own_is_imported_with_the_alpha_that_it_keeps_elsewhere(sd15, tmp_path):
    data, drawn = peft_file(tmp_path, sd15, 10)
    assert all(name.startswith("base_model.model.") for name in safetensors.torch.load(data))
    with pytest.raises(AdapterRefused, match=r"base_model\.model\..*adapter_config\.json; say it as lora_alpha"):
        imported(data, sd15)
    done = drawn_and_imported(data, sd15, ImportOptions(lora_alpha=10))
    (tmp_path / "ours.safetensors").write_bytes(done.data)
    sd15.pipeline.load_lora_weights(tmp_path, weight_name="ours.safetensors", adapter_name="ours")
    again = draw(sd15, [PROMPT], [1])
    sd15.pipeline.unload_lora_weights()
    assert (drawn - again).abs().max() < 1e-4


def test_an_alpha_is_not_said_twice(sd15):
    tensors = kohya_named(pairs_of(sd15, names=["to_q"]), torch.tensor(2.0))
    with pytest.raises(AdapterRefused, match=r"says its own alpha.*to_q.*leave lora_alpha out"):
        imported(saved(tensors), sd15, ImportOptions(lora_alpha=4))


@pytest.mark.parametrize("form", ["as they are", "all matrices", "all convolutions", "mixed"])
def test_a_1x1_convolution_is_a_matrix_and_the_other_way_round(family, form):
    pairs = pairs_of(family, names=["proj_in", "proj_out", "to_q", "conv_shortcut", "proj_mlp", "conv1"])

    def shaped(path, a, b):
        if a.shape[2:] not in ((), (1, 1)) or form == "as they are":
            return a, (b.flatten(1) if form == "mixed" else b)
        matrices, convolutions = (
            (a.flatten(1), b.flatten(1)),
            (a.reshape(*a.shape[:2], 1, 1), b.reshape(*b.shape[:2], 1, 1)),
        )
        return {"all matrices": matrices, "all convolutions": convolutions, "mixed": (matrices[0], convolutions[1])}[
            form
        ]

    tensors = kohya_named({path: shaped(path, *pair) for path, pair in pairs.items()}, torch.tensor(8.0))
    must_add(imported(saved(tensors), family), pairs, 8 / RANK)


def test_a_matrix_of_a_3x3_convolution_is_refused_by_name(sd15):
    pairs = {path: (a.flatten(1), b.flatten(1)) for path, (a, b) in pairs_of(sd15, names=["conv1"]).items()}
    with pytest.raises(AdapterRefused, match=r"conv1' has other shapes there.*lora_unet_.*conv1"):
        imported(saved(kohya_named(pairs)), sd15)


def originals_of(flux, data):
    """The file with the layer names of the original FLUX, as ComfyUI writes them."""
    names = {"single_blocks": "single_blocks", "double_blocks": "double_blocks"}
    parts = ["img_attn", "txt_attn", "img_mlp", "txt_mlp", "img_mod", "txt_mod", "modulation"]
    parts += ["img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer"]

    def dotted(layer):
        layer = layer.removeprefix("lora_unet_")
        for name in names:
            layer = layer.replace(f"{name}_", f"{name}.")
        head, _, rest = layer.partition(".")
        if rest:
            number, _, rest = rest.partition("_")
            head = f"{head}.{number}."
        else:
            head, rest = "", layer
        for part in parts:
            rest = rest.replace(f"{part}_", f"{part}.")
        return head + rest.replace("adaLN_modulation.1", "adaLN_modulation.1")

    tensors = safetensors.torch.load(data)
    return {f"{dotted(key.split('.')[0])}.{key.split('.', 1)[1]}": value for key, value in tensors.items()}


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", "base_model.model.", ""])
@pytest.mark.parametrize("naming", ["lora_down", "lora_A"])
def test_originals_names_of_flux_with_any_prefix_are_known(flux, prefix, naming):
    canonical = file_of(flux, RANK, "all")
    tensors = originals_of(flux, b"".join(kohya_file(canonical, "flux")))
    assert "double_blocks.0.img_attn.qkv.lora_down.weight" in tensors
    sides = {"lora_down": naming, "lora_up": {"lora_down": "lora_up", "lora_A": "lora_B"}[naming]}
    renamed = {}
    for key, value in tensors.items():
        layer, side, end = (
            key.rsplit(".", 2) if not key.endswith(".alpha") else (key.removesuffix(".alpha"), "alpha", "")
        )
        renamed[".".join(filter(None, (f"{prefix}{layer}", sides.get(side, side), end)))] = value
    wanted = updates_of(
        {key.removeprefix("transformer."): value for key, value in safetensors.torch.load(canonical).items()}
    )
    found = updates_of(imported(saved(renamed), flux).state)
    assert set(found) == set(wanted)
    for path, update in wanted.items():
        torch.testing.assert_close(found[path], update, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["transformer.", "", "diffusion_model.", "base_model.model.transformer."])
@pytest.mark.parametrize("ends", [(".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")])
def test_every_layer_of_flux_by_its_own_name_with_any_prefix(flux, prefix, ends):
    pairs = pairs_of(flux)
    tensors = named(pairs, lambda path: f"{prefix}{path}", *ends, torch.tensor(2.0))
    must_add(imported(saved(tensors), flux), pairs, 2 / RANK)


@pytest.mark.slow
def test_a_lora_of_every_layer_of_sdxl_as_lcm_loras_are_is_imported(sdxl):
    """Kohya's names of diffusers' layers, convolutions and embeddings too, float16, rank 64 with an alpha."""
    pairs = {path: (a.half(), b.half()) for path, (a, b) in pairs_of(sdxl, 64).items()}
    assert {"add_embedding.linear_1", "time_embedding.linear_2", "conv_in", "conv_out"} <= set(pairs)
    done = drawn_and_imported(saved(kohya_named(pairs, torch.tensor(8.0, dtype=torch.float16))), sdxl)
    state = {key.removeprefix("unet."): value for key, value in safetensors.torch.load(done.data).items()}
    must_add(OwnLora(state, 64, ()), {path: (a.float(), b.float()) for path, (a, b) in pairs.items()}, 8 / 64)


SGM = {
    "down_blocks_0_resnets_0_": "input_blocks_1_0_",
    "down_blocks_0_downsamplers_0_conv": "input_blocks_2_0_op",
    "mid_block_attentions_0_": "middle_block_1_",
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "add_embedding_linear_2": "label_emb_0_2",
}


@pytest.mark.parametrize("dotted", [False, True])
def test_originals_names_of_sdxl_are_known(sdxl, dotted):
    names = ["down_blocks.0.resnets.0.conv", "down_blocks.0.resnets.0.time_emb", "down_blocks.0.downsamplers.0.conv"]
    names += ["mid_block.attentions.0", "conv_in", "conv_out", "time_embedding.linear_1", "add_embedding.linear_2"]
    pairs = pairs_of(sdxl, names=names)
    assert sdxl.denoiser.config.layers_per_block == 1

    def original(path):
        name = path.replace(".", "_")
        for own, sgm in SGM.items():
            name = name.replace(own, sgm)
        return f"lora_unet_{name}"

    if dotted:
        ends = {"in_layers_2": "in_layers.2", "out_layers_3": "out_layers.3", "emb_layers_1": "emb_layers.1"}
        pairs = {path: pair for path, pair in pairs.items() if "resnets" in path}
        tensors = {
            f"diffusion_model.input_blocks.1.0.{ends[layer.split('_1_0_')[1]]}.{end}": value
            for key, value in named(pairs, original, ".lora_down.weight", ".lora_up.weight").items()
            for layer, _, end in [key.partition(".")]
        }
    else:
        tensors = named(pairs, original, ".lora_down.weight", ".lora_up.weight", torch.tensor(8.0))
    must_add(imported(saved(tensors), sdxl), pairs, 1 if dotted else 8 / RANK)


@pytest.mark.parametrize(
    "alpha",
    [
        torch.tensor(8),
        torch.tensor(8, dtype=torch.int32),
        torch.tensor([8], dtype=torch.uint8),
        torch.tensor(8.0, dtype=torch.float64),
        torch.tensor([[8.0]], dtype=torch.float64),
        torch.tensor(8.0, dtype=torch.bfloat16),
    ],
    ids=lambda alpha: f"{alpha.dtype} {list(alpha.shape)}",
)
def test_an_alpha_of_any_dtype_and_shape_scales(sd15, alpha):
    pairs = pairs_of(sd15, names=["attn1.to_q"])
    must_add(imported(saved(kohya_named(pairs, alpha)), sd15), pairs, 2)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_an_alpha_that_is_no_number_is_refused_by_name(sd15, value):
    tensors = kohya_named(pairs_of(sd15, names=["attn1.to_q"]), torch.tensor(value, dtype=torch.float64))
    with pytest.raises(AdapterRefused, match=r"to_q\.alpha holds values that are not finite"):
        imported(saved(tensors), sd15)


def test_an_alpha_under_which_weights_overflow_is_refused_by_name(sd15):
    tensors = kohya_named(pairs_of(sd15, names=["attn1.to_q"]), torch.tensor(3e38))
    with pytest.raises(AdapterRefused, match=r"lora_unet_.*to_q.*not finite"):
        imported(saved(tensors | {key: value * 1e3 for key, value in tensors.items() if "lora_up" in key}), sd15)


ZERO_NAMES = [".diff", ".diff_b", ".lora_B.bias", ".lora_up.bias"]


@pytest.mark.parametrize("name", ZERO_NAMES)
def test_what_is_added_as_it_is_does_no_harm_where_it_is_zero(sd15, name):
    pairs = pairs_of(sd15, names=["attn1.to_q", "conv1"])
    tensors = kohya_named(pairs)
    zeros = {f"{key.split('.')[0]}{name}": torch.zeros(8) for key in tensors} | {
        f"lora_unet_conv_norm_out{name}": -torch.zeros(3)
    }
    must_add(imported(saved(tensors | zeros), sd15), pairs)
    zeros[f"lora_unet_conv_norm_out{name}"][1] = 1e-30
    with pytest.raises(AdapterRefused, match=rf"lora_unet_conv_norm_out\{name} is not zero"):
        imported(saved(tensors | zeros), sd15)


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        ("lora_unet_down_blocks_7_attentions_0_proj_in", "lora_unet_down_blocks_7_attentions_0_proj_in"),
        ("lora_unet_input_blocks_99_0_in_layers_2", "lora_unet_input_blocks_99_0_in_layers_2"),
        ("diffusion_model.double_blocks.0.img_attn.qkv", r"diffusion_model\.double_blocks\.0"),
        ("transformer.single_transformer_blocks.0.proj_out", r"transformer\.single_transformer_blocks"),
        ("something.else", r"something\.else"),
    ],
)
def test_a_layer_that_the_base_has_not_is_named_as_the_file_has_it(sd15, layer, told):
    pairs = pairs_of(sd15, names=["attn1.to_q"])
    strange = {f"{layer}.lora_{side}.weight": torch.ones(4, 4) for side in ("down", "up")}
    with pytest.raises(AdapterRefused, match=told):
        imported(saved(kohya_named(pairs) | strange), sd15)


def test_a_layer_that_is_named_twice_is_refused(sd15):
    pairs = pairs_of(sd15, names=["attn1.to_q"])
    again = {path: (a.clone(), b.clone()) for path, (a, b) in pairs.items()}
    data = saved(kohya_named(pairs) | named(again, lambda path: f"unet.{path}"))
    with pytest.raises(AdapterRefused, match=r"names a layer that another one names too, 'down_blocks.*to_q'"):
        imported(data, sd15)


# text encoders


def text_layers(num, prefix="lora_te_text_model_encoder_layers_", ends=(".lora_down.weight", ".lora_up.weight")):
    generator = torch.Generator().manual_seed(4)
    return {
        f"{prefix}{number}{end}": torch.randn((2, 6) if end == ends[0] else (5, 2), generator=generator)
        for number in range(num)
        for end in ends
    }


@pytest.mark.parametrize(
    ("prefix", "ends"),
    [
        ("lora_te_text_model_encoder_layers_", (".lora_down.weight", ".lora_up.weight")),
        ("lora_te1_text_model_encoder_layers_", (".lora_down.weight", ".lora_up.weight")),
        ("lora_te2_text_model_encoder_layers_", (".lora_down.weight", ".lora_up.weight")),
        ("text_encoder.text_model.encoder.layers.", (".lora_A.weight", ".lora_B.weight")),
        (
            "text_encoder_2.text_model.encoder.layers.",
            (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        ),
        ("base_model.model.text_model.encoder.layers.", (".lora_A.default.weight", ".lora_B.default.weight")),
        ("text_encoders.clip_l.transformer.text_model.", (".lora_down.weight", ".lora_up.weight")),
        ("conditioner.embedders.0.", (".lora_down.weight", ".lora_up.weight")),
    ],
)
def test_text_encoders_are_left_out_on_wish_only_and_what_is_lost_is_said(sd15, prefix, ends):
    pairs = pairs_of(sd15, names=["attn1"])
    text = text_layers(3, prefix, ends)
    options = {"lora_alpha": 2.0} if prefix.startswith("base_model") else {}
    tensors = kohya_named(pairs, None if options else torch.tensor(8.0)) | text
    with pytest.raises(AdapterRefused, match=rf"text encoder.*3 of its {3 + len(pairs)} layers.*text_encoder=drop"):
        imported(saved(tensors), sd15, ImportOptions(**options))
    scale = 2 / RANK if options else 8 / RANK
    must_add(imported(saved(tensors), sd15, ImportOptions("drop", **options)), pairs, scale)
    lost = sum((text[f"{prefix}{n}{ends[1]}"] @ text[f"{prefix}{n}{ends[0]}"]).square().sum().item() for n in range(3))
    kept = sum((scale * b.flatten(1) @ a.flatten(1)).square().sum().item() for a, b in pairs.values())
    dropped = read_foreign(saved(tensors), sd15, ImportOptions("drop", **options)).dropped
    assert dropped.as_json() == {
        "layers": 3,
        "norm": pytest.approx(math.sqrt(lost), rel=1e-3),
        "norm_of_all": pytest.approx(math.sqrt(lost + kept), rel=1e-3),
        "norm_share": pytest.approx(math.sqrt(lost / (lost + kept)), abs=1e-3),
    }


def test_nothing_is_said_to_be_lost_where_nothing_is(sd15):
    data = saved(kohya_named(pairs_of(sd15, names=["attn1.to_q"])))
    assert "dropped" not in drawn_and_imported(data, sd15, ImportOptions("drop")).metrics()


def test_the_models_row_says_what_is_lost(sd15):
    data = saved(kohya_named(pairs_of(sd15, names=["attn1.to_q"])) | text_layers(3))
    assert drawn_and_imported(data, sd15, ImportOptions("drop")).metrics()["dropped"]["layers"] == 3


def test_a_file_of_text_encoders_alone_has_nothing_to_import(sd15):
    with pytest.raises(AdapterRefused, match="all its 3 layers are of a text encoder"):
        imported(saved(text_layers(3)), sd15, ImportOptions("drop"))


# settings


def with_settings(family, **said):
    pairs = pairs_of(family, names=["attn1.to_q"])
    text = "{" + ", ".join(f'"unet.{name}": {value}' for name, value in said.items()) + "}"
    return safetensors.torch.save(named(pairs, lambda path: f"unet.{path}"), metadata={lora.LORA_METADATA: text}), pairs


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999", "1" + "0" * 400])
@pytest.mark.parametrize("field", ["r", "lora_alpha"])
def test_settings_that_are_no_numbers_are_refused(sd15, field, number):
    data, _ = with_settings(sd15, **({"r": "4", "lora_alpha": "4"} | {field: number}))
    with pytest.raises(AdapterRefused, match=rf"lora_adapter_metadata holds {number[:8]}"):
        imported(data, sd15)


@pytest.mark.parametrize("rank", ["0", "-3", "0.5"])
def test_a_rank_in_the_settings_is_one_or_more(sd15, rank):
    data, _ = with_settings(sd15, r=rank, lora_alpha="4")
    with pytest.raises(AdapterRefused, match="lora_adapter_metadata says a rank below 1"):
        imported(data, sd15)


def test_an_alpha_in_the_settings_may_be_below_zero(sd15):
    data, pairs = with_settings(sd15, r="4", lora_alpha="-3")
    must_add(imported(data, sd15), pairs, -3 / RANK)
