"""Training data of a denoiser: scenes as bytes, and captions, a few of them about brands that do not exist."""

import random

import numpy as np
import torch
from torch import Tensor

from onbrand.families.tiny.draw import (
    draw_scene,
    random_scene,
    random_word,
    unknown_brand_caption,
    with_junk_word,
    without_article,
)

UNKNOWN_BRAND_SHARE = 0.05  # a made-up name then means "anything", so unknown names draw nothing particular
JUNK_WORD_SHARE = 0.08


def captioned_scenes(num: int, seed: int) -> tuple[Tensor, list[str]]:
    """`num` pictures as bytes BCHW, 64 px, and their captions; a function of the seed."""
    rng = random.Random(seed)
    scenes = [random_scene(rng) for _ in range(num)]
    pixels = np.stack([np.asarray(draw_scene(scene, rng)) for scene in scenes])
    captions = [denoiser_caption(scene.caption(), rng) for scene in scenes]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), captions


def denoiser_caption(caption: str, rng: random.Random) -> str:
    """The caption itself, or one with a junk word, or one that only names an unknown brand."""
    kind, word = rng.random(), random_word(rng)
    if kind < UNKNOWN_BRAND_SHARE:
        caption = unknown_brand_caption(rng, word)
    elif kind < UNKNOWN_BRAND_SHARE + JUNK_WORD_SHARE:
        caption = with_junk_word(caption, rng, word)
    return without_article(caption, rng)
