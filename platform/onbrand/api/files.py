"""Signed links: issue them, serve a file by one, and receive an upload by one.

A link permits its bearer one method on one object for a short time. Links of an S3 store point to S3, not to these
routes. Every issued link is recorded.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, BinaryIO

import anyio
import anyio.to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from onbrand.api.authorization import AppStateDep, BrandCaller, UserRoute
from onbrand.api.http.media_types import media_type_of, plain_media_type
from onbrand.errors import InvalidInput, NotFound, TooLarge, UnsupportedMedia
from onbrand.services.audit import write_audit_line
from onbrand.storage.backends import Draft
from onbrand.storage.layout import SHOWN_TYPES, Bucket, Key
from onbrand.storage.links import Announced, verify_link, verify_upload

router = APIRouter(tags=["files"], route_class=UserRoute)

_CHUNK = 2**18
_PIECE = 2**20
_RECEIVE_SECONDS = 3600
_NO_BROWSER = "default-src 'none'; sandbox; frame-ancestors 'none'"


class Link(BaseModel):
    """A signed address. Its bearer may GET the file until it expires."""

    url: str
    expires_at: datetime


async def link_to(caller: BrandCaller, bucket: Bucket, object_name: str, action: str, ids: Mapping[str, Any]) -> Link:
    """A link to an object; authorize the caller first, and call this last.

    Args:
        action, ids: the line in the brand's record (``asset.link``, ``{"asset_id": ...}``).
    """
    return (await links_to(caller, [Key(bucket, object_name)], action, ids))[0]


async def links_to(caller: BrandCaller, keys: Sequence[Key], action: str, ids: Mapping[str, Any]) -> list[Link]:
    """A link to each object, with one line in the brand's record for all; no line without objects."""
    if not keys:
        return []
    seconds = caller.state.settings.link_seconds
    urls = [await anyio.to_thread.run_sync(caller.store.link, key, seconds) for key in keys]
    ends = datetime.fromtimestamp(int(time.time()) + seconds, UTC)
    await write_audit_line(caller.session, caller.brand_id, action, {**ids, "num_links": len(keys)})
    return [Link(url=url, expires_at=ends) for url in urls]


@router.head("/v1/files/{bucket}/{name:path}", include_in_schema=False, response_class=Response)
@router.get("/v1/files/{bucket}/{name:path}", response_class=Response)
async def read_file(
    bucket: str,
    name: str,
    request: Request,
    state: AppStateDep,
    expires: Annotated[str, Query(max_length=12)] = "",
    signature: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """The file behind a signed link."""
    key = verify_link(bucket, name, request.method, expires, signature, state.secrets.links)
    if key.is_incoming:
        raise NotFound("there is no such object")
    store = state.store.brand(key.brand_id)
    size = await anyio.to_thread.run_sync(store.size, key)
    headers = _headers(key, size, int(expires))
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    headers["Content-Length"] = str(size)
    if request.method == "HEAD":
        return Response(headers=headers, media_type=key.content_type)
    file = await anyio.to_thread.run_sync(store.open_stream, key)
    return StreamingResponse(_chunks(file), headers=headers, media_type=key.content_type)


@router.put("/v1/files/{bucket}/{name:path}", status_code=204, response_class=Response)
async def receive_file(
    bucket: str,
    name: str,
    request: Request,
    state: AppStateDep,
    type: Annotated[str, Query(max_length=100)] = "",
    bytes: Annotated[str, Query(max_length=16)] = "",
    sha256: Annotated[str, Query(max_length=64)] = "",
    expires: Annotated[str, Query(max_length=12)] = "",
    signature: Annotated[str, Query(max_length=100)] = "",
) -> None:
    """Receive the file of a signed upload link once; its size and type must be as announced."""
    fields = {"type": type, "bytes": bytes, "sha256": sha256}
    key, announced = verify_upload(bucket, name, fields, expires, signature, state.secrets.links)
    _must_come_as_announced(request, announced)
    draft = await anyio.to_thread.run_sync(state.store.brand(key.brand_id).receive, key)
    try:
        await _fill(draft, request, announced)
        await anyio.to_thread.run_sync(draft.keep)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(draft.drop)


def _must_come_as_announced(request: Request, announced: Announced) -> None:
    """Check Content-Type and Content-Length before the body is read. Raises UnsupportedMedia, InvalidInput."""
    if media_type_of(request.headers) != plain_media_type(announced.content_type):
        raise UnsupportedMedia(f"this link takes {announced.content_type} only", param="Content-Type")
    if request.headers.get("content-length") != str(announced.bytes):
        raise InvalidInput(f"this link takes a body of exactly {announced.bytes} bytes", param="Content-Length")


async def _fill(draft: Draft, request: Request, announced: Announced) -> None:
    """Write the body into the draft. Raises TooLarge, InvalidInput if it is not as announced or takes too long."""
    digest = hashlib.sha256()
    piece = bytearray()

    async def write() -> None:
        await anyio.to_thread.run_sync(digest.update, bytes(piece))
        await anyio.to_thread.run_sync(draft.write, bytes(piece))
        piece.clear()

    try:
        async with asyncio.timeout(_RECEIVE_SECONDS):
            async for chunk in request.stream():
                piece += chunk
                if draft.num_bytes + len(piece) > announced.bytes:
                    raise TooLarge(f"this link takes exactly {announced.bytes} bytes", param="body")
                if len(piece) >= _PIECE:
                    await write()
            await write()
    except (ClientDisconnect, TimeoutError):
        raise InvalidInput("the file did not arrive whole; send it again", param="body") from None
    if draft.num_bytes != announced.bytes:
        raise InvalidInput(f"this link takes exactly {announced.bytes} bytes", param="body")
    if announced.sha256 not in (None, digest.hexdigest()):
        raise InvalidInput("the bytes do not have the announced sha256", param="sha256")


def _headers(key: Key, size: int, expires: int) -> dict[str, str]:
    """Response headers: browsers show images, save other files, and cache privately until the link expires."""
    disposition = "inline" if key.content_type in SHOWN_TYPES else "attachment"
    return {
        "Content-Disposition": f'{disposition}; filename="{key.filename}"',
        "ETag": f'"{key.bucket}-{key.filename}-{size}"',
        "Cache-Control": f"private, max-age={max(0, expires - int(time.time()))}",
        "Content-Security-Policy": _NO_BROWSER,
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "cross-origin",  # any page may embed the image by its link
    }


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk
