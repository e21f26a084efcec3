"""ICC profiles: checks of a given profile before littlecms reads it, and making of small profiles.

Profiles are made from other declarations in a file: a gamma, chromaticities, or the code of a colour space.
Formats: ICC.1:2022 (clauses 7 and 10). Adaptation to D50: Bradford's, as in Annex E.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Space = Literal["GRAY", "RGB ", "CMYK"]
Point = tuple[float, float]
"""Chromaticity: x and y of CIE 1931."""

_HEADER_BYTES = 128
_TAGS_MAX = 100
_CLASSES = (b"mntr", b"prtr", b"scnr", b"spac")
_SPACES: dict[bytes, Space] = {b"GRAY": "GRAY", b"RGB ": "RGB ", b"CMYK": "CMYK"}
_PARTS_OF_MATRICES = (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC")
_D50 = (0.9642, 1.0, 0.8249)
_D65: Point = (0.3127, 0.3290)
_BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))
Matrix = Sequence[Sequence[float]]


class UnusableProfile(Exception):
    """The profile cannot be applied; the message is the end of a sentence that begins "its colour profile ..."."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile whose tags lie within its bytes.

    Args:
        space: colour space of the pixels.
        tags: data by signature; empty except for the curves and columns of a matrix profile.
    """

    data: bytes
    space: Space
    tags: Mapping[bytes, bytes]

    @property
    def is_matrix(self) -> bool:
        """Whether three curves and a matrix define the profile."""
        has_tables = any(name.startswith((b"A2B", b"D2B")) for name in self.tags)
        return self.space == "RGB " and not has_tables and self.tags.keys() >= {*_PARTS_OF_MATRICES}


@dataclass(frozen=True, slots=True)
class Primaries:
    """The chromaticities of an RGB space."""

    red: Point
    green: Point
    blue: Point
    white: Point = _D65


SRGB = Primaries((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE_RGB = Primaries((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
DISPLAY_P3 = Primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
BT2020 = Primaries((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))


def read_profile(data: bytes) -> Profile:
    """Parse a profile. Raises UnusableProfile: no profile, cut short, too many tags, or not of gray, RGB or CMYK."""
    if len(data) < _HEADER_BYTES + 4 or data[36:40] != b"acsp":
        raise UnusableProfile("is no ICC profile")
    size = int.from_bytes(data[:4], "big")
    if not _HEADER_BYTES + 4 <= size <= len(data):
        raise UnusableProfile("is cut short")
    if data[12:16] not in _CLASSES or data[16:20] not in _SPACES:
        raise UnusableProfile("is not of gray, RGB or CMYK pixels")
    count = int.from_bytes(data[128:132], "big")
    if count > _TAGS_MAX or _HEADER_BYTES + 4 + 12 * count > size:
        raise UnusableProfile("has more parts than a profile may have")
    tags = {}
    for index in range(count):
        name, offset, length = struct.unpack_from(">4sII", data, 132 + 12 * index)
        if offset + length > size:
            raise UnusableProfile("is cut short")
        tags[name] = data[offset : offset + length] if name in _PARTS_OF_MATRICES else b""
    return Profile(data, _SPACES[data[16:20]], tags)


def gray_profile(curve: bytes) -> Profile:
    """A gray profile with this tone curve."""
    return _made("GRAY", {b"wtpt": _xyz(_D50), b"kTRC": curve})


def rgb_profile(primaries: Primaries, curve: bytes) -> Profile:
    """An RGB profile with this tone curve for each channel. Raises UnusableProfile if the primaries span no space."""
    columns = zip(*_to_d50(primaries), strict=True)
    tags = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, columns), strict=True))
    return _made("RGB ", {b"wtpt": _xyz(_D50)} | tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def with_curve(profile: Profile, curve: bytes) -> Profile:
    """A copy of a matrix profile with another tone curve for each channel."""
    kept = {name: profile.tags[name] for name in (b"rXYZ", b"gXYZ", b"bXYZ")}
    return _made("RGB ", {b"wtpt": _xyz(_D50)} | kept | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def gamma(exponent: float) -> bytes:
    """The curve Y = X ^ exponent."""
    return _parametric(0, exponent)


def with_toe(exponent: float, offset: float, slope: float, end: float) -> bytes:
    """The curve Y = ((X + offset) / (1 + offset)) ^ exponent from `end` on, and X / slope below."""
    return _parametric(3, exponent, 1 / (1 + offset), offset / (1 + offset), 1 / slope, end)


def srgb_curve() -> bytes:
    """The tone curve of sRGB (IEC 61966-2-1)."""
    return with_toe(2.4, 0.055, 12.92, 0.04045)


def _parametric(kind: int, *values: float) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + b"".join(map(_fixed, values))


def _fixed(value: float) -> bytes:
    """The value as an s15Fixed16Number."""
    return struct.pack(">i", round(value * 65536))


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _made(space: Space, tags: Mapping[bytes, bytes]) -> Profile:
    """A profile of version 4.3 with these tags."""
    table, body = b"", b""
    begin = _HEADER_BYTES + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, begin + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">II4s4s4s4s", begin + len(body), 0, b"\x04\x30\0\0", b"mntr", space.encode(), b"XYZ ")
    head += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(_fixed, _D50))
    data = head + bytes(_HEADER_BYTES - len(head)) + struct.pack(">I", len(tags)) + table + body
    return Profile(data, space, tags)


def _to_d50(primaries: Primaries) -> Matrix:
    """The matrix from linear RGB to XYZ with white D50."""
    columns = [_of_point(point) for point in (primaries.red, primaries.green, primaries.blue)]
    white = _of_point(primaries.white)
    matrix = list(zip(*columns, strict=True))
    scale = _times(_inverse(matrix), white)
    scaled = [[value * factor for value, factor in zip(row, scale, strict=True)] for row in matrix]
    cones = [d / s for d, s in zip(_times(_BRADFORD, _D50), _times(_BRADFORD, white), strict=True)]
    adapted = [[value * cones[index] for value in row] for index, row in enumerate(_BRADFORD)]
    return _product(_product(_inverse(_BRADFORD), adapted), scaled)


def _of_point(point: Point) -> tuple[float, float, float]:
    x, y = point
    if not (0 < x < 1 and 0 < y <= 1 and x + y <= 1):
        raise UnusableProfile("names colours that are none")
    return x / y, 1.0, (1 - x - y) / y


def _times(matrix: Matrix, vector: Sequence[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def _product(left: Matrix, right: Matrix) -> Matrix:
    return [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*right, strict=True)] for row in left
    ]


def _inverse(matrix: Matrix) -> Matrix:
    """The inverse of a 3 x 3 matrix, by its adjugate. Raises UnusableProfile if it is singular."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    adjugate = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    determinant = a * adjugate[0][0] + b * adjugate[1][0] + c * adjugate[2][0]
    if abs(determinant) < 1e-6:
        raise UnusableProfile("names colours that span no space")
    return [[value / determinant for value in row] for row in adjugate]
