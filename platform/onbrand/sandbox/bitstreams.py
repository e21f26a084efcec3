"""Facts from the structure of JPEG and WEBP files, read without decoding: scans, canvas size, lossless or not.

Runs in the checking child.
"""

from __future__ import annotations

import re
import struct

JPEG_MAGIC = b"\xff\xd8"
_END_OF_IMAGE, _SCAN = 0xD9, 0xDA
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""JPEG markers without a length (ITU-T T.81, B.1.1.3)."""
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_CANVAS_KNOWN_AT = 30


def num_scans(data: bytes) -> int:
    """Number of scans of a JPEG up to its first end of image. Bytes in segments and after the image do not count."""
    at, count = len(JPEG_MAGIC), 0
    while (found := _MARKER.search(data, at)) is not None:
        kind, at = found[0][1], found.end()
        if kind == _END_OF_IMAGE:
            break
        count += kind == _SCAN
        if kind not in _BARE:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return count


def webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height of a WEBP's canvas (RFC 9649, 2.7); zeros for anything else."""
    if len(data) < _CANVAS_KNOWN_AT or not _is_webp(data):
        return 0, 0
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def is_lossless_webp(data: bytes) -> bool:
    """Whether a WEBP is lossless: its first image chunk is ``VP8L``, not ``VP8``."""
    at = 12 if _is_webp(data) else len(data)
    while at + 8 <= len(data):
        kind, num_bytes = struct.unpack_from("<4sI", data, at)
        if kind in (b"VP8L", b"VP8 "):
            return kind == b"VP8L"
        at += 8 + num_bytes + num_bytes % 2
    return False


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"
