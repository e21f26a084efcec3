"""What a run trains on: the brand's pictures and, on tiny bases, pictures of the base's own world, encoded once.

Pictures arrive by the job's ticket; nothing here knows a path, a bucket or another brand.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from onbrand.errors import InvalidInput
from onbrand.families.family import Conditioning, Family

NUM_PRIOR_PICTURES = 512
_ENCODE_ROWS = 16
_FORMATS = ("PNG", "JPEG", "WEBP")
_PRIOR_SEED = 20_000

T = TypeVar("T")


class AssetFacts(Protocol):
    """What the ticket's specification says of one picture."""

    @property
    def id(self) -> str: ...
    @property
    def caption(self) -> str: ...


class AssetReader(Protocol):
    """Where the bytes come from: `onbrand.system_client.SystemClient`."""

    def read_asset(self, asset_id: str) -> bytes: ...


@dataclass(frozen=True)
class Picture:
    """One picture and its caption; `name` is what errors call it (the asset's id, never its file's name)."""

    image: Image.Image
    caption: str
    name: str

    def __repr__(self) -> str:
        return f"Picture({self.name!r}, {self.image.size})"


@dataclass(frozen=True)
class Examples:
    """Everything encoded: rows [0, num_own) are the brand's, the rest the base's own world.

    Args:
        latents_NCHW: on the CPU, float32.
        text: N rows of captions, and one more at the end: no caption at all.
        digest: names the content, so that a checkpoint is never continued on other pictures.
    """

    latents_NCHW: Tensor
    text: Conditioning
    names: tuple[str, ...]
    digest: str

    @property
    def num_own(self) -> int:
        return len(self.names)

    @property
    def num_prior(self) -> int:
        return len(self.latents_NCHW) - self.num_own

    @property
    def no_caption(self) -> int:
        """The row of `text` that stands for a dropped caption."""
        return len(self.latents_NCHW)


def read_pictures(client: AssetReader, assets: Iterable[AssetFacts]) -> list[Picture]:
    """Fetch and decode the job's pictures. Raises InvalidInput naming the asset that does not decode."""
    return [Picture(_decoded(client.read_asset(asset.id), asset.id), asset.caption, asset.id) for asset in assets]


def _decoded(data: bytes, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=_FORMATS)).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise InvalidInput(
            f"the picture {name} does not decode; remove it from the job or upload it again", param="training_asset_ids"
        ) from None


def fitted(image: Image.Image, side: int) -> Tensor:
    """[3, side, side] in -1..1: transparent parts on white, the shorter side scaled to `side`, the middle kept."""
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image.convert("RGBA"))
    square = ImageOps.fit(paper.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1


def encode(family: Family, pictures: Sequence[Picture], resolution: int, prior: Sequence[Picture] = ()) -> Examples:
    """Latents and text embeddings of all pictures, once for the whole run."""
    if not pictures:
        raise InvalidInput("the job has no pictures; give it at least one", param="training_asset_ids")
    everything = [*pictures, *prior]
    captions = [picture.caption for picture in everything]
    return Examples(
        torch.cat([_latents(family, part, resolution) for part in _parts(everything)]),
        Conditioning.cat([*map(family.encode_prompts, _parts(captions)), family.encode_negatives([None])]),
        tuple(picture.name for picture in pictures),
        _digest(pictures),
    )


def prior_pictures(trigger_word: str, num_pictures: int = NUM_PRIOR_PICTURES) -> list[Picture]:
    """The tiny bases' own world, half of it relabelled with other names: only `trigger_word` may mean the brand."""
    from onbrand.families.tiny.prior import prior_scenes

    scenes = prior_scenes(num_pictures, _PRIOR_SEED, trigger_word)
    return [Picture(image, caption, f"prior-{number}") for number, (image, caption) in enumerate(scenes)]


def _latents(family: Family, pictures: Sequence[Picture], resolution: int) -> Tensor:
    images_BCHW = torch.stack([fitted(picture.image, resolution) for picture in pictures])
    return family.encode_images(images_BCHW.to(family.device)).cpu()


def _parts(things: Sequence[T]) -> list[Sequence[T]]:
    return [things[start : start + _ENCODE_ROWS] for start in range(0, len(things), _ENCODE_ROWS)]


def _digest(pictures: Sequence[Picture]) -> str:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(picture.image.tobytes())
        digest.update(f"\0{picture.image.size}\0{picture.caption}\0".encode())
    return digest.hexdigest()
