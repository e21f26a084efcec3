"""Results of checking files: plain data types shared by the checking child and its parent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from onbrand.lora_names import Dropped
from onbrand.visible import printed

ImageFormat = Literal["PNG", "JPEG", "WEBP"]
_NAME_CHARS_MAX = 80


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts of an image's header. Width and height are as stored, before EXIF rotation."""

    format: ImageFormat
    content_type: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """Measurements of an image, taken by `image_features` when it is uploaded.

    Args:
        width, height: upright, in pixels.
        digest: SHA-256 of the upright pixels, independent of the file format.
        dhash: difference hash, 256 bits, hex.
        colours: the image scaled to 8 x 8 x RGB, 192 bytes, hex.
        sides: the shorter sides, in pixels, at which `sharpness` was taken; powers of two, ascending.
        sharpness: variance of the Laplacian of the luminance (0..1) at each of `sides`.
        contrast: standard deviation of the luminance (0..1).
        opaque, visible: shares of pixels whose alpha is at least 250, and at least 26, of 255.
    """

    width: int
    height: int
    digest: str
    dhash: str
    colours: str
    sides: tuple[int, ...]
    sharpness: tuple[float, ...]
    contrast: float
    opaque: float
    visible: float


@dataclass(frozen=True, slots=True)
class CleanImage:
    """An image encoded anew: upright, sRGB, 8 bit, without metadata or trailing bytes."""

    bytes: bytes
    content_type: str
    ext: str
    width: int
    height: int
    sha256: str
    features: ImageFeatures


@dataclass(frozen=True, slots=True)
class Packed:
    """One image of an archive, unpacked but not yet checked."""

    filename: str
    data: bytes = field(repr=False)
    caption: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class CleanDocument:
    """A document written anew. `num_pages` is None for text."""

    bytes: bytes
    content_type: str
    ext: str
    num_pages: int | None
    sha256: str


def is_zip(data: bytes) -> bool:
    """Whether the file begins like a zip archive."""
    return data[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")


def shown(name: str) -> str:
    """A caller's file name, safe to show in a message or a log line."""
    plain = printed(name)
    return plain if len(plain) <= _NAME_CHARS_MAX else f"{plain[:_NAME_CHARS_MAX]}..."


@dataclass(frozen=True, slots=True)
class CheckedWeights:
    """Summary of a file of weights.

    Args:
        text_layers: number of text-encoder layers, which an import drops.
        text_norm: Frobenius norm of all updates of these layers together.
        norm: the same for the whole file; 0 where nothing is dropped.
    """

    num_tensors: int
    text_layers: int = 0
    text_norm: float = 0.0
    norm: float = 0.0

    @property
    def dropped(self) -> Dropped | None:
        """The part that an import drops; None if it drops nothing."""
        return Dropped(self.text_layers, self.text_norm, self.norm) if self.text_layers else None
