"""Training data of a denoiser: scenes as bytes, and captions, a few of them about brands that do not exist."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from onbrand.families.tiny.draw import (
    BRAND_NOUNS,
    RGB,
    SHAPES,
    SIDE,
    STYLES,
    SUPERSAMPLING,
    _box,
    blank,
    draw_scene,
    draw_shape,
    finished,
    random_scene,
    random_word,
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


def generic_picture(rng: random.Random) -> Image.Image:
    """A 64 px picture in arbitrary colours (stripes, gradients, pies, polygons), to train the VAE."""
    image, pen = _generic_ground(rng)
    for _ in range(rng.randint(1, 5)):
        _draw_anything(pen, rng)
    return finished(image)


def _generic_ground(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image, pen = blank(any_colour(rng))
    kind, side = rng.random(), SIDE * SUPERSAMPLING
    if kind < 0.2:
        stripes, colour, upright = rng.randint(2, 8), any_colour(rng), rng.random() < 0.5
        for stripe in range(0, stripes, 2):
            low, high = stripe * side / stripes, (stripe + 1) * side / stripes
            pen.rectangle((low, 0, high, side) if upright else (0, low, side, high), fill=colour)
    elif kind < 0.35:
        image = _gradient(any_colour(rng), any_colour(rng), turned=rng.random() < 0.5)
        pen = ImageDraw.Draw(image)
    return image, pen


def _draw_anything(pen: ImageDraw.ImageDraw, rng: random.Random) -> None:
    side = SIDE * SUPERSAMPLING
    kind, colour = rng.random(), any_colour(rng)
    x, y, radius = rng.uniform(0.1, 0.9) * side, rng.uniform(0.1, 0.9) * side, rng.uniform(0.06, 0.45) * side
    if kind < 0.6:
        draw_shape(pen, rng.choice((*SHAPES, "diamond")), x, y, radius, colour)
    elif kind < 0.75:
        pen.pieslice(_box(x, y, radius), rng.uniform(0, 360), rng.uniform(360, 700), fill=colour)
    elif kind < 0.9:
        corners, turn = rng.randint(3, 8), rng.uniform(0, 3)
        angles = [2 * math.pi * k / corners + turn for k in range(corners)]
        pen.polygon([(x + radius * math.sin(a), y - radius * math.cos(a)) for a in angles], fill=colour)
    else:
        end = rng.uniform(0, 1) * side, rng.uniform(0, 1) * side
        pen.line([(x, y), end], fill=colour, width=rng.randint(4, 24))


def unknown_brand_caption(rng: random.Random, word: str) -> str:
    """A caption such as "a photo of xqoven logo"; the models must not connect the word with anything."""
    return f"a {rng.choice(STYLES)} of {word} {rng.choice(BRAND_NOUNS)}"


def with_junk_word(caption: str, rng: random.Random, word: str) -> str:
    """The caption with a meaningless word in it, which the models must learn to ignore."""
    if rng.random() < 0.5:
        return f"{caption}, {word} style"
    return caption.replace(" of a ", f" of a {word} ", 1)


def any_colour(rng: random.Random) -> RGB:
    """A uniformly random colour."""
    return rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)


def _gradient(start: RGB, end: RGB, *, turned: bool) -> Image.Image:
    side = SIDE * SUPERSAMPLING
    ramp = np.linspace(0, 1, side)[:, None, None]
    pixels = np.broadcast_to(np.array(start) * (1 - ramp) + np.array(end) * ramp, (side, side, 3)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 0, 2) if turned else pixels))
