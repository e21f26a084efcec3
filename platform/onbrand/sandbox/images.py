"""Incoming images: checked against the limits before decoding, then encoded anew so that only pixels remain.

This runs in the child process of `onbrand.sandbox.checker` and saves memory: an image's pixels are in memory once,
and twice only while it is rotated.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from onbrand.errors import InvalidInput, TooLarge, UnsupportedMedia
from onbrand.sandbox.bitstreams import JPEG_MAGIC, is_lossless_webp, num_scans, webp_canvas
from onbrand.sandbox.colour_spaces import profile_of
from onbrand.sandbox.icc_profiles import Profile, UnusableProfile
from onbrand.sandbox.image_features import measure
from onbrand.sandbox.png_chunks import MAGIC as PNG_MAGIC
from onbrand.sandbox.png_chunks import PngHead, allow_profiles_of, png_head, read_second_bytes, unpacked_profile
from onbrand.sandbox.polyglots import must_be_one_thing
from onbrand.sandbox.results import CleanImage, ImageFacts, ImageFormat, shown
from onbrand.sandbox.srgb import Decoded, to_srgb

if TYPE_CHECKING:
    from onbrand.config import Limits

_EXT: dict[str, str] = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_CONTENT_TYPE: dict[str, str] = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_SAVING: dict[str, dict[str, object]] = {
    "PNG": {"compress_level": 6},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95, "method": 4},
}
_LOSSLESS_WEBP = {"lossless": True, "exact": True, "quality": 20, "method": 0}  # `quality` is the effort
_MAGIC = (PNG_MAGIC, JPEG_MAGIC, b"RIFF")
_JPEG_SCANS_MAX = 128
_XMP = ("xmp", "XML:com.adobe.xmp")
"""Pillow's keys for XMP."""
_WEBP_PIXELS_MAX = 12_600_000  # 4096 x 3072: libwebp and its wrapper keep 17 bytes a pixel


def inspect_image(data: bytes, limits: Limits, name: str = "the file") -> ImageFacts:
    """Read the header only.

    Args:
        name: the caller's name of the file, for errors.

    Raises:
        UnsupportedMedia: not a still PNG, JPEG or WEBP.
        TooLarge: more bytes or pixels than the limits.
        InvalidInput: a side is shorter than the limit.
    """
    with _opened(data, limits, name) as image:
        return _facts(image)


def clean_image(
    data: bytes, limits: Limits, name: str = "the file", decoded: Callable[[int], object] = lambda num_pixels: None
) -> CleanImage:
    """Decode the image, measure it, and encode its pixels anew in the same format.

    Args:
        decoded: called with the number of pixels after decoding; the remaining time depends on that number only.

    Raises as `decode` does, and TooLarge if encoding runs out of memory.
    """
    facts, upright = decode(data, limits, name, decoded)
    try:
        features = measure(upright)
        encoded = _encoded(upright, facts.format, is_lossless_webp(data))
    except (OSError, ValueError):  # the file is not damaged: encoders raise these when out of memory
        raise _too_much_to_encode(name) from None
    digest = hashlib.sha256(encoded).hexdigest()
    return CleanImage(encoded, facts.content_type, _EXT[facts.format], *upright.size, digest, features)


def decode(
    data: bytes, limits: Limits, name: str = "the file", decoded: Callable[[int], object] = lambda num_pixels: None
) -> tuple[ImageFacts, Image.Image]:
    """The facts of the header, and upright sRGB pixels. A WEBP is copied to free its decoder, which keeps two canvases.

    Raises as `inspect_image` does, and UnsupportedMedia for an image that is damaged or cut short, or whose colour
    profile cannot be applied.
    """
    with _opened(data, limits, name) as image:
        facts = _facts(image)
        head = png_head(data) if facts.format == "PNG" else None
        try:
            profile = profile_of(image, head, limits.profile_bytes)
            image.load()
            decoded(image.width * image.height)
            upright = _upright(image, data, head, profile)
        except UnusableProfile as problem:
            raise _of_no_use(name, problem) from None
        except (OSError, ValueError, SyntaxError, EOFError, struct.error):
            raise _damaged(name) from None
        return facts, image.copy() if upright is image and facts.format == "WEBP" else upright


def _damaged(name: str) -> UnsupportedMedia:
    return UnsupportedMedia(f"{shown(name)} is damaged or cut short; save it anew as PNG, JPEG or WEBP", param="files")


def _too_much_to_encode(name: str) -> TooLarge:
    return TooLarge(
        f"{shown(name)} needs more memory than a file may take to be made anew; save it smaller, or as PNG",
        param="files",
    )


def _of_no_use(name: str, problem: UnusableProfile) -> UnsupportedMedia:
    return UnsupportedMedia(f"{shown(name)}: its colour profile {problem}; save the picture in sRGB", param="files")


def _opened(data: bytes, limits: Limits, name: str) -> Image.Image:
    if len(data) > limits.upload_bytes:
        raise TooLarge(f"{shown(name)} has {len(data)} bytes; the limit is {limits.upload_bytes}", param="files")
    _must_be_harmless_to_open(data, limits, name)
    try:
        image = _with_its_decoder(data, limits)
    except UnusableProfile as problem:
        raise _of_no_use(name, problem) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(limits.image_pixels, name) from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):
        raise UnsupportedMedia(f"{shown(name)} is not a PNG, JPEG or WEBP picture", param="files") from None
    _must_fit(image, limits, name)
    _drop_xmp(image)
    return image


def _with_its_decoder(data: bytes, limits: Limits) -> Image.Image:
    """Open the image; the first of several in a JPEG (MPO: depth, the other eye, a preview)."""
    if data.startswith(JPEG_MAGIC):
        return JpegImageFile(io.BytesIO(data))
    if data.startswith(PNG_MAGIC):
        allow_profiles_of(limits.profile_bytes)
        if (packed := png_head(data).chunks.get(b"iCCP")) is not None:
            unpacked_profile(packed, limits.profile_bytes)
    return Image.open(io.BytesIO(data), formats=("PNG", "WEBP"))


def _must_be_harmless_to_open(data: bytes, limits: Limits, name: str) -> None:
    """Check what decoders do not limit: the canvas that libwebp allocates on opening, and a JPEG's number of scans."""
    if data.startswith(_MAGIC):
        must_be_one_thing(data, "picture", shown(name))
    width, height = webp_canvas(data)
    if width * height > (most := min(limits.image_pixels, _WEBP_PIXELS_MAX)):
        raise _too_many_pixels(most, name)
    if data.startswith(JPEG_MAGIC) and num_scans(data) > _JPEG_SCANS_MAX:
        raise UnsupportedMedia(f"{shown(name)} is a JPEG of more than {_JPEG_SCANS_MAX} scans", param="files")


def _must_fit(image: Image.Image, limits: Limits, name: str) -> None:
    if image.width * image.height > limits.image_pixels:
        raise _too_many_pixels(limits.image_pixels, name)
    if getattr(image, "n_frames", 1) > 1:
        raise UnsupportedMedia(f"{shown(name)} is animated; upload a still picture", param="files")
    if min(image.size) < limits.image_side_min:
        raise InvalidInput(
            f"{shown(name)} is {image.width} x {image.height}; each side must have {limits.image_side_min} pixels",
            param="files",
        )


def _too_many_pixels(most: int, name: str) -> TooLarge:
    return TooLarge(f"{shown(name)} has too many pixels; the limit is {most}", param="files")


def _facts(image: Image.Image) -> ImageFacts:
    kind = str(image.format)
    return ImageFacts(kind, _CONTENT_TYPE[kind], image.width, image.height)  # type: ignore[arg-type]


def _upright(image: Image.Image, data: bytes, head: PngHead | None, profile: Profile | None) -> Image.Image:
    """Apply the EXIF rotation and convert to 8-bit sRGB, with or without alpha."""
    second = None
    if head is not None and head.has_second_bytes and (profile or head.transparent):
        second = read_second_bytes(PngImageFile(io.BytesIO(data)), head)
        _drop_xmp(second)
        ImageOps.exif_transpose(second, in_place=True)
    _drop_xmp(image)
    ImageOps.exif_transpose(image, in_place=True)
    return to_srgb(Decoded(image, second, head, profile))


def _drop_xmp(image: Image.Image) -> None:
    """Remove XMP: Pillow would rotate by it where EXIF gives no orientation, but browsers and viewers use EXIF alone.

    Pillow reads it on opening, and in a PNG also on loading.
    """
    for key in _XMP:
        image.info.pop(key, None)


def _encoded(image: Image.Image, kind: ImageFormat, is_lossless: bool) -> bytes:
    image.info.clear()
    out = io.BytesIO()
    image.save(out, format=kind, **(_LOSSLESS_WEBP if is_lossless else _SAVING[kind]))
    return out.getvalue()
