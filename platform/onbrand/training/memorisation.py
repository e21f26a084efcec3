"""Whether sample pictures are copies of single pictures that were trained on, rather than new ones of the brand.

After Carlini et al. 2023, "Extracting Training Data from Diffusion Models": pictures are compared tile by tile, and the
tile that differs most counts, so that a common ground does not make everything alike; and nearness is relative, for
all pictures of one logo are near each other: a copy is nearer to a picture than half (their alpha) of what its
neighbours are. They take the 50 nearest of 50,000 as neighbours; a brand has a dozen pictures of several kinds, so here
it is the one that is nearest to the picture itself. Shapes: P pictures, S x S pixels of a small copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

SIDE, TILES = 32, 4
ALPHA = 0.5
FEWEST = 4
"""Of fewer different pictures nothing can be said."""
_SAME = 1e-3


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a sample is nearest to.

    Args:
        row: which of the pictures.
        distance: in units of half the distance between that picture and its own neighbour; below 1 is a copy.
    """

    row: int
    distance: float

    @property
    def is_copy(self) -> bool:
        return self.distance < 1


def thumbnail(picture_3HW: Tensor) -> Tensor:
    """[3, S, S] of a picture of any size: the mean of what falls into each pixel."""
    return functional.adaptive_avg_pool2d(picture_3HW.float().cpu(), SIDE)


def distances(sample_3SS: Tensor, pictures_P3SS: Tensor) -> Tensor:
    """[P]: root of the mean squared difference in the tile that differs most."""
    squared = (pictures_P3SS - sample_3SS).pow(2).mean(1, keepdim=True)
    return functional.avg_pool2d(squared, SIDE // TILES).flatten(1).amax(1).sqrt()


def nearest(picture_3HW: Tensor, pictures_P3SS: Tensor) -> Likeness | None:
    """What `picture_3HW` (-1..1) is nearest to among small copies of all pictures; None where they are too few.

    The same picture twice is no neighbour of itself.
    """
    to_all = distances(thumbnail(picture_3HW), pictures_P3SS)
    row = int(to_all.argmin())
    between = distances(pictures_P3SS[row], pictures_P3SS)
    others = between[between > _SAME]
    if len(others) < FEWEST - 1:
        return None
    return Likeness(row, float(to_all[row] / (ALPHA * others.min())))


def nearest_of_each(pictures: Sequence[Tensor], pictures_P3SS: Tensor) -> dict[int, Likeness]:
    """What each sample is nearest to, by its number, the most copied first; {} where nothing can be said."""
    found = {number: nearest(picture, pictures_P3SS) for number, picture in enumerate(pictures)}
    told = [(number, likeness) for number, likeness in found.items() if likeness is not None]
    return dict(sorted(told, key=lambda each: each[1].distance))
