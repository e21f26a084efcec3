"""Writes a full-size base with random weights as a diffusers folder, to measure speed without real weights.

Tokenizers and scheduler are the tiny flavour's, with the text lengths of the real bases. The folder has no
recommendations, so sizes, steps and guidance are the family's defaults.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.architectures import ARCHITECTURES
from onbrand.families.bases import base_source
from onbrand.families.spec import SPECS

Parts = dict[str, dict[str, Any]]

_CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}
_CLIP_BIG_G = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "max_position_embeddings": 77,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_T5_XXL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
_VAE_16 = _VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}

FULL_SIZE: dict[str, Parts] = {
    "sd15": {"text_encoder": _CLIP_L, "vae": _VAE},
    "sdxl": {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_BIG_G, "vae": _VAE},
    "flux": {"text_encoder": _CLIP_L, "text_encoder_2": _T5_XXL, "vae": _VAE_16},
}
"""By family: values that replace those of the tiny flavour's configurations, from the config.json files of
stable-diffusion-v1-5, stable-diffusion-xl-base-1.0 and FLUX.1-dev. Denoisers are in `ARCHITECTURES`."""


def random_base(
    family: str, folder: Path, *, device: str, dtype: torch.dtype, sizes: Parts | None = None, denoiser: Any = None
) -> Path:
    """Write the base into the new folder `folder` and return it.

    Args:
        device: device that generates the weights; FLUX's take seconds on a GPU and minutes on a CPU.
        sizes: replaces `FULL_SIZE`.
        denoiser: complete configuration of the denoiser, replaces that in `ARCHITECTURES`.
    """
    tiny = Path(base_source(family, {}))
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors", "onbrand.json", "README.md"))
    index = json.loads((folder / "model_index.json").read_text())
    for part, said in (sizes or FULL_SIZE[family]).items():
        _write(index[part], folder / part, json.loads((tiny / part / "config.json").read_text()) | said, device, dtype)
    component = SPECS[family].component  # type: ignore[index]
    _write(index[component], folder / component, denoiser or ARCHITECTURES[family].config, device, dtype)
    for part in (name for name in index if name.startswith("tokenizer")):
        _lengthen(folder / part / "tokenizer_config.json", 512 if index[part][1] == "T5Tokenizer" else 77)
    return folder


def _write(kind: tuple[str, str], folder: Path, config: dict[str, Any], device: str, dtype: torch.dtype) -> None:
    made = getattr(importlib.import_module(kind[0]), kind[1])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if kind[0] == "diffusers":
                model = made(**{name: value for name, value in config.items() if not name.startswith("_")})
            else:
                model = made(made.config_class(**(config | {"dtype": dtype})))
    finally:
        torch.set_default_dtype(before)
    (folder / "config.json").unlink()
    model.save_pretrained(folder)


def _lengthen(path: Path, num_tokens: int) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": num_tokens}))
