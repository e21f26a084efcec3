"""The two methods of uploading directly to S3: a form with a signed policy, or a presigned PUT."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from onbrand.errors import Conflict
from onbrand.storage.links import Announced, UploadLink


@dataclass(frozen=True, slots=True)
class Way:
    """A store's upload method.

    Args:
        method: None if the store takes no direct uploads.
        is_once: a PUT sends ``If-None-Match: *`` and the store obeys it: a link fills its key once.
    """

    method: Literal["POST", "PUT"] | None
    is_once: bool = False


def must_be_open(way: Way) -> Way:
    """Return `way`. Raises Conflict if the store takes no direct uploads."""
    if way.method is None:
        raise Conflict("this platform takes no files by a link; send them to the brand's assets or documents as a form")
    return way


def upload_form(
    announced: Announced, seconds: int, sign: Callable[[dict[str, str], list[Any], int], dict[str, Any]]
) -> UploadLink:
    """A form that accepts exactly the announced upload.

    Args:
        sign: makes the address and fields from fixed fields, conditions and seconds.
    """
    fixed = {"Content-Type": announced.content_type}
    if announced.sha256 is not None:  # AWS checks it on arrival; for other gateways `complete` does
        fixed["x-amz-checksum-sha256"] = _in_base64(announced.sha256)
    conditions = [["content-length-range", announced.bytes, announced.bytes], *({k: v} for k, v in fixed.items())]
    made = sign(fixed, conditions, seconds)
    return UploadLink("POST", made["url"], _end(seconds), fields=made["fields"])


def put_parameters(announced: Announced, way: Way) -> dict[str, Any]:
    """The parameters that botocore signs into a PUT: each becomes a header that must arrive unchanged."""
    given: dict[str, Any] = {"ContentType": announced.content_type, "ContentLength": announced.bytes}
    if announced.sha256 is not None:
        given["ChecksumSHA256"] = _in_base64(announced.sha256)
    return given | ({"IfNoneMatch": "*"} if way.is_once else {})


def upload_put(url: str, announced: Announced, way: Way, seconds: int) -> UploadLink:
    """The upload link for a `url` signed with `put_parameters`, with the required headers."""
    headers = {"Content-Type": announced.content_type, "Content-Length": str(announced.bytes)}
    if announced.sha256 is not None:
        headers["x-amz-checksum-sha256"] = _in_base64(announced.sha256)
    if way.is_once:
        headers["If-None-Match"] = "*"
    return UploadLink("PUT", url, _end(seconds), headers)


def _in_base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def _end(seconds: int) -> datetime:
    return datetime.fromtimestamp(int(time.time()) + seconds, UTC)
