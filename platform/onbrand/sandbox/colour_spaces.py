"""The colour space that an image's file declares, as an ICC profile.

A PNG declares it by cICP, iCCP, sRGB, or gAMA and cHRM; the first of these counts (PNG, third edition, 4.3). JPEG and
WEBP declare it by a profile, JPEG from cameras also by EXIF (DCF 2.0, 3.3.5). A file without a declaration is sRGB.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from onbrand.sandbox import icc_profiles
from onbrand.sandbox.icc_profiles import Primaries, Profile, UnusableProfile, read_profile
from onbrand.sandbox.png_chunks import PngHead, unpacked_profile

if TYPE_CHECKING:
    from PIL import Image

_GAMMA_OF_SRGB = 45455
_GAMMA_TOLERANCE = 0.05
"""libpng's PNG_GAMMA_THRESHOLD: a gAMA this near to 1/2.2, sRGB's gAMA, means sRGB's curve (11.3.2.5)."""
_GAMMA_RANGE = (10_000, 1_000_000)
_POINT_TOLERANCE = 0.002
_INTEROPERABILITY, _ADOBE_RGB = 0xA005, "R03"
_CODED_PRIMARIES = {1: icc_profiles.SRGB, 9: icc_profiles.BT2020, 12: icc_profiles.DISPLAY_P3}
_CODED_CURVES = {
    **dict.fromkeys((1, 6, 14, 15), (1 / 0.45, 0.099, 4.5, 0.081)),
    13: (2.4, 0.055, 12.92, 0.04045),
}
_CODED_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_HIGH_DYNAMIC_RANGE = (16, 18)


def profile_of(image: Image.Image, head: PngHead | None, bytes_max: int) -> Profile | None:
    """The profile of the image's colours; None for sRGB.

    Args:
        image: opened, with its EXIF not yet applied.
        head: of a PNG; None for other formats.
        bytes_max: limit of a profile's size.

    Raises:
        UnusableProfile: the declaration is damaged, too large, or of an unsupported colour space.
    """
    if head is not None:
        return _of_png(head, bytes_max)
    if "icc_profile" in image.info:
        return _read(image.info["icc_profile"] or b"", bytes_max)
    if image.mode == "RGB" and _is_adobe_rgb(image):
        return icc_profiles.rgb_profile(icc_profiles.ADOBE_RGB, icc_profiles.gamma(563 / 256))
    return None


def _read(data: bytes, bytes_max: int) -> Profile:
    if len(data) > bytes_max:
        raise UnusableProfile(f"has {len(data)} bytes; the limit is {bytes_max}")
    return read_profile(data)


def _of_png(head: PngHead, bytes_max: int) -> Profile | None:
    chunks = head.chunks
    if b"cICP" in chunks:
        return _of_code(chunks[b"cICP"], head.is_gray)
    if b"iCCP" in chunks:
        return _read(unpacked_profile(chunks[b"iCCP"], bytes_max), bytes_max)
    if b"sRGB" in chunks:
        return None
    return _of_numbers(chunks.get(b"gAMA"), None if head.is_gray else chunks.get(b"cHRM"), head.is_gray)


def _of_code(chunk: bytes, is_gray: bool) -> Profile | None:
    """The profile of a cICP chunk, whose numbers are those of ITU-T H.273 (PNG, 11.3.2.6)."""
    if len(chunk) != 4:
        raise UnusableProfile("is damaged")
    primaries, transfer, matrix, is_full = chunk
    if transfer in _HIGH_DYNAMIC_RANGE:
        raise UnusableProfile("is of high dynamic range, whose light has no place in sRGB")
    has_curve = transfer in _CODED_CURVES or transfer in _CODED_GAMMAS
    if primaries not in _CODED_PRIMARIES or not has_curve or matrix or is_full != 1:
        raise UnusableProfile(f"has the code {primaries}/{transfer}/{matrix}/{is_full}, which is not known here")
    if (primaries, transfer) == (1, 13):
        return None
    gamma = _CODED_GAMMAS.get(transfer)
    curve = icc_profiles.with_toe(*_CODED_CURVES[transfer]) if gamma is None else icc_profiles.gamma(gamma)
    return icc_profiles.gray_profile(curve) if is_gray else icc_profiles.rgb_profile(_CODED_PRIMARIES[primaries], curve)


def _of_numbers(gamma: bytes | None, points: bytes | None, is_gray: bool) -> Profile | None:
    """The profile of gAMA (11.3.2.2) and cHRM (11.3.2.1). Missing values, and those very near to sRGB's, are sRGB's."""
    curve = None if gamma is None else _curve(gamma)
    primaries = None if points is None else _primaries(points)
    if curve is None and primaries is None:
        return None
    curve = curve or icc_profiles.srgb_curve()
    return (
        icc_profiles.gray_profile(curve) if is_gray else icc_profiles.rgb_profile(primaries or icc_profiles.SRGB, curve)
    )


def _curve(chunk: bytes) -> bytes | None:
    least, most = _GAMMA_RANGE
    if len(chunk) != 4 or not least <= (value := int.from_bytes(chunk, "big")) <= most:
        raise UnusableProfile(f"has a gamma that is not between {least / 100_000} and {most / 100_000}")
    if abs(value / _GAMMA_OF_SRGB - 1) <= _GAMMA_TOLERANCE:
        return None
    return icc_profiles.gamma(100_000 / value)


def _primaries(chunk: bytes) -> Primaries | None:
    if len(chunk) != 32:
        raise UnusableProfile("is damaged")
    x = [value / 100_000 for value in struct.unpack(">8I", chunk)]
    primaries = Primaries(white=(x[0], x[1]), red=(x[2], x[3]), green=(x[4], x[5]), blue=(x[6], x[7]))
    srgb = icc_profiles.SRGB
    srgb_values = (*srgb.white, *srgb.red, *srgb.green, *srgb.blue)
    return None if all(abs(a - b) <= _POINT_TOLERANCE for a, b in zip(x, srgb_values, strict=True)) else primaries


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether EXIF declares Adobe RGB: it has no number for it, only an interoperability index."""
    try:
        index = image.getexif().get_ifd(_INTEROPERABILITY).get(1)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, IndexError, struct.error):
        return False  # unreadable EXIF declares nothing
    return str(index).rstrip("\0 ") == _ADOBE_RGB
