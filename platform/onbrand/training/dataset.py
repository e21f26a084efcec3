"""What a run trains on: the brand's pictures and, on tiny bases, pictures of the base's own world, encoded once.

Pictures arrive by the job's ticket; nothing here knows a path, a bucket or another brand. What was encoded before
comes from `cache`. Every picture and caption of the brand is encoded by itself, so that its bits do not depend on what
was in the cache or is in the job beside it.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from onbrand.errors import InvalidInput
from onbrand.families.buckets import Crop, bucket_step, crop_of, is_full_size
from onbrand.families.family import Conditioning, Family
from onbrand.training.cache import Cache, NoCache
from onbrand.training.memorisation import thumbnail

NUM_PRIOR_PICTURES = 512
NUM_WORDINGS = 8
"""In how many orders a shuffled caption's parts are encoded."""
_ENCODE_ROWS = 16
_FORMATS = ("PNG", "JPEG", "WEBP")
_PRIOR_SEED = 20_000
_FEWEST_TO_HOLD_OUT, _HELD_OUT_PART, _MOST_HELD_OUT = 8, 6, 4

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

    @property
    def sha256(self) -> bytes:
        """Of size and pixels: the same picture in another file is the same."""
        return hashlib.sha256(f"{self.image.mode}{self.image.size}".encode() + self.image.tobytes()).digest()


@dataclass(frozen=True, slots=True)
class Wording:
    """How captions are worded.

    Args:
        trigger_word: what stands for the brand in them.
        shuffle: the parts between commas come in `NUM_WORDINGS` orders; the first, and the trigger word's, stay.
        classes: captions without the trigger word are encoded too.
    """

    trigger_word: str = ""
    shuffle: bool = False
    classes: bool = False
    seed: int = 0

    def wordings(self, caption: str) -> list[str]:
        """The caption as it was written, then in other orders."""
        first, *parts = [part.strip() for part in caption.split(",")]
        stay = [first, *(part for part in parts if self._names_brand(part))]
        loose = [part for part in parts if not self._names_brand(part)]
        if not self.shuffle:
            return [caption]
        orders = [random.Random(f"{self.seed}/{turn}/{caption}") for turn in range(1, NUM_WORDINGS)]
        return [caption, *(", ".join([*stay, *order.sample(loose, len(loose))]) for order in orders)]

    def class_of(self, caption: str) -> str:
        """The caption without the trigger word: what the picture would be if it were no brand's."""
        return re.sub(r"\s+", " ", self._brand.sub(" ", caption)).strip() if self.trigger_word else caption

    def _names_brand(self, part: str) -> bool:
        return bool(self.trigger_word and self._brand.search(part))

    @property
    def _brand(self) -> re.Pattern[str]:
        return re.compile(rf"(?<!\w){re.escape(self.trigger_word)}(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Examples:
    """Everything encoded: rows [0, num_own) are the brand's, the rest the base's own world.

    Args:
        latents: N tensors [C, H, W] on the CPU, float32; of several shapes, for pictures have several.
        text: one row per different text.
        text_rows_NV: the rows of `text` with picture n's caption in its V wordings.
        class_rows_N: the row with its caption without the trigger word; `no_caption` where none is wanted.
        no_caption: the row of `text` that stands for a dropped caption.
        sizes_N6: SDXL's original size, crop and target size, for bases that know other than their own.
        thumbs_P3SS: the brand's pictures, small (`memorisation`), for P = the different ones among them.
        digest: names the content, so that a checkpoint is never continued on other pictures.
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
        """What the denoiser is told of `rows_R` with the texts `text_R`."""
        told = self.text.rows(text_R.to(self.text.device))
        if self.sizes_N6 is None:
            return told.to(device)
        return Conditioning({**told.tensors, "sizes": self.sizes_N6[rows_R]}).to(device)


def read_pictures(client: AssetReader, assets: Iterable[AssetFacts]) -> Iterator[Picture]:
    """Fetch and decode the job's pictures, one at a time. Raises InvalidInput naming the asset that does not decode."""
    for asset in assets:
        yield Picture(_decoded(client.read_asset(asset.id), asset.id), asset.caption, asset.id)


def _decoded(data: bytes, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=_FORMATS)).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise InvalidInput(
            f"the picture {name} does not decode; remove it from the job or upload it again", param="training_asset_ids"
        ) from None


def held_out(captions: Sequence[str], names: Sequence[str], wanted: int | None, seed: int) -> list[int]:
    """Places of the pictures that are kept from training, to judge it by.

    Args:
        wanted: how many; None: a sixth, at most 4, of 8 pictures or more, and none of fewer. One at least is left.

    Each is of a caption of which most are left, so that nothing is judged that was never shown; else chance decides.
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
    """[3, H, W] in -1..1: transparent parts on white, scaled to cover `size` (a side, or height and width), the middle
    kept."""
    height, width = (size, size) if isinstance(size, int) else size
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image.convert("RGBA"))
    cut = ImageOps.fit(paper.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 127.5 - 1


def encode(
    family: Family,
    pictures: Iterable[Picture],
    resolutions: int | Sequence[int],
    prior: Sequence[Picture] = (),
    wording: Wording = Wording(),
    cache: Cache | None = None,
) -> Examples:
    """Latents and text embeddings of all pictures, once for the whole run.

    Args:
        resolutions: a picture is trained at each, in its bucket; the same bucket only once.

    Raises:
        InvalidInput: no picture at all, or one that is smaller than `smallest_side`.
    """
    encoder = _Encoder(family, cache or NoCache(), wording)
    for picture in pictures:
        encoder.add(picture, (resolutions,) if isinstance(resolutions, int) else tuple(resolutions))
    if not encoder.names:
        raise InvalidInput("the job has no pictures; give it at least one", param="training_asset_ids")
    return encoder.finish(prior, resolutions if isinstance(resolutions, int) else max(resolutions))


class _Encoder:
    """Gathers rows picture by picture, so that only one picture is held at a time."""

    def __init__(self, family: Family, cache: Cache, wording: Wording) -> None:
        self.family, self.cache, self.wording = family, cache, wording
        self.step = bucket_step(family.spec, family.recommended.resolution)
        self.latents: list[Tensor] = []
        self.captions: list[str] = []
        self.names: list[str] = []
        self.sizes: list[tuple[int, ...]] = []
        self.thumbs: list[Tensor] = []
        self.digest = hashlib.sha256()

    def add(self, picture: Picture, resolutions: Sequence[int]) -> None:
        width, height = picture.image.size
        crops = {crop_of(height, width, side, self.step, f"the picture {picture.name}") for side in resolutions}
        content = picture.sha256
        for crop in sorted(crops, key=lambda crop: crop.size):
            self.latents.append(self._latents(picture, content, crop))
            self.captions.append(picture.caption)
            self.names.append(picture.name)
            self.sizes.append(crop.sizes)
        self.thumbs.append(thumbnail(fitted(picture.image, max(crops, key=lambda crop: crop.size).size)))
        self.digest.update(content + f"\0{picture.caption}\0".encode())

    def _latents(self, picture: Picture, content: bytes, crop: Crop) -> Tensor:
        def made() -> dict[str, Tensor]:
            return {"latents": _latents(self.family, [fitted(picture.image, crop.size)])[0]}

        return self.cache.tensors(content, f"latents {crop}", made)["latents"]

    def finish(self, prior: Sequence[Picture], side: int) -> Examples:
        texts = _Texts(self.family, self.cache)
        own = [texts.rows(self.wording.wordings(caption)) for caption in self.captions]
        classes = texts.rows([self.wording.class_of(each) for each in self.captions]) if self.wording.classes else []
        worded = len(own[0])
        others = [[row] * worded for row in texts.parts([picture.caption for picture in prior])]
        nothing = texts.nothing()
        for part in _parts(prior):
            images = [fitted(picture.image, side) for picture in part]
            self.latents.extend(_latents(self.family, images))
            self.sizes.extend((side, side, 0, 0, side, side) for _ in part)
        knows_sizes = self.family.spec.name == "sdxl" and is_full_size(self.family.recommended.resolution)
        return Examples(
            tuple(self.latents),
            Conditioning.cat(texts.encoded),
            torch.tensor(own + others),
            torch.tensor((classes or [nothing] * len(own)) + [nothing] * len(prior)),
            nothing,
            tuple(self.names),
            self.digest.hexdigest(),
            torch.tensor(self.sizes) if knows_sizes else None,
            torch.stack(self.thumbs),
        )


class _Texts:
    """Every different text once."""

    def __init__(self, family: Family, cache: Cache) -> None:
        self._family, self._cache = family, cache
        self._row_of: dict[str, int] = {}
        self._num_rows = 0
        self.encoded: list[Conditioning] = []

    def rows(self, texts: Sequence[str]) -> list[int]:
        """Rows of the brand's texts, each encoded by itself."""
        for text in texts:
            if text not in self._row_of:
                self._add([text], self._cached(text))
        return [self._row_of[text] for text in texts]

    def parts(self, texts: Sequence[str]) -> list[int]:
        """Rows of the base's own texts: always the same together, so that they may be encoded together."""
        rows: list[int] = []
        for part in _parts(texts):
            rows.extend(range(self._num_rows, self._num_rows + len(part)))
            self._add([], self._family.encode_prompts(part))
        return rows

    def nothing(self) -> int:
        """The row that stands for no text."""
        self._add([], self._family.encode_negatives([None]))
        return self._num_rows - 1

    def _cached(self, text: str) -> Conditioning:
        length = self._family.recommended.max_sequence_length

        def made() -> dict[str, Tensor]:
            return self._family.encode_prompts([text]).tensors

        kept = self._cache.tensors(text.encode(), f"text {length}", made)
        return Conditioning({name: value.to(self._family.device) for name, value in kept.items()})

    def _add(self, texts: Sequence[str], encoded: Conditioning) -> None:
        self._row_of.update((text, self._num_rows + number) for number, text in enumerate(texts))
        self.encoded.append(encoded)
        self._num_rows += len(encoded)


def prior_pictures(trigger_word: str, num_pictures: int = NUM_PRIOR_PICTURES) -> list[Picture]:
    """The tiny bases' own world, half of it relabelled with other names: only `trigger_word` may mean the brand."""
    from onbrand.families.tiny.prior import prior_scenes

    scenes = prior_scenes(num_pictures, _PRIOR_SEED, trigger_word)
    return [Picture(image, caption, f"prior-{number}") for number, (image, caption) in enumerate(scenes)]


def _latents(family: Family, images: Sequence[Tensor]) -> Tensor:
    return family.encode_images(torch.stack(list(images)).to(family.device)).cpu()


def _parts(things: Sequence[T]) -> list[Sequence[T]]:
    return [things[start : start + _ENCODE_ROWS] for start in range(0, len(things), _ENCODE_ROWS)]
