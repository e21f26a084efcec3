"""An adapter in kohya's format equals the canonical one: plain diffusers draws the same image with both."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
import safetensors.torch
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

from onbrand.errors import AdapterRefused
from onbrand.families.family import Family
from onbrand.families.lora import LORA_METADATA, serialize
from onbrand.families.lora_kohya import kohya_file
from onbrand.families.spec import SPECS
from onbrand.lora_names import must_be_plain_lora
from onbrand.safetensors_header import must_be_plain_safetensors
from tools.harness.tiny_families import adapter_bytes, family_of

HEADER = {"modelspec.title": "a title", "modelspec.trigger_phrase": "zilgo", "ss_network_dim": "4"}


def kohya(data: bytes, family: str) -> bytes:
    return b"".join(kohya_file(data, family))


def rewritten(data: bytes, keep=lambda key: True, dtype: torch.dtype = torch.float32) -> bytes:
    """The same adapter with some of its tensors, as another dtype."""
    size = struct.unpack("<Q", data[:8])[0]
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    tensors = {key: value.to(dtype) for key, value in safetensors.torch.load(data).items() if keep(key)}
    config = json.loads(metadata[LORA_METADATA])
    [targets] = [key for key in config if key.endswith(".target_modules")]
    config[targets] = sorted({key.split(".", 1)[1].rsplit(".", 2)[0] for key in tensors})
    metadata[LORA_METADATA] = json.dumps(config)
    return safetensors.torch.save(tensors, metadata=metadata | HEADER)


def updates(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """B A x of every layer of a file with diffusers' keys, for two fixed x."""
    paths = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    found = {}
    for path in paths:
        a, b = tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"]
        found[path] = b @ (a @ torch.randn(a.shape[1], 2, generator=torch.Generator().manual_seed(1)))
    return found


@pytest.mark.parametrize("preset", ["attention", "all"])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_unets_draw_the_same_picture_with_both_files(name, preset, diffusers_picture):
    family = family_of(name)
    data = adapter_bytes(family, 4, 0, preset)
    told = {"prompt": "photo of a red circle", "num_inference_steps": 2, "height": 64, "width": 64}
    canonical = diffusers_picture(family, data, 1.0, 3, **told)
    theirs = diffusers_picture(family, kohya(data, name), 1.0, 3, **told)
    plain = diffusers_picture(family, None, 1.0, 3, **told)
    torch.testing.assert_close(theirs, canonical, atol=1e-4, rtol=0)
    assert (canonical - plain).abs().max() > 0.05, "the adapter must matter, or nothing was compared"


def is_of_double_blocks(key: str) -> bool:
    return key.startswith("transformer.transformer_blocks.")


def test_flux_draws_the_same_picture_with_both_files(diffusers_picture):
    """On the layers whose widths diffusers' reader takes from the file; the others are below, at FLUX' own width."""
    family = family_of("flux")
    data = rewritten(adapter_bytes(family, 4, 0, "strong"), is_of_double_blocks)
    told = {"prompt": "photo of a red circle", "num_inference_steps": 2, "height": 64, "width": 64}
    canonical = diffusers_picture(family, data, 1.0, 3, **told)
    theirs = diffusers_picture(family, kohya(data, "flux"), 1.0, 3, **told)
    plain = diffusers_picture(family, None, 1.0, 3, **told)
    torch.testing.assert_close(theirs, canonical, atol=1e-4, rtol=0)
    assert (canonical - plain).abs().max() > 0.05, "the adapter must matter, or nothing was compared"


@pytest.mark.parametrize("preset", ["attention", "strong"])
def test_flux_single_blocks_of_full_width_are_read_as_the_same_layers(preset):
    """The layers, not the ranks: diffusers gives all parts of an incomplete fused layer the rank of the whole."""
    with torch.device("meta"):
        bone = FluxTransformer2DModel(num_layers=0, num_single_layers=1, in_channels=16)
    layers = [name for name, module in bone.named_modules() if isinstance(module, torch.nn.Linear)]
    wanted = [name for name in layers if name.startswith("single") and name.endswith(SPECS["flux"].targets[preset])]
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in wanted:
        weight = bone.get_submodule(name).weight
        state[f"{name}.lora_A.weight"] = torch.randn(3, weight.shape[1], generator=generator)
        state[f"{name}.lora_B.weight"] = torch.randn(weight.shape[0], 3, generator=generator)
    data = canonical_of(state)
    read = _convert_kohya_flux_lora_to_diffusers(safetensors.torch.load(kohya(data, "flux")))
    ours, theirs = updates(safetensors.torch.load(data)), updates(read)
    nothing = "transformer.single_transformer_blocks.0.proj_mlp"
    if preset == "attention":
        assert not theirs.pop(nothing).any(), "what has no update gets none"
    assert set(theirs) == set(ours)
    for path, update in ours.items():
        torch.testing.assert_close(theirs[path], update, atol=1e-3, rtol=1e-4)


def canonical_of(state: dict[str, torch.Tensor]) -> bytes:
    """A published FLUX file of these tensors."""

    class Spec:
        spec = SPECS["flux"]

    bone: Family = Spec()  # type: ignore[assignment]
    rank = next(iter(state.values())).shape[0]
    return serialize(bone, state, rank, SPECS["flux"].targets["attention"], HEADER)


def test_every_layer_that_can_be_trained_has_a_kohya_name(family):
    data = adapter_bytes(family, 2, 0, "all")
    name = family.spec.name
    written = must_be_plain_safetensors(kohya(data, name))
    pairs = must_be_plain_lora(written).pairs
    assert all(pair.layer.startswith("lora_unet_") and pair.alpha for pair in pairs)
    canonical = must_be_plain_lora(must_be_plain_safetensors(data)).pairs
    num_fused = {"sd15": 0, "sdxl": 0}.get(name)
    if num_fused is not None:
        assert len(pairs) == len(canonical)
    else:
        assert len(canonical) - len(pairs) == 2 * 2 * 2 + 4 * 3  # two qkv a double block, qkv and mlp a single one


def test_the_file_has_its_own_hash_and_says_nothing_that_only_diffusers_reads(family):
    data = rewritten(adapter_bytes(family, 2, 0, "attention"))
    written = kohya(data, family.spec.name)
    header = must_be_plain_safetensors(written).metadata
    tensors = safetensors.torch.load(written)
    digest = hashlib.sha256(b"".join(tensors[key].numpy().tobytes() for key in sorted(tensors))).hexdigest()
    assert header["modelspec.hash_sha256"] == f"0x{digest}"
    assert header["modelspec.trigger_phrase"] == "zilgo"
    assert "lora_adapter_metadata" not in header
    assert header["ss_network_module"] == ("networks.lora_flux" if family.spec.name == "flux" else "networks.lora")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_bits(dtype):
    data = rewritten(adapter_bytes(family_of("flux"), 2, 0, "strong"), is_of_double_blocks, dtype)
    ours = safetensors.torch.load(data)
    theirs = safetensors.torch.load(kohya(data, "flux"))
    name = "lora_unet_double_blocks_1_txt_attn_qkv"
    up, down = theirs[f"{name}.lora_up.weight"], theirs[f"{name}.lora_down.weight"]
    assert (up.dtype, theirs[f"{name}.alpha"].item(), up.shape[1]) == (dtype, 6.0, 6)
    width = up.shape[0] // 3
    key = "transformer.transformer_blocks.1.attn.add_k_proj"
    assert torch.equal(up[width : 2 * width, 2:4], ours[f"{key}.lora_B.weight"])
    assert torch.equal(down[2:4], ours[f"{key}.lora_A.weight"])
    assert not up[width : 2 * width, :2].any()


def test_a_file_whose_alpha_is_not_its_rank_is_not_written():
    data = adapter_bytes(family_of("sd15"), 4, 0, "attention")
    halved = data.replace(b'\\"unet.lora_alpha\\": 4', b'\\"unet.lora_alpha\\": 2')
    assert halved != data
    with pytest.raises(AdapterRefused, match="alpha is not its rank"):
        kohya(halved, "sd15")
