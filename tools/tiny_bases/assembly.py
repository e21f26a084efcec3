"""Assembles parts to a pipeline and a plain diffusers folder in fp16, with `onbrand.json` beside it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FluxPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5TokenizerFast,
)

from tools.tiny_bases.architectures import new_denoiser, new_scheduler
from tools.tiny_bases.recommendations import recommendations

# Folders of the earlier stages in the work folder.
CLIP, CLIP_NARROW, CLIP_PROJECTING, T5 = "clip", "clip_narrow", "clip_projecting", "t5"
VAE, TOKENIZER, T5_TOKENIZER = "vae", "tokenizer", "tokenizer_2"


def new_pipeline(family: str, work: Path) -> DiffusionPipeline:
    """The family's pipeline from the parts in `work`, with an untrained denoiser."""
    tokenizer = CLIPTokenizer.from_pretrained(work / TOKENIZER)
    shared: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(work / VAE),
        "tokenizer": tokenizer,
        "scheduler": new_scheduler(family),
    }
    if family == "sd15":
        encoder = CLIPTextModel.from_pretrained(work / CLIP)
        return StableDiffusionPipeline(
            **shared,
            text_encoder=encoder,
            unet=new_denoiser(family),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    if family == "sdxl":
        return StableDiffusionXLPipeline(
            **shared,
            text_encoder=CLIPTextModel.from_pretrained(work / CLIP_NARROW),
            text_encoder_2=CLIPTextModelWithProjection.from_pretrained(work / CLIP_PROJECTING),
            tokenizer_2=tokenizer,
            unet=new_denoiser(family),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    return FluxPipeline(
        **shared,
        text_encoder=CLIPTextModel.from_pretrained(work / CLIP),
        text_encoder_2=T5EncoderModel.from_pretrained(work / T5),
        tokenizer_2=T5TokenizerFast.from_pretrained(work / T5_TOKENIZER),
        transformer=new_denoiser(family),
    )


def save_base(pipeline: DiffusionPipeline, family: str, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write the pipeline, converted to `dtype`, and its recommendations. Readers see the old or the new one."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.to(dtype=dtype, memory_format=torch.contiguous_format)
    partial, previous = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("partial", "previous"))
    for leftover in (partial, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(partial)
    _forget_origin(partial)
    (partial / "onbrand.json").write_text(json.dumps(recommendations(family), indent=2) + "\n")
    if folder.exists():
        folder.rename(previous)
    partial.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)
    return folder


def _forget_origin(folder: Path) -> None:
    """Remove from the configurations the paths that their parts were loaded from."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def warm_start(denoiser: nn.Module, known: Mapping[str, Tensor]) -> int:
    """Copy every tensor of equal name and shape; returns the number of copied weights."""
    fitting = {
        name: own for name, own in denoiser.named_parameters() if name in known and known[name].shape == own.shape
    }
    with torch.no_grad():
        for name, own in fitting.items():
            own.copy_(known[name])
    return sum(own.numel() for own in fitting.values())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of a base."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
