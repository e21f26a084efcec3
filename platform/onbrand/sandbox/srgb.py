"""Converts decoded pixels to 8-bit sRGB, with or without alpha, by littlecms if the file declares another space.

Pixels are converted in strips, in place if the mode stays: an image is in memory once, not three times.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image, ImageChops, ImageCms

from onbrand.sandbox import icc_profiles
from onbrand.sandbox.icc_profiles import Profile, UnusableProfile
from onbrand.sandbox.png_chunks import PngHead

_STRIP_PIXELS = 2**19
_GRAY_MODES = ("1", "L", "LA", "I", "I;16")
_PROBES = (0, 1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 240, 255)
_ROUNDING = 1
_ROUNDED = tuple((value * 255 + 32767) // 65535 for value in range(65536))
_FIRST_BYTES = tuple(value >> 8 for value in range(65536))
_SECOND_BYTES = tuple(value & 255 for value in range(65536))
Convert = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as its decoder left it.

    Args:
        image: in any mode that PNG, JPEG and WEBP decode to.
        second: the second bytes of 16-bit samples (`png_chunks.read_second_bytes`), if kept.
        head: of a PNG; None for other formats.
        profile: the profile of its colours; None for sRGB.
    """

    image: Image.Image
    second: Image.Image | None = None
    head: PngHead | None = None
    profile: Profile | None = None

    @property
    def is_gray(self) -> bool:
        return self.image.mode in _GRAY_MODES or (self.head is not None and self.head.is_gray)

    @property
    def has_alpha(self) -> bool:
        if self.head is not None and self.head.transparent is not None:
            return True
        return self.image.mode in ("LA", "PA", "RGBA") or (self.image.mode == "P" and "transparency" in self.image.info)


@dataclass(frozen=True, slots=True)
class _Strip:
    image: Image.Image
    second: Image.Image | None


def to_srgb(decoded: Decoded) -> Image.Image:
    """The image in mode RGB or RGBA. The decoded pixels may be overwritten.

    Raises:
        UnusableProfile: the profile is damaged or of another kind of pixels.
    """
    image, mode = decoded.image, "RGBA" if decoded.has_alpha else "RGB"
    if decoded.profile is None and image.mode == mode and decoded.second is None:
        return image
    if image.mode != "P":
        image.info.pop("transparency", None)  # Pillow's conversions would apply it, with the levels of the file
    colours = _colours(decoded)
    target = image if image.mode == mode else Image.new(mode, image.size)
    for box in _strips(image.size):
        strip = _Strip(image.crop(box), decoded.second and decoded.second.crop(box))
        done = colours(strip)
        if decoded.has_alpha:
            done.putalpha(_alpha(decoded, strip))
        target.paste(done, box)
    return target


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    width, height = size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield 0, top, width, min(height, top + rows)


# colours


def _colours(decoded: Decoded) -> Callable[[_Strip], Image.Image]:
    """A function that converts a strip to RGB. Raises UnusableProfile."""
    profile = decoded.profile
    if decoded.is_gray:
        return _gray_colours(decoded, profile)
    if decoded.image.mode == "CMYK":
        return _by(_converter(profile, "CMYK") if profile else _plain_rgb)
    if profile is None:
        return _by(_plain_rgb)
    convert = _converter(profile, "RGB")
    if decoded.second is None or not profile.is_matrix:
        return _by(lambda image: convert(_plain_rgb(image)))
    return _deep_colours(profile)


def _by(convert: Convert) -> Callable[[_Strip], Image.Image]:
    return lambda strip: convert(strip.image)


def _plain_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB without alpha; palette colours are looked up."""
    if image.mode == "P":
        image = image.convert("RGBA")  # direct conversion to RGB warns of transparency
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _gray_colours(decoded: Decoded, profile: Profile | None) -> Callable[[_Strip], Image.Image]:
    """Convert gray by its own curve, or as gray of an RGB space: images made gray often keep their RGB profile."""
    is_deep = decoded.image.mode in ("I", "I;16") or decoded.second is not None
    if profile is not None and profile.space == "RGB ":
        convert = _converter(profile, "RGB")
        if is_deep and profile.is_matrix:
            deep = _deep_colours(profile)
            return lambda strip: deep(_tripled(strip))
        return lambda strip: convert(_eight_bit(_gray(strip)).convert("RGB"))
    table = _gray_table(profile, is_deep) if profile is not None or is_deep else None
    if table is None:
        return lambda strip: _gray(strip).convert("RGB")
    return lambda strip: _looked_up(_gray(strip), table).convert("RGB")


def _gray(strip: _Strip) -> Image.Image:
    """The gray channel in mode L, or in mode I with 16 bits."""
    image, second = strip.image, strip.second
    if second is not None:
        return _sixteen_bit(second.getchannel(0), second.getchannel(1))
    if image.mode in ("I", "I;16"):
        return image.convert("I")
    return image.getchannel(0) if image.mode in ("LA", "RGBA") else image.convert("L")


def _tripled(strip: _Strip) -> _Strip:
    """A 16-bit gray strip as an RGB one."""
    gray = _gray(strip)
    first, second = gray.point(_FIRST_BYTES, "L"), gray.point(_SECOND_BYTES, "L")
    return _Strip(Image.merge("RGB", [first] * 3), Image.merge("RGB", [second] * 3))


def _sixteen_bit(first: Image.Image, second: Image.Image) -> Image.Image:
    """An image in mode I from first and second bytes."""
    both = Image.merge("LA", (second, first)).tobytes()
    return Image.frombytes("I;16", first.size, both).convert("I")


def _eight_bit(gray: Image.Image) -> Image.Image:
    return gray if gray.mode == "L" else _looked_up(gray, _ROUNDED)


def _looked_up(image: Image.Image, table: Sequence[int]) -> Image.Image:
    return image.point(table, "L")


def _gray_table(profile: Profile | None, is_deep: bool) -> Sequence[int]:
    """The 8-bit sRGB gray of each gray level; littlecms's own tables are off by ten levels in dark tones."""
    if profile is None:
        return _ROUNDED
    return _table_of(profile, is_deep)


def _table_of(profile: Profile, is_deep: bool) -> Sequence[int]:
    if profile.space != "GRAY":
        raise _of_other_pixels(profile, "gray")
    if is_deep:
        ramp = Image.frombytes("I;16", (256, 256), b"".join(value.to_bytes(2, "little") for value in range(65536)))
    else:
        ramp = Image.frombytes("L", (256, 1), bytes(range(256)))
    transform = _transform(profile, ramp.mode, ImageCms.Flags.NOOPTIMIZE)
    return list(_applied(transform, ramp).getchannel(0).tobytes())


def _deep_colours(profile: Profile) -> Callable[[_Strip], Image.Image]:
    """Convert 16-bit RGB by a matrix profile: the curve of each channel at 16 bits, then the matrix."""
    tables = [_table_of(icc_profiles.gray_profile(profile.tags[name]), True) for name in (b"rTRC", b"gTRC", b"bTRC")]
    convert = _converter(icc_profiles.with_curve(profile, icc_profiles.srgb_curve()), "RGB")

    def colours(strip: _Strip) -> Image.Image:
        assert strip.second is not None
        channels = [
            _looked_up(_sixteen_bit(strip.image.getchannel(index), strip.second.getchannel(index)), table)
            for index, table in enumerate(tables)
        ]
        return convert(Image.merge("RGB", channels))

    return colours


# littlecms


def _converter(profile: Profile, mode: str) -> Convert:
    """A conversion of 8-bit RGB or CMYK to sRGB: littlecms's fast one if it agrees with its exact one, else that."""
    if profile.space.strip() != mode:
        raise _of_other_pixels(profile, mode)
    exact = _transform(profile, mode, ImageCms.Flags.NOOPTIMIZE)
    fast = _transform(profile, mode, ImageCms.Flags.NONE)
    probe = _probe(mode)
    difference = ImageChops.difference(_applied(exact, probe), _applied(fast, probe))
    is_near = max(difference.tobytes()) <= _ROUNDING
    return partial(_applied, fast if is_near else exact)


def _probe(mode: str) -> Image.Image:
    """Sample colours of the whole space, denser in dark tones, where tables are coarse."""
    levels = _PROBES if len(mode) == 3 else _PROBES[::2]
    side, channels = len(levels), len(mode)
    indices = (index // side**channel % side for index in range(side**channels) for channel in range(channels))
    return Image.frombytes(mode, (side, side ** (channels - 1)), bytes(levels[index] for index in indices))


def _transform(profile: Profile, mode: str, flags: ImageCms.Flags) -> ImageCms.ImageCmsTransform:
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile.data)), ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(source, target, mode, "RGB", flags=flags)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        raise UnusableProfile("is damaged") from None


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    try:
        done = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        raise UnusableProfile("is damaged") from None
    assert done is not None
    return done


def _of_other_pixels(profile: Profile, mode: str) -> UnusableProfile:
    return UnusableProfile(f"is of {profile.space.strip()} pixels and its pixels are {mode}")


# alpha


def _alpha(decoded: Decoded, strip: _Strip) -> Image.Image:
    """Alpha in mode L: the file's, or 0 for pixels of the one transparent colour and 255 elsewhere."""
    transparent = decoded.head.transparent if decoded.head is not None else None
    if transparent is None:
        return strip.image.convert("RGBA").getchannel("A")
    if decoded.is_gray:
        return _differs(_gray(strip), _as_decoded(transparent[0], decoded))
    shift = 8 if strip.second is not None else 0
    masks = [_differs(strip.image.getchannel(i), value >> shift) for i, value in enumerate(transparent)]
    if strip.second is not None:
        masks += [_differs(strip.second.getchannel(i), value & 255) for i, value in enumerate(transparent)]
    alpha = masks[0]
    for mask in masks[1:]:
        alpha = ImageChops.lighter(alpha, mask)
    return alpha


def _as_decoded(level: int, decoded: Decoded) -> int:
    """The file's gray level on the scale that Pillow decodes to: 0 to 255, or 0 to 65535."""
    depth = decoded.head.depth if decoded.head is not None else 8
    return level * 255 // ((1 << depth) - 1) if depth < 8 else level


def _differs(image: Image.Image, value: int) -> Image.Image:
    table = [255] * (256 if image.mode == "L" else 65536)
    table[value] = 0
    return image.point(table, "L")
