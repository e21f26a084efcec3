"""Features of a picture are equal for equal pixels in any file, and separate sharp from blurred pictures."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image, ImageDraw, ImageFilter

from onbrand.config import Limits
from onbrand.errors import UnsupportedMedia
from onbrand.sandbox.image_features import measure
from onbrand.sandbox.images import decode
from onbrand.sandbox.results import ImageFeatures


def scene(seed: int = 0, size: tuple[int, int] = (256, 200)) -> Image.Image:
    """Sharp boxes of many sizes on a ground, another picture for every seed."""
    dice = random.Random(seed)
    image = Image.new("RGB", size, tuple(dice.randrange(256) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(40):
        x, y = dice.randrange(size[0]), dice.randrange(size[1])
        box = (x, y, x + dice.randrange(4, 60), y + dice.randrange(4, 60))
        pen.rectangle(box, fill=tuple(dice.randrange(256) for _ in range(3)))
    return image


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def features_of(image: Image.Image, kind: str = "PNG", **options: object) -> ImageFeatures:
    return measure(decode(file_of(image, kind, **options), Limits())[1])


def bits_apart(one: ImageFeatures, other: ImageFeatures) -> int:
    return (int(one.dhash, 16) ^ int(other.dhash, 16)).bit_count()


def test_the_same_pixels_have_the_same_digest_whatever_the_file() -> None:
    plain, palette = scene(), scene().convert("P", palette=Image.Palette.ADAPTIVE)
    assert features_of(plain).digest == features_of(plain, compress_level=0).digest
    assert features_of(palette).digest == features_of(palette.convert("RGB")).digest
    assert features_of(plain).digest != features_of(scene(1)).digest


def test_exif_turns_the_picture_before_it_is_measured() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = features_of(scene(), exif=exif)
    assert (turned.width, turned.height) == (200, 256)
    assert turned.digest == features_of(scene().transpose(Image.Transpose.ROTATE_270)).digest


def test_the_hash_stays_when_a_picture_is_scaled_or_compressed_and_not_for_another() -> None:
    first = features_of(scene())
    assert bits_apart(first, features_of(scene().resize((150, 117), Image.Resampling.LANCZOS))) <= 12
    assert bits_apart(first, features_of(scene(), "JPEG", quality=60)) <= 6
    assert bits_apart(first, features_of(scene(1))) > 60


@pytest.mark.parametrize("pixels", [2, 4])
def test_blur_takes_the_finest_levels_variance_and_leaves_the_coarse_ones(pixels: int) -> None:
    sharp, blurred = features_of(scene()), features_of(scene().filter(ImageFilter.GaussianBlur(pixels)))
    assert sharp.sides == blurred.sides == (32, 64, 128)
    assert blurred.sharpness[-1] < sharp.sharpness[-1] / (4 if pixels == 2 else 30)
    assert blurred.sharpness[0] > sharp.sharpness[0] / 6


def test_alpha_is_counted_and_transparent_parts_are_seen_on_white() -> None:
    image = scene().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 128, 200))
    seen = features_of(image)
    assert (seen.opaque, seen.visible) == (0.5, 0.5)
    assert seen.colours.startswith("ffffff")
    assert features_of(scene()).opaque == 1.0


def test_a_tiny_and_a_long_picture_can_be_measured() -> None:
    assert features_of(scene(size=(33, 40))).sides == (32,)
    long = features_of(scene(size=(40, 8000)))
    assert (long.width, long.height) == (40, 8000)


def test_a_picture_that_is_cut_short_is_refused() -> None:
    with pytest.raises(UnsupportedMedia, match="damaged or cut short"):
        decode(file_of(scene())[:-200], Limits(), "logo-001.png")
