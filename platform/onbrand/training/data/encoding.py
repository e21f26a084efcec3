"""Encodes latents and text embeddings once per run: each worker encodes its share, and all get all results.

`cache` holds earlier results. Every picture and caption of the brand is encoded alone, so that the result does not
depend on the cache, on the job's other pictures or on the worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TypeVar

import torch
from torch import Tensor

from onbrand.errors import InvalidInput
from onbrand.families.aspect_buckets import Crop, bucket_step, crop_of, is_full_size
from onbrand.families.family import Conditioning, Family
from onbrand.training.data.cache import Cache
from onbrand.training.data.dataset import CaptionVariants, Examples, Picture, fitted
from onbrand.training.memorization import thumbnail
from onbrand.training.ray.collectives import Collectives, Tensors, shared

_ENCODE_ROWS = 16
T = TypeVar("T")


def encode(
    family: Family,
    pictures: Sequence[Picture],
    resolutions: int | Sequence[int],
    prior: Sequence[Picture] = (),
    wording: CaptionVariants = CaptionVariants(),
    cache: Cache | None = None,
    collectives: Collectives | None = None,
) -> Examples:
    """Latents and text embeddings of all pictures, the same on every worker.

    Args:
        pictures: only the worker that encodes a picture looks it up.
        resolutions: each picture is encoded in its bucket for each of them, but only once per bucket.

    Raises InvalidInput: there is no picture, or one is smaller than `smallest_side`.
    """
    if not len(pictures):
        raise InvalidInput("the job has no pictures; give it at least one", param="training_asset_ids")
    sides = (resolutions,) if isinstance(resolutions, int) else tuple(resolutions)
    encoder = _Encoder(family, cache or Cache(), collectives or Collectives())
    encoder.add_own(pictures, sides)
    return encoder.finish(prior, wording, max(sides))


class _Encoder:
    """Collects the rows of the examples; holds one picture in memory at a time."""

    def __init__(self, family: Family, cache: Cache, collectives: Collectives) -> None:
        self.family, self.cache, self.collectives = family, cache, collectives
        self.step = bucket_step(family.spec, family.recommended.resolution)
        self.latents: list[Tensor] = []
        self.captions: list[str] = []
        self.names: list[str] = []
        self.sizes: list[tuple[int, ...]] = []
        self.thumbs: list[Tensor] = []
        self.digest = hashlib.sha256()

    def add_own(self, pictures: Sequence[Picture], sides: Sequence[int]) -> None:
        for made in shared(self.collectives, pictures, lambda picture: self._encoded(picture, sides)):
            caption, name = _text(made["caption"]), _text(made["name"])
            for number, sizes in enumerate(made["sizes"].tolist()):
                self.latents.append(made[f"latents{number}"])
                self.captions.append(caption)
                self.names.append(name)
                self.sizes.append(tuple(sizes))
            self.thumbs.append(made["thumb"])
            self.digest.update(_content(made["sha256"]) + f"\0{caption}\0".encode())

    def _encoded(self, picture: Picture, sides: Sequence[int]) -> Tensors:
        """One picture's latents, sizes, thumbnail, digest, caption and name, as tensors."""
        width, height = picture.image.size
        found = {crop_of(height, width, side, self.step, f"the picture {picture.name}") for side in sides}
        crops, content = sorted(found, key=lambda crop: crop.size), picture.sha256
        cut = cache(partial(fitted, picture.image))
        latents = {f"latents{number}": self._latents(cut, content, crop) for number, crop in enumerate(crops)}
        return {
            **latents,
            "sizes": torch.tensor([crop.sizes for crop in crops]),
            "thumb": thumbnail(cut(crops[-1].size)),
            "sha256": _bytes(content),
            "caption": _bytes(picture.caption.encode()),
            "name": _bytes(picture.name.encode()),
        }

    def _latents(self, cut: Callable[[tuple[int, int]], Tensor], content: bytes, crop: Crop) -> Tensor:
        def made() -> Tensors:
            return {"latents": _latents(self.family, [cut(crop.size)])[0]}

        return self.cache.tensors(content, f"latents {crop}", made)["latents"]

    def finish(self, prior: Sequence[Picture], wording: CaptionVariants, side: int) -> Examples:
        texts = _Texts(self.family, self.cache, self.collectives)
        wordings = [wording.wordings(caption) for caption in self.captions]
        classes = [wording.class_of(caption) for caption in self.captions] if wording.classes else []
        texts.add([text for each in (*wordings, classes) for text in each])
        own = [texts.rows(each) for each in wordings]
        others = [[row] * len(own[0]) for row in texts.add_parts([picture.caption for picture in prior])]
        nothing = texts.add_nothing()
        self._add_prior(prior, side)
        knows_sizes = self.family.spec.conditions_on_size and is_full_size(self.family.recommended.resolution)
        return Examples(
            tuple(self.latents),
            Conditioning.cat(texts.encoded),
            torch.tensor(own + others),
            torch.tensor((texts.rows(classes) or [nothing] * len(own)) + [nothing] * len(prior)),
            nothing,
            tuple(self.names),
            self.digest.hexdigest(),
            torch.tensor(self.sizes) if knows_sizes else None,
            torch.stack(self.thumbs),
        )

    def _add_prior(self, prior: Sequence[Picture], side: int) -> None:
        def encoded(part: Sequence[Picture]) -> Tensors:
            content = b"".join(picture.sha256 for picture in part)
            return self.cache.tensors(content, f"latents of a part, {side}", lambda: made(part))

        def made(part: Sequence[Picture]) -> Tensors:
            return {"latents": _latents(self.family, [fitted(picture.image, side) for picture in part])}

        for part in shared(self.collectives, _parts(prior), encoded):
            self.latents.extend(part["latents"])
        self.sizes.extend((side, side, 0, 0, side, side) for _ in prior)


class _Texts:
    """Encodes every distinct text once."""

    def __init__(self, family: Family, cache: Cache, collectives: Collectives) -> None:
        self._family, self._cache, self._exchange = family, cache, collectives
        self._row_of: dict[str, int] = {}
        self._num_rows = 0
        self.encoded: list[Conditioning] = []

    def add(self, texts: Sequence[str]) -> None:
        """Encode the brand's texts, each alone."""
        different = list(dict.fromkeys(texts))
        self._row_of = {text: self._num_rows + number for number, text in enumerate(different)}
        for made in shared(self._exchange, different, self._cached):
            self._keep(made)

    def rows(self, texts: Sequence[str]) -> list[int]:
        return [self._row_of[text] for text in texts]

    def add_parts(self, texts: Sequence[str]) -> list[int]:
        """Encode the prior pictures' texts in fixed groups; returns their rows."""
        first = self._num_rows
        for made in shared(self._exchange, _parts(texts), lambda part: self._cached(*part)):
            self._keep(made)
        return list(range(first, self._num_rows))

    def add_nothing(self) -> int:
        """Encode the absence of a caption; returns its row."""
        self._keep(self._family.encode_negatives([None]).tensors)
        return self._num_rows - 1

    def _cached(self, *texts: str) -> Tensors:
        length = self._family.recommended.max_sequence_length
        return self._cache.tensors(
            "\0".join(texts).encode(), f"text {length}", lambda: self._family.encode_prompts(texts).tensors
        )

    def _keep(self, made: Tensors) -> None:
        self.encoded.append(Conditioning({name: value.to(self._family.device) for name, value in made.items()}))
        self._num_rows += len(self.encoded[-1])


def _latents(family: Family, images: Sequence[Tensor]) -> Tensor:
    return family.encode_images(torch.stack(list(images)).to(family.device)).cpu()


def _parts(things: Sequence[T]) -> list[Sequence[T]]:
    return [things[start : start + _ENCODE_ROWS] for start in range(0, len(things), _ENCODE_ROWS)]


def _bytes(content: bytes) -> Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)


def _content(bytes_K: Tensor) -> bytes:
    return bytes_K.numpy().tobytes()


def _text(bytes_K: Tensor) -> str:
    return _content(bytes_K).decode()
