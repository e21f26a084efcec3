"""Type and size of an image from its first bytes, without a decoder. Safe in any process: it reads a few integers.

For files of our own replicas, which nobody decodes here. Files from outside go to a child process (`checker`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from onbrand.errors import UnsupportedMedia
from onbrand.sandbox.results import ImageFacts, ImageFormat

_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Markers of JPEG's frame headers (ITU-T T.81, table B.1)."""


def image_facts(data: bytes) -> ImageFacts:
    """The facts of a PNG's, JPEG's or WEBP's header. Raises UnsupportedMedia for anything else."""
    for format_, read in _READERS:
        try:
            size = read(data)
        except (struct.error, IndexError):
            size = None
        if size is not None and min(size) > 0:
            return ImageFacts(format_, f"image/{format_.lower()}", *size)
    raise UnsupportedMedia("the image is no PNG, JPEG or WEBP file", param="file")


def _of_png(data: bytes) -> tuple[int, int] | None:
    return struct.unpack_from(">II", data, len(_PNG)) if data.startswith(_PNG) else None


def _of_jpeg(data: bytes) -> tuple[int, int] | None:
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    at = 2
    while data[at] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, at + 1)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + max(2, length)
    return None


def _of_webp(data: bytes) -> tuple[int, int] | None:
    """RFC 9649: a lossy (`VP8 `), lossless (`VP8L`) or extended (`VP8X`) file."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    return None


_READERS: tuple[tuple[ImageFormat, Callable[[bytes], tuple[int, int] | None]], ...] = (
    ("PNG", _of_png),
    ("JPEG", _of_jpeg),
    ("WEBP", _of_webp),
)
