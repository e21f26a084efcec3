"""Pictures that come from outside: told apart, bounded before decoding, and made anew so that only pixels remain."""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageCms, ImageOps

from onbrand.config import Limits
from onbrand.errors import InvalidInput, TooLarge, UnsupportedMedia

PictureFormat = Literal["PNG", "JPEG", "WEBP"]
_EXT: dict[str, str] = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
_CONTENT_TYPE: dict[str, str] = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_SAVING: dict[str, dict[str, object]] = {
    "PNG": {"compress_level": 6},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95, "method": 4},
}
_JPEG_SCANS_MAX = 128
_ICC_BYTES_MAX = 2**20
_NAME_CHARS_MAX = 80


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the header says. Width and height are the stored ones, before EXIF turns them."""

    format: PictureFormat
    content_type: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class CleanImage:
    """A picture made anew: upright, sRGB, 8 bit, without metadata or anything that followed the pixels."""

    bytes: bytes
    content_type: str
    ext: str
    width: int
    height: int
    sha256: str


def inspect_image(data: bytes, limits: Limits, name: str = "the file") -> ImageFacts:
    """Read the header only.

    Args:
        name: what the caller calls the file; errors name it.

    Raises:
        UnsupportedMedia: not a still PNG, JPEG or WEBP.
        TooLarge: more bytes or pixels than the limits.
        InvalidInput: a side is shorter than the limit.
    """
    with _opened(data, limits, name) as image:
        return _facts(image)


def clean_image(data: bytes, limits: Limits, name: str = "the file") -> CleanImage:
    """Decode the picture and encode its pixels anew in the same format. Raises as `inspect_image` does."""
    with _opened(data, limits, name) as image:
        facts = _facts(image)
        try:
            upright = _upright(image)
            encoded = _encoded(upright, facts.format)
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, MemoryError):
            raise UnsupportedMedia(
                f"{shown(name)} is damaged or cut short; save it anew as PNG, JPEG or WEBP", param="files"
            ) from None
    digest = hashlib.sha256(encoded).hexdigest()
    return CleanImage(encoded, facts.content_type, _EXT[facts.format], *upright.size, digest)


def shown(name: str) -> str:
    """A caller's file name, safe to show in a message or a log line."""
    plain = "".join(c if c.isprintable() else "?" for c in name)
    return plain if len(plain) <= _NAME_CHARS_MAX else f"{plain[:_NAME_CHARS_MAX]}..."


def _opened(data: bytes, limits: Limits, name: str) -> Image.Image:
    if len(data) > limits.upload_bytes:
        raise TooLarge(f"{shown(name)} has {len(data)} bytes; the limit is {limits.upload_bytes}", param="files")
    _must_be_harmless_to_open(data, limits, name)
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(limits, name) from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, MemoryError):
        raise UnsupportedMedia(f"{shown(name)} is not a PNG, JPEG or WEBP picture", param="files") from None
    _must_fit(image, limits, name)
    return image


def _must_be_harmless_to_open(data: bytes, limits: Limits, name: str) -> None:
    """Two things decoders do not bound: the canvas that libwebp allocates on opening, and a JPEG's number of scans."""
    width, height = _webp_canvas(data)
    if width * height > limits.image_pixels:
        raise _too_many_pixels(limits, name)
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > _JPEG_SCANS_MAX:
        raise UnsupportedMedia(f"{shown(name)} is a JPEG of more than {_JPEG_SCANS_MAX} scans", param="files")


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height of a WEBP's canvas (RFC 9649, 2.7); zeros for anything else."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return 0, 0
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _must_fit(image: Image.Image, limits: Limits, name: str) -> None:
    if image.width * image.height > limits.image_pixels:
        raise _too_many_pixels(limits, name)
    if getattr(image, "n_frames", 1) > 1:
        raise UnsupportedMedia(f"{shown(name)} is animated; upload a still picture", param="files")
    if min(image.size) < limits.image_side_min:
        raise InvalidInput(
            f"{shown(name)} is {image.width} x {image.height}; each side must have {limits.image_side_min} pixels",
            param="files",
        )


def _too_many_pixels(limits: Limits, name: str) -> TooLarge:
    return TooLarge(f"{shown(name)} has too many pixels; the limit is {limits.image_pixels}", param="files")


def _facts(image: Image.Image) -> ImageFacts:
    kind = "JPEG" if image.format in ("JPEG", "MPO") else image.format
    return ImageFacts(kind, _CONTENT_TYPE[str(kind)], image.width, image.height)  # type: ignore[arg-type]


def _upright(image: Image.Image) -> Image.Image:
    """Pixels only: EXIF's turn applied, 8 bit, sRGB, with or without alpha."""
    profile = image.info.get("icc_profile")
    image.load()
    turned = ImageOps.exif_transpose(image)
    has_alpha = turned.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in turned.info
    plain = _in_srgb(_eight_bit(turned), profile)
    return plain.convert("RGBA" if has_alpha and image.format != "JPEG" else "RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value / 257).convert("L")
    return image


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as sRGB, so that dropping the profile changes none; a profile that cannot be read is left out."""
    if not profile or len(profile) > _ICC_BYTES_MAX or image.mode not in ("RGB", "CMYK", "RGBA"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def _encoded(image: Image.Image, kind: PictureFormat) -> bytes:
    image.info.clear()
    out = io.BytesIO()
    image.save(out, format=kind, **_SAVING[kind])
    return out.getvalue()
