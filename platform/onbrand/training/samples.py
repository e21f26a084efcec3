"""Sample pictures of the averaged weights, with fixed prompts and seeds, so that steps can be compared."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from onbrand.families.family import draw
from onbrand.training.kernels.lora_layers import frozen_base
from onbrand.training.ray.collectives import Collectives, shared
from onbrand.training.trainer import Trainer

NUM_PROMPTS = 2
"""Number of captions that serve as prompts if the owner gave none."""


def sample_prompts(wishes: Sequence[str], captions: Sequence[str]) -> tuple[str, ...]:
    """The owner's prompts, else the first different captions."""
    return tuple(wishes) or tuple(dict.fromkeys(captions))[:NUM_PROMPTS]


def draw_samples(trainer: Trainer, prompts: Sequence[str]) -> Tensor:
    """[P, 3, H, W] in 0..1, one per prompt, on every worker; picture i always has the seed of the job plus i."""
    with trainer.averaged():
        return _drawn(trainer, prompts)


def draw_base(trainer: Trainer, prompts: Sequence[str]) -> Tensor:
    """Samples with the same prompts and seeds from the base without the adapter, for comparison."""
    with frozen_base(trainer.family.denoiser):
        return _drawn(trainer, prompts)


def _drawn(trainer: Trainer, prompts: Sequence[str]) -> Tensor:
    """Workers divide the samples. Each is drawn alone, so that it is bit-identical for any number of workers."""
    plan, side = trainer.plan, trainer.plan.resolution

    def drawn(number: int) -> Mapping[str, Tensor]:
        [picture] = draw(trainer.family, [prompts[number]], [plan.seed + number], height=side, width=side)
        return {"picture": picture}

    sharers = (
        Collectives() if trainer.savings.sharded else trainer.collectives
    )  # sharded: all workers draw every sample together
    return torch.stack([made["picture"] for made in shared(sharers, range(len(prompts)), drawn)])


def png(picture_CHW: Tensor) -> bytes:
    """The picture (0..1) as a PNG file."""
    pixels = (picture_CHW * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
