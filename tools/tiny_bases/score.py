"""Measures how often a tiny model draws its prompt: colour, shape and ground, judged from the pixels."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onbrand.families.tiny.draw import (
    COLOURS,
    GROUNDS,
    SHAPES,
    SIDE,
    SUPERSAMPLING,
    blank,
    draw_shape,
    finished,
    held_out,
)

if TYPE_CHECKING:
    from onbrand.families.family import Family

Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
Triple = tuple[str, str, str]  # colour, shape, ground

SMALLEST = 20  # pixels a shape must cover
COMPARED_SIDE = 32
ROWS_AT_ONCE = 25


def triples(*, held: bool) -> list[tuple[str, str, str]]:
    """All drawable (colour, shape, ground) triples on one side of the hold-out."""
    every = ((c, s, g) for c in COLOURS for s in SHAPES for g in GROUNDS if c != g)
    return [triple for triple in every if held_out(*triple) == held]


def prompts(num: int, seed: int, *, held: bool) -> list[tuple[str, Triple]]:
    """`num` prompts with their (colour, shape, ground), from the seen or from the held-out triples."""
    rng = random.Random(seed)
    choices = triples(held=held)
    wanted = [rng.choice(choices) for _ in range(num)]
    return [(f"a photo of a {c} {s} on a {g} background", (c, s, g)) for c, s, g in wanted]


def score(family: str, folder: Path | None = None, n: int = 100, seed: int = 7) -> dict[str, Any]:
    """Accuracy of `n` pictures of seen and `n` of held-out triples, drawn as the base recommends.

    Args:
        family: "sd15", "sdxl" or "flux".
        folder: a diffusers folder with onbrand.json; None: the shipped one.

    Returns:
        {"family", "n", "seen": {...}, "held_out": {...}}, each part as `judge` gives it.
    """
    from onbrand.families.loading import load_family
    from onbrand.families.tiny import tiny_base

    base = load_family(family, folder or tiny_base(family))
    parts = {name: score_base(base, prompts(n, seed, held=name == "held_out"), seed) for name in ("seen", "held_out")}
    return {"family": family, "n": n, **parts}


def score_base(base: Family, asked: Sequence[tuple[str, Triple]], seed: int) -> dict[str, float]:
    """`judge` of one picture for each prompt, with the adapter that is attached to the base, if any."""
    pictures = paint(base, [prompt for prompt, _ in asked], seed)
    return judge(pictures, [triple for _, triple in asked])


def paint(base: Family, asked: Sequence[str], seed: int) -> list[Image.Image]:
    """One picture per prompt; picture k has the seed `seed + k`."""
    from onbrand.families.family import draw

    pictures = []
    for start in range(0, len(asked), ROWS_AT_ONCE):
        chunk = asked[start : start + ROWS_AT_ONCE]
        images_BCHW = draw(base, chunk, [seed + start + row for row in range(len(chunk))])
        pixels = (images_BCHW * 255).round().byte().permute(0, 2, 3, 1).numpy()
        pictures += [Image.fromarray(picture) for picture in pixels]
    return pictures


def judge(images: Sequence[Image.Image], wanted: Sequence[Triple]) -> dict[str, float]:
    """Shares of pictures right in "colour", "shape", "ground" and "all3", and the mean "iou" with that shape."""
    recognised = [recognise(np.asarray(image.convert("RGB"))) for image in images]
    right_N3 = np.array([_matches(seen, asked) for (seen, _), asked in zip(recognised, wanted, strict=True)])
    shares = dict(zip(("colour", "shape", "ground"), right_N3.mean(0).tolist(), strict=True))
    shares |= {"all3": float(right_N3.all(1).mean()), "iou": float(np.mean([iou for _, iou in recognised]))}
    return {name: round(share, 3) for name, share in shares.items()}


def _matches(seen: tuple[str | None, str | None, str], asked: Triple) -> list[bool]:
    return [one == other for one, other in zip(seen, asked, strict=True)]


def recognise(pixels: Pixels) -> tuple[tuple[str | None, str | None, str], float]:
    """((colour, shape, ground), intersection over union with the ideal shape) of one 64 px picture, (H, W, 3)."""
    foreground, ground = _foreground(pixels)
    blob = _largest_blob(foreground)
    if blob.sum() < SMALLEST:
        return (None, None, ground), 0.0
    inner = _eroded(blob)
    colour = nearest_colour(np.median(pixels[inner if inner.sum() > SMALLEST / 2 else blob], axis=0))
    overlaps = {shape: _overlap(_normalised(blob), ideal) for shape, ideal in _ideal_shapes().items()}
    shape = max(overlaps, key=lambda name: overlaps[name])
    return (colour, shape, ground), overlaps[shape]


def nearest_colour(rgb: NDArray[Any]) -> str:
    """The name of the colour in `GROUNDS` nearest to `rgb`."""
    palette = np.array(list(GROUNDS.values()), dtype=float)
    return list(GROUNDS)[int(((palette - rgb.astype(float)) ** 2).sum(1).argmin())]


def _foreground(pixels: Pixels) -> tuple[Mask, str]:
    """The pixels that differ from the median of the outer three rows and columns, and the name of that ground."""
    values = pixels.astype(float)
    edge = np.concatenate([strip.reshape(-1, 3) for strip in (values[:3], values[-3:], values[:, :3], values[:, -3:])])
    ground = np.median(edge, axis=0)
    distance = np.sqrt(((values - ground) ** 2).sum(2))
    threshold = max(35.0, 0.5 * float(np.percentile(distance, 98)))
    return distance > threshold, nearest_colour(ground)


def _largest_blob(mask: Mask) -> Mask:
    """The largest 4-connected part of a mask."""
    remaining, largest = mask.copy(), np.zeros_like(mask)
    while remaining.sum() > largest.sum():
        blob = _flooded(remaining, np.argwhere(remaining)[0])
        remaining &= ~blob
        largest = blob if blob.sum() > largest.sum() else largest
    return largest


def _flooded(mask: Mask, start: NDArray[np.intp]) -> Mask:
    blob = np.zeros_like(mask)
    waiting = [(int(start[0]), int(start[1]))]
    blob[waiting[0]] = True
    while waiting:
        row, column = waiting.pop()
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= r < mask.shape[0] and 0 <= c < mask.shape[1] and mask[r, c] and not blob[r, c]:
                blob[r, c] = True
                waiting.append((r, c))
    return blob


def _eroded(mask: Mask) -> Mask:
    shifted = [np.roll(mask, step, axis) for axis in (0, 1) for step in (1, -1)]
    return np.logical_and.reduce([mask, *shifted])


def _normalised(blob: Mask) -> Mask:
    """The blob's bounding square, scaled to 32 px."""
    rows, columns = np.where(blob)
    middle = (rows.min() + rows.max() + 1) / 2, (columns.min() + columns.max() + 1) / 2
    half = max(rows.max() + 1 - rows.min(), columns.max() + 1 - columns.min()) / 2
    top, left, bottom, right = (round(centre + sign * half) for sign in (-1, 1) for centre in middle)
    cut = Image.fromarray(blob.astype(np.uint8) * 255).crop((left, top, right, bottom))
    return np.asarray(cut.resize((COMPARED_SIDE,) * 2, Image.Resampling.BILINEAR)) > 127


def _overlap(mask: Mask, other: Mask) -> float:
    return float((mask & other).sum() / max(1, (mask | other).sum()))


@cache
def _ideal_shapes() -> dict[str, Mask]:
    ideals = {}
    for shape in SHAPES:
        image, pen = blank((255, 255, 255))
        middle = SIDE * SUPERSAMPLING / 2
        draw_shape(pen, shape, middle, middle, 0.32 * 2 * middle, (0, 0, 0))
        ideals[shape] = _normalised(_foreground(np.asarray(finished(image)))[0])
    return ideals
