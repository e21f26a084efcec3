"""Shared by the clients of S3: options of botocore, uploads in parts, and a client without credentials."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import botocore.session
import httpx

_TIMEOUT_SECONDS = 20.0


def botocore_options(endpoint: str | None) -> dict[str, Any]:
    """Options of `botocore.config.Config` for AWS (None) or for another endpoint."""
    options: dict[str, Any] = {
        "connect_timeout": 5,
        "read_timeout": 60,
        "retries": {"max_attempts": 4, "mode": "standard"},
    }
    if not endpoint:
        return options
    return options | {  # gateways other than AWS often lack virtual hosts and newer checksums
        "s3": {"addressing_style": "path"},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }


def put_in_parts(call: Callable[..., Any], where: Mapping[str, str], pieces: Iterable[bytes]) -> None:
    """A multipart upload, after which the object is there completely or not at all.

    Args:
        call: makes one call of S3 by its name, with its arguments.
        where: `Bucket` and `Key`.
    """
    upload = {**where, "UploadId": call("create_multipart_upload", **where)["UploadId"]}
    parts: list[dict[str, Any]] = []
    try:
        for number, piece in enumerate(pieces, 1):
            tag = call("upload_part", **upload, PartNumber=number, Body=piece)["ETag"]
            parts.append({"PartNumber": number, "ETag": tag})
        call("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
    except BaseException:
        with suppress(Exception):
            call("abort_multipart_upload", **upload)
        raise


def stranger() -> httpx.Client:
    """An HTTP client without credentials that trusts the same authorities as botocore (`AWS_CA_BUNDLE`)."""
    bundle = botocore.session.Session().get_config_variable("ca_bundle")
    trusted = ssl.create_default_context(cafile=bundle) if bundle else True
    return httpx.Client(verify=trusted, timeout=_TIMEOUT_SECONDS, follow_redirects=False)
