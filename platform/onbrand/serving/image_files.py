"""Encodes a drawn image as a file with its receipt in the metadata, and a preview as a data URL without one."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from onbrand.serving.drawing import Pixels

CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
RECEIPT_KEY = "onbrand:receipt"
_IMAGE_DESCRIPTION = 0x010E
_PREVIEW_SIDE_MAX = 128
_QUALITY = 95


def encoded(pixels: Pixels, output_format: str, receipt: dict[str, Any], quality: int | None = None) -> bytes:
    """The file of an image: PNG (receipt in a text chunk), JPEG or WEBP (receipt in EXIF's description).

    Args:
        quality: of JPEG and WEBP, 0 to 100; None: 95.
    """
    image, file, text = _image(pixels), io.BytesIO(), json.dumps(receipt, sort_keys=True)
    if output_format == "png":
        info = PngInfo()
        info.add_text(RECEIPT_KEY, text)
        image.save(file, "PNG", pnginfo=info)
    else:
        exif = Image.Exif()
        exif[_IMAGE_DESCRIPTION] = text
        image.save(file, output_format.upper(), quality=_QUALITY if quality is None else quality, exif=exif)
    return file.getvalue()


def as_data_url(pixels: Pixels) -> str:
    """A preview as a small JPEG in a URL; no side is longer than 128 pixels."""
    image, file = _image(pixels), io.BytesIO()
    image.thumbnail((_PREVIEW_SIDE_MAX, _PREVIEW_SIDE_MAX))
    image.save(file, "JPEG", quality=75)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _image(pixels: Pixels) -> Image.Image:
    return Image.frombytes("RGB", (pixels.width, pixels.height), pixels.data)
