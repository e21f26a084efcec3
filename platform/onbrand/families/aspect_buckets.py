"""Aspect-ratio buckets: the training size of an image, and its crop. Free of torch and of images.

After the buckets of NovelAI (2022) and of kohya's trainers: many shapes of about the same area, so that little is
cropped away and nothing is enlarged. Sizes are (height, width) in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from onbrand.errors import InvalidInput
from onbrand.families.spec import FamilySpec

FULL_STEP, FULL_SIDE = 64, 512
"""Sides are multiples of 64 pixels for a base of at least 512 pixels; proportionally less for a smaller base."""
_LEAST_PART = 4
"""The least side of a bucket is the resolution divided by this."""


@dataclass(frozen=True, slots=True)
class Crop:
    """How an image is fitted to its bucket: scaled, then cropped about its middle.

    Args:
        original: the image's own size.
        size: the bucket.
        top, left: position of the bucket in the scaled image.
    """

    original: tuple[int, int]
    size: tuple[int, int]
    top: int
    left: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """SDXL's six numbers: original size, crop, target size (Podell et al. 2023, sec. 2.2)."""
        return (*self.original, self.top, self.left, *self.size)


def is_full_size(base_resolution: int) -> bool:
    """Whether a base that draws at `base_resolution` has its family's real size, and is not a tiny base."""
    return base_resolution >= FULL_SIDE


def bucket_step(spec: FamilySpec, base_resolution: int) -> int:
    """Divisor of all bucket sides, in pixels, for a base that draws at `base_resolution`."""
    wanted = FULL_STEP * min(base_resolution, FULL_SIDE) / FULL_SIDE
    return max(1, math.ceil(wanted / spec.size_multiple)) * spec.size_multiple


def smallest_side(resolution: int, step: int) -> int:
    """The least allowed side of an image for training at `resolution`."""
    return max(step, resolution // _LEAST_PART // step * step)


@cache
def buckets(resolution: int, step: int) -> tuple[tuple[int, int], ...]:
    """All sizes with an area of at most, and nearly, resolution^2, up to four times as long as wide."""
    area, sizes = resolution * resolution, set()
    for short in range(max(step, resolution // 2 // step * step), resolution + 1, step):
        long = min(2 * resolution, area // short) // step * step
        sizes |= {(short, long), (long, short)}
    return tuple(sorted(size for size in sizes if min(size) > 0))


def crop_of(height: int, width: int, resolution: int, step: int, name: str = "the picture") -> Crop:
    """The crop to the bucket of the nearest shape, or to less where the image is smaller: nothing is ever enlarged.

    Raises InvalidInput: a side is less than `smallest_side`; the message names the image.
    """
    least = smallest_side(resolution, step)
    if min(height, width) < least:
        raise InvalidInput(
            f"{name} is {width} x {height} pixels; training at {resolution} needs at least {least} on each side: "
            "upload a larger one, or choose a lower resolution",
            param="training_asset_ids",
        )
    target = min(buckets(resolution, step), key=lambda size: _misfit(size, height / width))
    size = (min(target[0], height // step * step), min(target[1], width // step * step))
    scale = max(size[0] / height, size[1] / width)
    top, left = ((round(side * scale) - kept) // 2 for side, kept in zip((height, width), size, strict=True))
    return Crop((height, width), size, max(0, top), max(0, left))


def _misfit(size: tuple[int, int], shape: float) -> tuple[float, int, int]:
    """Sort key: distance of a bucket's shape from `shape`; ties go to the larger, then the longer bucket."""
    return round(abs(math.log(size[0] / size[1] / shape)), 9), -size[0] * size[1], -max(size)
