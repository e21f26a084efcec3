"""The input of each demo brand: pictures to upload, held-out pictures to measure `fit` with, and prompts."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from onbrand.brand import must_be_brand_id
from onbrand.errors import InvalidInput
from onbrand.filenames import is_litter, is_picture

NUM_UPLOADED, NUM_HELD_OUT, DRAWN_SIDE = 12, 6, 256
FEWEST_OWN, HELD_OUT_EVERY = 4, 4
_OBJECTS = ("logo", "product", "packaging")


@dataclass(frozen=True)
class Upload:
    """A file with its caption and the kind of object in it."""

    path: Path
    caption: str
    object: str


@dataclass(frozen=True)
class SampleBrand:
    """One brand of the demo.

    Args:
        word: the trigger word.
        held_out: pictures of the brand that are never uploaded; references for `fit`.
        prompts: drawn with the base and with the adapter.
    """

    brand_id: str
    title: str
    word: str
    uploads: tuple[Upload, ...]
    held_out: tuple[Path, ...]
    prompts: tuple[str, ...]


def made_up_kits(folder: Path, suffix: str = "") -> list[SampleBrand]:
    """Kits of the two synthetic brands; their pictures are written under `folder`."""
    from onbrand.families.tiny.brands import BRANDS, write_brand_images

    samples = []
    for word, brand in BRANDS.items():
        drawn = write_brand_images(word, folder / word, NUM_UPLOADED + NUM_HELD_OUT, DRAWN_SIDE)
        uploads = tuple(Upload(path, caption, path.name.split("-")[0]) for path, caption in drawn[:NUM_UPLOADED])
        held_out = tuple(path for path, _ in drawn[NUM_UPLOADED:])
        prompts = tuple(f"photo of [brand] {thing}" for thing in _OBJECTS)
        samples.append(SampleBrand(word + suffix, brand.title, word, uploads, held_out, prompts))
    return samples


def own_kit(name: str, folder: Path, suffix: str = "") -> SampleBrand:
    """A kit of a user's own pictures; every fourth is held out. Raises InvalidInput for unusable pictures or names."""
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    must_be_brand_id(word + suffix, param="brand")
    if not folder.is_dir():
        raise InvalidInput(
            f"{folder} is not a folder; --images takes a folder of PNG, JPEG or WEBP files", param="images"
        )
    found = sorted(path for path in folder.iterdir() if is_picture(path.name) and not is_litter(path.name))
    if len(found) < FEWEST_OWN:
        raise InvalidInput(f"{folder} holds {len(found)} pictures; at least {FEWEST_OWN} are needed", param="images")
    for path in found:
        _must_be_whole(path)
    held_out = found[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    uploads = tuple(Upload(path, "photo of [brand] product", "product") for path in found if path not in held_out)
    return SampleBrand(word + suffix, name, word, uploads, tuple(held_out), ("photo of [brand] product",))


def _must_be_whole(path: Path) -> None:
    """Raise InvalidInput unless the whole picture can be decoded."""
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        raise InvalidInput(
            f"{path} cannot be read as a PNG, JPEG or WEBP picture; save it anew or take it out", param="images"
        ) from None


def choose_samples(own: Sequence[tuple[str, Path]], folder: Path, suffix: str = "") -> list[SampleBrand]:
    """Kits of the user's brands, filled up to two with synthetic ones. Raises InvalidInput."""
    samples = [own_kit(name, images, suffix) for name, images in own]
    taken = {sample.brand_id for sample in samples}
    if len(taken) < len(samples):
        raise InvalidInput("two brands have the same name; give each --brand its own", param="brand")
    drawn = [sample for sample in made_up_kits(folder, suffix) if sample.brand_id not in taken]
    return samples + drawn[: max(0, 2 - len(samples))]
