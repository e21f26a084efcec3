"""A drawn picture as a file, with its receipt in the file's metadata."""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

CONTENT_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
RECEIPT_KEY = "onbrand:receipt"
_IMAGE_DESCRIPTION = 0x010E


def encoded(image_CHW: torch.Tensor, output_format: str, receipt: dict[str, Any]) -> bytes:
    """The file of a picture in 0..1: PNG (the receipt in a text chunk), JPEG or WEBP (in EXIF's description)."""
    pixels_HWC = (image_CHW.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    picture, file, text = Image.fromarray(pixels_HWC), io.BytesIO(), json.dumps(receipt, sort_keys=True)
    if output_format == "png":
        info = PngInfo()
        info.add_text(RECEIPT_KEY, text)
        picture.save(file, "PNG", pnginfo=info)
    else:
        exif = Image.Exif()
        exif[_IMAGE_DESCRIPTION] = text
        picture.save(file, output_format.upper(), quality=95, exif=exif)
    return file.getvalue()
