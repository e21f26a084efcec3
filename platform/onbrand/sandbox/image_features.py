"""Measures an image: a few numbers that show duplicates, blur and transparency without keeping the image.

Runs in the checking child. `onbrand.services.data_checks` interprets the numbers for training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from onbrand.sandbox.results import ImageFeatures

HASH_SIDE = 16
COLOUR_SIDE = 8
_SIDES = (32, 64, 128, 256, 512, 1024)
_SCALED_PIXELS_MAX = 2**22
_OPAQUE, _VISIBLE = 250, 26
_STRIP_ROWS = 256
_ROUNDING = 2


def measure(upright: Image.Image) -> ImageFeatures:
    """Measure a decoded image (8-bit sRGB, upright), with transparent parts on white, as in training."""
    width, height = upright.size
    digest, (opaque, visible) = _digest(upright), _alpha(upright)
    small = _on_white(_scaled(upright, _largest_side(width, height)))
    luminance = small.convert("L")
    sides, sharpness = _sharpness(luminance)
    return ImageFeatures(
        width=width,
        height=height,
        digest=digest,
        dhash=_dhash(luminance),
        colours=small.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX).tobytes().hex(),
        sides=sides,
        sharpness=sharpness,
        contrast=round(float(np.asarray(luminance, dtype=np.float32).std()) / 255, 6),
        opaque=opaque,
        visible=visible,
    )


def _digest(image: Image.Image) -> str:
    """SHA-256 of the pixels, computed in strips to avoid a second copy of the image in memory."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    for top in range(0, image.height, _STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(image.height, top + _STRIP_ROWS)))
        digest.update(strip.convert("RGBA").tobytes())
    return digest.hexdigest()


def _alpha(image: Image.Image) -> tuple[float, float]:
    """Shares of opaque and of visible pixels."""
    if image.mode != "RGBA":
        return 1.0, 1.0
    counts = image.getchannel("A").histogram()
    total = sum(counts)
    return round(sum(counts[_OPAQUE:]) / total, 6), round(sum(counts[_VISIBLE:]) / total, 6)


def _largest_side(width: int, height: int) -> int:
    """The largest of `_SIDES` that does not enlarge the image and keeps it within `_SCALED_PIXELS_MAX`."""
    shorter, longer = sorted((width, height))
    fitting = (side for side in _SIDES if side <= shorter and side * side * longer / shorter <= _SCALED_PIXELS_MAX)
    return max(fitting, default=shorter)


def _scaled(image: Image.Image, side: int) -> Image.Image:
    """The image with `side` as its shorter side."""
    scale = side / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    return paper.convert("RGB")


def _dhash(luminance: Image.Image) -> str:
    """Difference hash of 16 x 17 means: one bit per pair of neighbours (Krawetz 2013, "Kind of Like That").

    A bit is set if the right one is brighter by more than rounding; otherwise bits of plain areas would be noise.
    """
    small = luminance.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    means = np.asarray(small, dtype=np.int16)
    return np.packbits(means[:, 1:] - means[:, :-1] > _ROUNDING).tobytes().hex()


def _sharpness(luminance: Image.Image) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000) of an image pyramid, ascending."""
    pairs = [(min(image.size), _laplacian_variance(image)) for image in _pyramid(luminance)]
    pairs.reverse()
    return tuple(side for side, _ in pairs), tuple(variance for _, variance in pairs)


def _pyramid(image: Image.Image) -> Iterator[Image.Image]:
    """The image at its size, at half of it, and so on down to the smallest of the sides."""
    yield image
    while min(image.size) // 2 >= _SIDES[0]:
        image = _scaled(image, min(image.size) // 2)
        yield image


def _laplacian_variance(image: Image.Image) -> float:
    """Variance of f(x-1, y) + f(x+1, y) + f(x, y-1) + f(x, y+1) - 4 f(x, y), in luminance 0..1."""
    f = np.asarray(image, dtype=np.float32) / 255
    if min(f.shape) < 3:
        return 0.0
    laplacian = f[1:-1, :-2] + f[1:-1, 2:] + f[:-2, 1:-1] + f[2:, 1:-1] - 4 * f[1:-1, 1:-1]
    return round(float(laplacian.var()), 9)
