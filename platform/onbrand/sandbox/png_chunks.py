"""The part of a PNG before its pixels (PNG, third edition, W3C 2025): depth, colour type, and chunks by name."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import PngImagePlugin

from onbrand.sandbox.icc_profiles import UnusableProfile

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngImageFile

MAGIC = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_SECOND_BYTES = {_RGB: "RGB;16L", _RGB_ALPHA: "RGBA;16L", _GRAY_ALPHA: "RGBA"}
"""Pillow's raw modes for the second bytes of 16-bit samples. Gray with alpha is read as four 8-bit samples."""


@dataclass(frozen=True, slots=True)
class PngHead:
    """A PNG up to its pixels.

    Args:
        depth: bits per sample.
        chunks: by name; the first of several with the same name.
    """

    depth: int
    colour_type: int
    chunks: dict[bytes, bytes]

    @property
    def is_gray(self) -> bool:
        return self.colour_type in (_GRAY, _GRAY_ALPHA)

    @property
    def has_second_bytes(self) -> bool:
        """Whether Pillow drops the second byte of each sample."""
        return self.depth == 16 and self.colour_type in _SECOND_BYTES

    @property
    def transparent(self) -> tuple[int, ...] | None:
        """The one transparent gray level or colour, in samples of `depth` bits (11.3.1.1); None where there is none."""
        chunk = self.chunks.get(b"tRNS")
        count = {_GRAY: 1, _RGB: 3}.get(self.colour_type, 0)
        if chunk is None or not count or len(chunk) < 2 * count:
            return None
        return tuple(value & (1 << self.depth) - 1 for value in struct.unpack_from(f">{count}H", chunk))


def png_head(data: bytes) -> PngHead:
    """Parse the head of bytes that Pillow accepts as a PNG."""
    chunks: dict[bytes, bytes] = {}
    at = len(MAGIC)
    while at + 8 <= len(data) and (name := data[at + 4 : at + 8]) != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.setdefault(name, data[at + 8 : at + 8 + length])
        at += length + 12
    head = chunks.get(b"IHDR", b"").ljust(13, b"\0")
    return PngHead(head[8], head[9], chunks)


def allow_profiles_of(bytes_max: int) -> None:
    """Raise Pillow's limit for text chunks, which it also applies to unpacked profiles, to at least `bytes_max`."""
    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, bytes_max)


def unpacked_profile(chunk: bytes, bytes_max: int) -> bytes:
    """The profile in an iCCP chunk (11.3.2.3). Raises UnusableProfile if it is damaged or exceeds the limit."""
    _, _, packed = chunk.partition(b"\0")
    reader = zlib.decompressobj()
    try:
        profile = reader.decompress(packed[1:], bytes_max + 1)
    except zlib.error:
        raise UnusableProfile("is damaged") from None
    if len(profile) > bytes_max:
        raise UnusableProfile(f"is damaged, or larger than the limit of {bytes_max} bytes")
    if not reader.eof or packed[:1] != b"\0":
        raise UnusableProfile("is damaged")
    return profile


def read_second_bytes(image: PngImageFile, head: PngHead) -> PngImageFile:
    """Read the second bytes of the samples of a PNG that is opened but not loaded (`has_second_bytes`).

    Returns:
        An image in mode RGB or RGBA. For gray with alpha: first and second byte of gray, then both bytes of alpha.
    """
    image.tile = [tile._replace(args=_SECOND_BYTES[head.colour_type]) for tile in image.tile]
    image.load()
    return image
