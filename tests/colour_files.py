"""Pictures whose files declare a colour space: PNGs written by hand, and profiles as large as printers have."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from onbrand.sandbox import icc_profiles

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_TO_XYZ = {
    "sRGB": [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    "P3": [[0.4865709, 0.2656677, 0.1982173], [0.2289746, 0.6917385, 0.0792869], [0.0, 0.0451134, 1.0439444]],
    "Adobe": [[0.5767309, 0.1855540, 0.1881852], [0.2973769, 0.6273491, 0.0752741], [0.0270343, 0.0706872, 0.9911085]],
}
"""Linear RGB of a space to XYZ, all of white D65 (brucelindbloom.com, CSS Color 4)."""


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    samples: np.ndarray, chunks: Mapping[bytes, bytes] | None = None, depth: int = 0, interlaced: bool = False
) -> bytes:
    """A PNG of any depth.

    Args:
        samples: height x width x (1, 2, 3 or 4 channels), uint8 or uint16.
        chunks: what stands before the pixels, by name.
        depth: bits of a sample; 0: by the type of `samples`.
    """
    height, width, channels = samples.shape
    depth = depth or 8 * samples.dtype.itemsize
    colour_type = 3 if chunks and b"PLTE" in chunks else _COLOUR_TYPES[channels]
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(interlaced))
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in _ADAM7] if interlaced else [samples]
    rows = b"".join(_rows(part, depth) for part in parts if part.size)
    body = b"".join(chunk(kind, data) for kind, data in (chunks or {}).items())
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + body
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )


def _rows(samples: np.ndarray, depth: int) -> bytes:
    flat = samples.reshape(len(samples), -1)
    if depth < 8:
        bits = np.unpackbits(flat[:, :, None].astype(np.uint8), axis=2)[:, :, -depth:]
        lines = [np.packbits(line.reshape(-1)).tobytes() for line in bits]
    else:
        lines = [line.astype(f">u{depth // 8}").tobytes() for line in flat]
    return b"".join(b"\0" + line for line in lines)


def iccp(profile: bytes) -> dict[bytes, bytes]:
    return {b"iCCP": b"a\0\0" + zlib.compress(profile)}


def cmyk_profile(grid: int = 23) -> bytes:
    """A printer's profile with a table of `grid` ** 4 colours (1.7 MB for 23), of inks that are not sRGB's colours."""
    axis = np.linspace(0, 1, grid)
    c, m, y, k = np.meshgrid(axis, axis, axis, axis, indexing="ij")
    lightness = 95 * (1 - 0.45 * c) * (1 - 0.5 * m) * (1 - 0.1 * y) * (1 - 0.85 * k)
    a = (-35 * c + 70 * m - 5 * y) * (1 - k)
    b = (-45 * c - 5 * m + 85 * y) * (1 - k)
    lab = np.stack([lightness / 100 * 65280, (a + 128) * 256, (b + 128) * 256], -1).clip(0, 65535).astype(">u2")
    linear = struct.pack(">HH", 0, 65535)
    table = b"mft2\0\0\0\0" + bytes([4, 3, grid, 0]) + struct.pack(">9i", *(65536, 0, 0, 0, 65536, 0, 0, 0, 65536))
    table += struct.pack(">HH", 2, 2) + linear * 4 + lab.tobytes() + linear * 3
    white = icc_profiles.gray_profile(icc_profiles.gamma(1.0)).tags[b"wtpt"]
    made = bytearray(icc_profiles._made("CMYK", {b"wtpt": white, b"A2B0": table}).data)
    made[8:24] = b"\x02\x40\0\0prtrCMYKLab "
    return bytes(made)


def encoded(kind: str, image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def to_srgb(values: np.ndarray, space: str, exponent: float | None = None) -> np.ndarray:
    """sRGB's levels (0..255, not rounded) of RGB values 0..1: the formula.

    Args:
        exponent: of the space's tone curve; None: sRGB's.
    """
    linear = (
        values**exponent if exponent else np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    )
    matrix = np.linalg.inv(np.array(_TO_XYZ["sRGB"])) @ np.array(_TO_XYZ[space])
    light = (linear @ matrix.T).clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
