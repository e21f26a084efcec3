"""Makes all keys of objects. The first segment of every key is the brand; a region is never part of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Literal

from onbrand.brand import must_be_brand_id
from onbrand.errors import InvalidInput

Bucket = Literal["training-data", "models", "generated-content", "brand-documents"]
DrawnBy = Literal["base", "adapter"]
BUCKETS: tuple[Bucket, ...] = ("training-data", "models", "generated-content", "brand-documents")

CONTENT_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "json": "application/json",
    "pdf": "application/pdf",
    "md": "text/markdown; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "safetensors": "application/octet-stream",
}

SHOWN_TYPES = frozenset({"image/png", "image/jpeg", "image/webp"})
"""Types that a browser may display; all others are downloaded."""

INCOMING = "incoming"
"""A brand's folder for unchecked uploads; nothing is ever served from it."""

_NAME_CHARS_MAX = 512
_SEGMENT = r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.))*"
_NAME = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})+")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*(?:{_SEGMENT})?")
_PICTURES = ("png", "jpg", "webp")


@dataclass(frozen=True, slots=True)
class Key:
    """One object: a bucket and a plain name like ``acme/logo-001.jpg``.

    Raises InvalidInput: the bucket is unknown, or the name is not `brand/segment[/segment...]` in plain lower case.
    """

    bucket: Bucket
    name: str

    def __post_init__(self) -> None:
        must_be_plain(self.bucket, self.name)

    @property
    def brand_id(self) -> str:
        """The brand that owns the object."""
        return self.name.split("/", 1)[0]

    @property
    def filename(self) -> str:
        """The last segment, for `Content-Disposition`."""
        return self.name.rsplit("/", 1)[1]

    @property
    def is_incoming(self) -> bool:
        """Whether it is an unchecked upload, which must never be served."""
        return self.name.split("/", 2)[1] == INCOMING

    @property
    def content_type(self) -> str:
        """The type of the extension; `application/octet-stream` for an unknown one."""
        return CONTENT_TYPES.get(self.name.rsplit(".", 1)[-1], "application/octet-stream")


@dataclass(frozen=True, slots=True)
class Drawn:
    """Identifies a sample: drawn by the base, or by the adapter after `step` steps, for the prompt `index`."""

    by: DrawnBy
    step: int
    index: int


def must_be_plain(bucket: str, name: str) -> None:
    """Raise InvalidInput unless the bucket is known and the name plain: no `..`, `//`, `./`, odd characters."""
    if bucket not in BUCKETS:
        raise InvalidInput(f"there is no such bucket; the buckets are {', '.join(BUCKETS)}", param="bucket")
    if len(name) > _NAME_CHARS_MAX or not _NAME.fullmatch(name):
        raise InvalidInput("a key is brand/name in lower-case letters, digits, '.', '_' and '-'", param="key")
    must_be_brand_id(name.split("/", 1)[0], param="key")


def must_be_prefix(prefix: str) -> str:
    """Return `prefix` if it can begin a key below the brand's folder (`samples/`, `logo-`), else raise InvalidInput."""
    if len(prefix) > _NAME_CHARS_MAX or not _PREFIX.fullmatch(prefix):
        raise InvalidInput("a prefix holds lower-case letters, digits, '.', '_', '-' and '/'", param="prefix")
    return prefix


def training_image(brand_id: str, object: str, number: int, ext: str) -> Key:
    """``training-data: acme/logo-001.jpg``"""
    return Key("training-data", f"{brand_id}/{object}-{_counted(number)}.{_one_of(ext, _PICTURES)}")


def model_file(brand_id: str, family: str, version: int) -> Key:
    """``models: acme/flux-lora-v1.safetensors``"""
    if version < 1:
        raise InvalidInput("a version counts from 1", param="version")
    return Key("models", f"{brand_id}/{family}-lora-v{version}.safetensors")


def model_metadata(brand_id: str) -> Key:
    """``models: acme/metadata.json``, written for people; Onbrand never reads it."""
    return Key("models", f"{brand_id}/metadata.json")


def generated_image(brand_id: str, day: date, number: int, ext: str) -> Key:
    """``generated-content: acme/2024-12-04-001.jpg``"""
    name = f"{brand_id}/{day:%Y-%m-%d}-{_counted(number)}.{_one_of(ext, _PICTURES)}"
    return Key("generated-content", name)


def sample_image(brand_id: str, job_id: str, drawn: Drawn, ext: str) -> Key:
    """``generated-content: acme/samples/{job_id}/000100-00.png``, and ``.../base-00.png`` for samples of the base."""
    who = "base" if drawn.by == "base" else f"{drawn.step:06d}"
    name = f"{brand_id}/samples/{job_id}/{who}-{drawn.index:02d}.{_one_of(ext, _PICTURES)}"
    return Key("generated-content", name)


def drawn_in(key: Key) -> Drawn:
    """The sample of a key that `sample_image` made."""
    who, index = key.filename.split(".", 1)[0].split("-")
    return Drawn("base", 0, int(index)) if who == "base" else Drawn("adapter", int(who), int(index))


def document(brand_id: str, title: str, ext: str, version: int = 1) -> Key:
    """``brand-documents: acme/brand-guidelines.pdf``, and later versions ``acme/brand-guidelines/v2.pdf``."""
    if version < 1 or title == INCOMING:
        raise InvalidInput("a version counts from 1, and no document is called incoming", param="version")
    name = title if version == 1 else f"{title}/v{version}"
    return Key("brand-documents", f"{brand_id}/{name}.{_one_of(ext, ('pdf', 'md', 'txt'))}")


def incoming_file(bucket: Bucket, brand_id: str, upload_id: str) -> Key:
    """``training-data: acme/incoming/{upload_id}``, where an upload lies until it is checked and published."""
    return Key(bucket, f"{brand_id}/{INCOMING}/{upload_id}")


def import_file(brand_id: str, job_id: str) -> Key:
    """``models: acme/incoming/{job_id}``, where a foreign LoRA file lies until its import has ended."""
    return incoming_file("models", brand_id, job_id)


def _counted(number: int) -> str:
    if number < 1:
        raise InvalidInput("objects of a kind count from 1", param="number")
    return f"{number:03d}"


def _one_of(ext: str, allowed: tuple[str, ...]) -> str:
    if ext not in allowed:
        raise InvalidInput(f"the extension must be one of {', '.join(allowed)}", param="ext")
    return ext
