"""Training data of a run: the brand's pictures and, on tiny bases, prior pictures of the base's own kind.

Pictures are read with the job's ticket; this module knows no path, no bucket and no other brand. `encoding` turns them
into latents and embeddings.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from onbrand.errors import DataRefused, NotFound
from onbrand.families.family import Conditioning
from onbrand.internal.client import SystemClient
from onbrand.internal.training import TrainingAsset

NUM_PRIOR_PICTURES = 512
NUM_WORDINGS = 8
"""Number of orders in which the parts of a shuffled caption are encoded."""
_FORMATS = ("PNG", "JPEG", "WEBP")
_PRIOR_SEED = 20_000
_FEWEST_TO_HOLD_OUT, _HELD_OUT_PART, _MOST_HELD_OUT = 8, 6, 4


@dataclass(frozen=True)
class Picture:
    """One picture and its caption. Errors use `name`: the asset's id, never its file name."""

    image: Image.Image
    caption: str
    name: str

    def __repr__(self) -> str:
        return f"Picture({self.name!r}, {self.image.size})"

    @property
    def sha256(self) -> bytes:
        """Digest of mode, size and pixels: equal for the same picture in another file."""
        return hashlib.sha256(f"{self.image.mode}{self.image.size}".encode() + self.image.tobytes()).digest()


@dataclass(frozen=True, slots=True)
class CaptionVariants:
    """How captions are worded.

    Args:
        trigger_word: the word for the brand in captions.
        shuffle: reorder the comma-separated parts, in `NUM_WORDINGS` orders. The first part, then those with the
            trigger word, always come first.
        classes: also encode captions without the trigger word.
    """

    trigger_word: str = ""
    shuffle: bool = False
    classes: bool = False
    seed: int = 0

    def wordings(self, caption: str) -> list[str]:
        """The caption as written, then its other orders."""
        first, *parts = [part.strip() for part in caption.split(",")]
        stay = [first, *(part for part in parts if self._names_brand(part))]
        loose = [part for part in parts if not self._names_brand(part)]
        if not self.shuffle:
            return [caption]
        orders = [random.Random(f"{self.seed}/{turn}/{caption}") for turn in range(1, NUM_WORDINGS)]
        return [caption, *(", ".join([*stay, *order.sample(loose, len(loose))]) for order in orders)]

    def class_of(self, caption: str) -> str:
        """The caption without the trigger word: the picture's class without the brand."""
        return re.sub(r"\s+", " ", self._brand.sub(" ", caption)).strip() if self.trigger_word else caption

    def _names_brand(self, part: str) -> bool:
        return bool(self.trigger_word and self._brand.search(part))

    @property
    def _brand(self) -> re.Pattern[str]:
        return re.compile(rf"(?<!\w){re.escape(self.trigger_word)}(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Examples:
    """The encoded training data: rows [0, num_own) are the brand's, the rest are prior pictures.

    Args:
        latents: N tensors [C, H, W] on the CPU, float32; shapes differ, as the pictures' do.
        text: one row per different text.
        text_rows_NV: rows of `text` with the V wordings of each caption.
        class_rows_N: row with the caption without the trigger word; `no_caption` if classes are not encoded.
        no_caption: row of `text` for a dropped caption.
        sizes_N6: SDXL's original size, crop and target size; None for other families and for tiny bases.
        thumbs_P3SS: thumbnails (`memorization`) of the brand's P pictures.
        digest: identifies the content, so that a checkpoint is never continued on other pictures.
    """

    latents: tuple[Tensor, ...]
    text: Conditioning
    text_rows_NV: Tensor
    class_rows_N: Tensor
    no_caption: int
    names: tuple[str, ...]
    digest: str
    sizes_N6: Tensor | None
    thumbs_P3SS: Tensor

    @property
    def num_own(self) -> int:
        return len(self.names)

    @property
    def num_prior(self) -> int:
        return len(self.latents) - self.num_own

    @property
    def own_shapes(self) -> list[torch.Size]:
        return [latents_CHW.shape for latents_CHW in self.latents[: self.num_own]]

    def conditioning(self, rows_R: Tensor, text_R: Tensor, device: torch.device) -> Conditioning:
        """The denoiser's conditioning for pictures `rows_R` with texts `text_R`."""
        told = self.text.rows(text_R.to(self.text.device))
        if self.sizes_N6 is None:
            return told.to(device)
        return Conditioning({**told.tensors, "sizes": self.sizes_N6[rows_R]}).to(device)


class JobPictures(Sequence[Picture]):
    """The job's pictures. Each lookup fetches and decodes the picture anew; nothing is cached.

    A lookup raises DataRefused with the asset's id if the stored bytes are gone, or are not those that were uploaded.
    """

    def __init__(self, client: SystemClient, assets: Sequence[TrainingAsset]) -> None:
        self._client, self._assets = client, assets

    def __len__(self) -> int:
        return len(self._assets)

    def __getitem__(self, place: int) -> Picture:  # type: ignore[override]  # no slices are taken
        asset = self._assets[place]
        return Picture(_decoded(self._read(asset), asset.id), asset.caption, asset.id)

    def _read(self, asset: TrainingAsset) -> bytes:
        try:
            data = self._client.read_asset(asset.id)
        except NotFound:
            raise _refused(asset.id, "has no stored bytes any more") from None
        if asset.sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise _refused(asset.id, "has other stored bytes than were uploaded")
        return data


def _decoded(data: bytes, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=_FORMATS)).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise _refused(name, "does not decode") from None


def _refused(name: str, why: str) -> DataRefused:
    return DataRefused(f"the picture {name} {why}; delete it and upload it again", param="training_asset_ids")


def held_out(captions: Sequence[str], names: Sequence[str], wanted: int | None, seed: int) -> list[int]:
    """Indices of the held-out pictures, which are used for validation only.

    Each comes from the caption with most pictures left, so that captions used for validation are also trained on. Ties
    are broken by the seed.

    Args:
        wanted: how many; None: a sixth, at most 4, of 8 pictures or more, and none of fewer. At least one picture stays
            for training.
    """
    usual = min(_MOST_HELD_OUT, len(names) // _HELD_OUT_PART) if len(names) >= _FEWEST_TO_HOLD_OUT else 0
    num_held = min(usual if wanted is None else wanted, len(names) - 1)
    left, chosen = Counter(captions), []
    lots = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names]
    for _ in range(num_held):
        rest = (place for place in range(len(names)) if place not in chosen)
        place = min(rest, key=lambda at: (-left[captions[at]], lots[at]))
        left[captions[place]] -= 1
        chosen.append(place)
    return sorted(chosen)


def fitted(image: Image.Image, size: int | tuple[int, int]) -> Tensor:
    """[3, H, W] in -1..1: on white, scaled to cover `size` (a side, or height and width) and center-cropped."""
    height, width = (size, size) if isinstance(size, int) else size
    cut = ImageOps.fit(_on_white(image), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 127.5 - 1


def _on_white(image: Image.Image) -> Image.Image:
    """The image in RGB, composited on white if it has transparent pixels."""
    if image.mode == "RGB":
        return image
    sheet = image.convert("RGBA")
    if sheet.getchannel("A").getextrema() != (255, 255):
        paper = Image.new("RGBA", sheet.size, "white")
        paper.alpha_composite(sheet)
        sheet = paper
    return sheet.convert("RGB")


def prior_pictures(trigger_word: str, num_pictures: int = NUM_PRIOR_PICTURES) -> list[Picture]:
    """Prior pictures for tiny bases. Half have captions with other brand names, so that only `trigger_word` means the
    brand."""
    from onbrand.families.tiny.prior import prior_scenes

    scenes = prior_scenes(num_pictures, _PRIOR_SEED, trigger_word)
    return [Picture(image, caption, f"prior-{number}") for number, (image, caption) in enumerate(scenes)]
