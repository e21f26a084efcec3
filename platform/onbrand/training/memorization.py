"""Detects memorisation: samples that are copies of single training pictures.

After Carlini et al. 2023, "Extracting Training Data from Diffusion Models". Pictures are compared tile by tile, and the
tile that differs most counts, so that a common background does not make all pictures similar. The distance is relative,
as all pictures of one logo are similar: a sample is a copy if it is nearer to a picture than half (their alpha) the
distance of that picture to its neighbours. They use the 50 nearest of 50,000 as neighbours; a brand has a dozen
pictures of several kinds, so here it is the single nearest one.
Shapes: P pictures, S x S pixels of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

SIDE, TILES = 32, 4
ALPHA = 0.5
FEWEST = 4
"""Minimum number of different pictures for a result."""
_SAME = 1e-3


@dataclass(frozen=True, slots=True)
class NearestMatch:
    """The training picture that is nearest to a sample.

    Args:
        row: index of the picture.
        distance: in units of half the distance between that picture and its nearest neighbour; below 1 is a copy.
    """

    row: int
    distance: float

    @property
    def is_copy(self) -> bool:
        return self.distance < 1


def thumbnail(picture_3HW: Tensor) -> Tensor:
    """[3, S, S]: a picture of any size, downsampled by averaging."""
    return functional.adaptive_avg_pool2d(picture_3HW.float().cpu(), SIDE)


def distances(sample_3SS: Tensor, pictures_P3SS: Tensor) -> Tensor:
    """[P]: root of the mean squared difference in the tile that differs most."""
    squared = (pictures_P3SS - sample_3SS).pow(2).mean(1, keepdim=True)
    return functional.avg_pool2d(squared, SIDE // TILES).flatten(1).amax(1).sqrt()


def nearest(picture_3HW: Tensor, pictures_P3SS: Tensor) -> NearestMatch | None:
    """The nearest thumbnail to `picture_3HW` (-1..1); None if fewer than `FEWEST` - 1 pictures differ from that one.

    Duplicates of a picture do not count as its neighbours.
    """
    to_all = distances(thumbnail(picture_3HW), pictures_P3SS)
    row = int(to_all.argmin())
    between = distances(pictures_P3SS[row], pictures_P3SS)
    others = between[between > _SAME]
    if len(others) < FEWEST - 1:
        return None
    return NearestMatch(row, float(to_all[row] / (ALPHA * others.min())))


def nearest_of_each(pictures: Sequence[Tensor], pictures_P3SS: Tensor) -> dict[int, NearestMatch]:
    """The nearest picture of each sample, by the sample's number, smallest distance first; {} with too few pictures."""
    found = {number: nearest(picture, pictures_P3SS) for number, picture in enumerate(pictures)}
    told = [(number, likeness) for number, likeness in found.items() if likeness is not None]
    return dict(sorted(told, key=lambda each: each[1].distance))
