"""Type and size of pictures from their headers, as Pillow says them."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from onbrand.errors import UnsupportedMedia
from onbrand.sandbox.image_headers import image_facts

SIZES = [(1, 1), (64, 48), (640, 3), (1024, 1023)]
KINDS = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 80}),
    "progressive jpeg": ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + bytes(300)}),
    "webp": ("WEBP", {"quality": 80}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "webp with exif": ("WEBP", {"quality": 80, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
}


def _file(kind: str, size: tuple[int, int]) -> bytes:
    format_, options = KINDS[kind]
    out = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(out, format_, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_the_size_is_pillows(kind: str, size: tuple[int, int]):
    facts = image_facts(_file(kind, size))
    assert (facts.format, facts.width, facts.height) == (KINDS[kind][0], *size)
    assert facts.content_type == f"image/{KINDS[kind][0].lower()}"


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG", b"GIF89a" + bytes(40), b"%PDF-1.7", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff"]
)
def test_anything_else_is_refused(data: bytes):
    with pytest.raises(UnsupportedMedia):
        image_facts(data)


def test_cut_and_broken_headers_only_ever_raise_that():
    dice = random.Random(7)
    for kind in KINDS:
        whole = _file(kind, (64, 48))
        for length in range(60):
            broken = bytearray(whole[: length or len(whole)])
            for _ in range(3):
                broken[dice.randrange(len(broken))] = dice.randrange(256)
            try:
                facts = image_facts(bytes(broken))
            except UnsupportedMedia:
                continue
            assert facts.width > 0
            assert facts.height > 0
