"""Signed links to one object, bound to bucket, key, method and expiry; upload links also to type, size and hash.

They are bearer tokens; keep their lives short. `onbrand.api.files` serves the bytes. Links of an S3 store are presigned
for S3 itself (`backends`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, cast
from urllib.parse import quote, urlencode

from onbrand.errors import InvalidInput, Unauthenticated
from onbrand.storage.layout import Bucket, Key

LINK_SECONDS_MAX = 3600
_EXPIRES = re.compile(r"[1-9][0-9]{0,11}")
_BYTES = re.compile(r"[1-9][0-9]{0,15}")
_CONTENT_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]+(?:; charset=utf-8)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def must_be_link_seconds(seconds: int) -> int:
    """Return `seconds` if a link may live so long, else raise InvalidInput."""
    if not 1 <= seconds <= LINK_SECONDS_MAX:
        raise InvalidInput(f"a link lives 1 to {LINK_SECONDS_MAX} seconds", param="seconds")
    return seconds


@dataclass(frozen=True, slots=True)
class Announced:
    """Type, size and hash of an announced upload; the link accepts nothing else.

    Args:
        bytes: exact size.
        sha256: hash of the bytes, hex; None accepts any.

    Raises InvalidInput: a field has not the form of one.
    """

    content_type: str
    bytes: int
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not _CONTENT_TYPE.fullmatch(self.content_type):
            raise InvalidInput("content_type must be a media type like image/png", param="content_type")
        if self.bytes < 1:
            raise InvalidInput("bytes must be 1 or more; an empty file is nothing to upload", param="bytes")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise InvalidInput("sha256 must be 64 hexadecimal digits in lower case", param="sha256")


@dataclass(frozen=True, slots=True)
class UploadLink:
    """Where and how to send the announced bytes, once.

    `PUT`: the bytes are the body, `headers` go with them. `POST`: a form of `fields` and then the file, called `file`.
    """

    method: Literal["PUT", "POST"]
    url: str = field(repr=False)
    expires_at: datetime
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    fields: Mapping[str, str] = field(default_factory=dict, repr=False)


def sign_link(key: Key, method: str, seconds: int, secret: str, base_url: str) -> str:
    """``{base_url}/v1/files/{bucket}/{name}?expires=...&signature=...``, good for one method."""
    expires = str(int(time.time()) + must_be_link_seconds(seconds))
    query = urlencode({"expires": expires, "signature": _signature(key.bucket, key.name, method, expires, secret)})
    return f"{_address(key, base_url)}?{query}"


def verify_link(bucket: str, name: str, method: str, expires: str, signature: str, secret: str) -> Key:
    """The key that the link opens.

    Raises Unauthenticated: forged, altered, for another method, or expired; the message does not say which.
    """
    _must_be_genuine(_signature(bucket, name, method, expires, secret), signature, expires)
    try:
        return Key(cast(Bucket, bucket), name)
    except InvalidInput:
        raise _not_genuine() from None


def sign_upload(key: Key, announced: Announced, seconds: int, secret: str, base_url: str) -> UploadLink:
    """A PUT to ``{base_url}/v1/files/{bucket}/{name}?type=...&bytes=...&sha256=...&expires=...&signature=...``."""
    ends = int(time.time()) + must_be_link_seconds(seconds)
    said = {"type": announced.content_type, "bytes": str(announced.bytes), "sha256": announced.sha256 or ""}
    signature = _signature(key.bucket, key.name, "PUT", str(ends), secret, *said.values())
    query = urlencode({**said, "expires": str(ends), "signature": signature})
    headers = {"Content-Type": announced.content_type, "Content-Length": said["bytes"]}
    return UploadLink("PUT", f"{_address(key, base_url)}?{query}", datetime.fromtimestamp(ends, UTC), headers)


def verify_upload(
    bucket: str, name: str, said: Mapping[str, str], expires: str, signature: str, secret: str
) -> tuple[Key, Announced]:
    """The key that an upload link may fill, and the announced upload.

    Args:
        said: the link's `type`, `bytes` and `sha256`, as they stand in it.

    Raises Unauthenticated: as in `verify_link`; also for a download link.
    """
    parts = [said.get(part, "") for part in ("type", "bytes", "sha256")]
    _must_be_genuine(_signature(bucket, name, "PUT", expires, secret, *parts), signature, expires)
    content_type, size, sha256 = parts
    try:
        if not _BYTES.fullmatch(size):
            raise InvalidInput("bytes is no number", param="bytes")
        return Key(cast(Bucket, bucket), name), Announced(content_type, int(size), sha256 or None)
    except InvalidInput:
        raise _not_genuine() from None


def _address(key: Key, base_url: str) -> str:
    return f"{base_url.rstrip('/')}/v1/files/{key.bucket}/{quote(key.name)}"


def _must_be_genuine(wanted: str, signature: str, expires: str) -> None:
    genuine = hmac.compare_digest(wanted.encode(), signature.encode("utf-8", "surrogatepass"))
    if not genuine or not _EXPIRES.fullmatch(expires) or int(expires) <= time.time():
        raise _not_genuine()


def _not_genuine() -> Unauthenticated:
    return Unauthenticated("the link is not genuine or has expired; ask for a new one")


def _signature(bucket: str, name: str, method: str, expires: str, secret: str, *more: str) -> str:
    """HMAC-SHA256 over the parts, one per line. No part of a key, method or announcement can hold a newline.

    A download link has five lines and an upload link eight, so neither is valid as the other.
    """
    parts = "\n".join(("onbrand-link-2", method.upper(), bucket, name, expires, *more))
    digest = hmac.new(secret.encode(), parts.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
