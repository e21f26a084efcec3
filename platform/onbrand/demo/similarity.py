"""Measures how similar generated pictures are to a brand's: `fit`, in the latent space of the base's VAE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from onbrand.config import FamilyName, Settings
from onbrand.families.bases import base_source
from onbrand.families.loading import load_family
from onbrand.families.tiny.fit import fit


class Similarity:
    """Measures `fit` with the base of one family."""

    def __init__(self, family: FamilyName, settings: Settings) -> None:
        self._family = load_family(family, base_source(family, settings.bases))

    def fit(self, pictures: Sequence[Path], references: Sequence[Path]) -> float | None:
        """1 - mean over `pictures` of the cosine similarity of VAE latents to the nearest of `references`.

        Smaller is more similar; None without pictures. References are resized to the pictures' size.
        """
        if not pictures:
            return None
        with Image.open(pictures[0]) as image:
            size = image.size
        return round(fit(self._latents(pictures, size), self._latents(references, size)), 4)

    def _latents(self, pictures: Sequence[Path], size: tuple[int, int]) -> Tensor:
        """[N, C, H, W] latents of pictures that are cropped to `size`."""
        stacked = np.stack([_pixels(picture, size) for picture in pictures])
        return self._family.encode_images(torch.from_numpy(stacked).permute(0, 3, 1, 2) / 127.5 - 1)


def _pixels(picture: Path, size: tuple[int, int]) -> np.ndarray:
    with Image.open(picture) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS), dtype=np.float32)
