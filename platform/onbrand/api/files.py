"""Signed links: making one for a caller, and serving what a link of our own store opens.

A link is a bearer right to one object, one method, a short time; links of an S3 store go to S3 and never come here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, BinaryIO

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from onbrand.api.caller import AppParts, BrandCaller
from onbrand.storage.layout import Bucket, Key
from onbrand.storage.links import verify_link

router = APIRouter(tags=["files"])

_SHOWN = frozenset({"image/png", "image/jpeg", "image/webp"})
_CHUNK = 2**18


class Link(BaseModel):
    """A signed address; whoever has it may GET the file until it expires."""

    url: str
    expires_at: datetime


async def link_to(caller: BrandCaller, bucket: Bucket, object_name: str) -> Link:
    """A link to an object that the caller was just allowed to see."""
    seconds = caller.parts.settings.link_seconds
    key = Key(bucket, object_name)
    url = await anyio.to_thread.run_sync(caller.store.link, key, seconds)
    return Link(url=url, expires_at=datetime.fromtimestamp(int(time.time()) + seconds, UTC))


@router.head("/v1/files/{bucket}/{name:path}", include_in_schema=False, response_class=Response)
@router.get("/v1/files/{bucket}/{name:path}", response_class=Response)
async def read_file(
    bucket: str,
    name: str,
    request: Request,
    parts: AppParts,
    expires: Annotated[str, Query(max_length=12)] = "",
    signature: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """The file behind a signed link."""
    key = verify_link(bucket, name, request.method, expires, signature, parts.secrets.links)
    store = parts.store.brand(key.brand_id)
    size = await anyio.to_thread.run_sync(store.size, key)
    headers = _headers(key, size, int(expires))
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers={"ETag": headers["ETag"]})
    headers["Content-Length"] = str(size)
    if request.method == "HEAD":
        return Response(headers=headers, media_type=key.content_type)
    file = await anyio.to_thread.run_sync(store.open_stream, key)
    return StreamingResponse(_chunks(file), headers=headers, media_type=key.content_type)


def _headers(key: Key, size: int, expires: int) -> dict[str, str]:
    """Pictures are shown, all else is saved; only the caller may keep a copy, and not beyond the link's life."""
    disposition = "inline" if key.content_type in _SHOWN else "attachment"
    return {
        "Content-Disposition": f'{disposition}; filename="{key.filename}"',
        "ETag": f'"{key.bucket}-{key.filename}-{size}"',
        "Cache-Control": f"private, max-age={max(0, expires - int(time.time()))}",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Resource-Policy": "cross-origin",  # whoever has the link may show the picture on a page
    }


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk
