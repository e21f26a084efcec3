"""What a PNG says before its pixels (PNG, third edition, W3C 2025): depth, colour type, and its chunks by name."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import PngImagePlugin

from onbrand.storage.profiles import UnusableProfile

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngImageFile

MAGIC = b"\x89PNG\r\n\x1a\n"
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_SECOND_BYTES = {_RGB: "RGB;16L", _RGB_ALPHA: "RGBA;16L", _GRAY_ALPHA: "RGBA"}
"""Pillow's names for the second bytes of samples that have two; those of gray with alpha come as four 8-bit samples."""


@dataclass(frozen=True, slots=True)
class PngHead:
    """A PNG up to its pixels.

    Args:
        depth: bits of a sample.
        chunks: by name; of several of a name the first.
    """

    depth: int
    colour_type: int
    chunks: dict[bytes, bytes]

    @property
    def is_gray(self) -> bool:
        return self.colour_type in (_GRAY, _GRAY_ALPHA)

    @property
    def has_second_bytes(self) -> bool:
        """Whether Pillow leaves the second byte of each sample out."""
        return self.depth == 16 and self.colour_type in _SECOND_BYTES

    @property
    def transparent(self) -> tuple[int, ...] | None:
        """The one transparent gray level or colour, in samples of `depth` bits (11.3.1.1); None where there is none."""
        said = self.chunks.get(b"tRNS")
        count = {_GRAY: 1, _RGB: 3}.get(self.colour_type, 0)
        if said is None or not count or len(said) < 2 * count:
            return None
        return tuple(value & (1 << self.depth) - 1 for value in struct.unpack_from(f">{count}H", said))


def png_head(data: bytes) -> PngHead:
    """Of bytes that Pillow has opened as a PNG."""
    chunks: dict[bytes, bytes] = {}
    at = len(MAGIC)
    while at + 8 <= len(data) and (name := data[at + 4 : at + 8]) != b"IDAT":
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.setdefault(name, data[at + 8 : at + 8 + length])
        at += length + 12
    head = chunks.get(b"IHDR", b"").ljust(13, b"\0")
    return PngHead(head[8], head[9], chunks)


def allow_profiles_of(bytes_max: int) -> None:
    """Have Pillow open PNGs whose profile unpacks to so many bytes: it bounds profiles as it bounds texts."""
    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, bytes_max)


def unpacked_profile(chunk: bytes, bytes_max: int) -> bytes:
    """The profile in an iCCP chunk (11.3.2.3). Raises UnusableProfile: damaged, or of more bytes than the limit."""
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
    """The second bytes of the samples of a PNG that was opened and not yet loaded (`has_second_bytes`).

    Returns:
        Mode RGB or RGBA. Of gray with alpha: the first and the second byte of gray, and those of alpha.
    """
    image.tile = [tile._replace(args=_SECOND_BYTES[head.colour_type]) for tile in image.tile]
    image.load()
    return image
