"""Sample pictures: fixed prompts and seeds, drawn from the averaged weights, so that two steps can be compared."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from onbrand.families.family import draw
from onbrand.training.layers import frozen_base
from onbrand.training.loop import Trainer

NUM_PROMPTS = 2
"""How many captions serve as prompts when the owner gave none."""


def sample_prompts(wishes: Sequence[str], captions: Sequence[str]) -> tuple[str, ...]:
    """The owner's prompts, else the first different captions."""
    return tuple(wishes) or tuple(dict.fromkeys(captions))[:NUM_PROMPTS]


def draw_samples(trainer: Trainer, prompts: Sequence[str]) -> Tensor:
    """[P, 3, H, W] in 0..1, one per prompt; picture i always has the seed of the job plus i."""
    with trainer.averaged():
        return _drawn(trainer, prompts)


def draw_base(trainer: Trainer, prompts: Sequence[str]) -> Tensor:
    """The same pictures, of the same seeds, by the base alone: what the adapter's are to be seen beside."""
    with frozen_base(trainer.family.denoiser):
        return _drawn(trainer, prompts)


def _drawn(trainer: Trainer, prompts: Sequence[str]) -> Tensor:
    plan = trainer.plan
    seeds = [plan.seed + number for number in range(len(prompts))]
    return draw(trainer.family, prompts, seeds, height=plan.resolution, width=plan.resolution)


def png(picture_CHW: Tensor) -> bytes:
    """The picture (0..1) as a file."""
    pixels = (picture_CHW * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
