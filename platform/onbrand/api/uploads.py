"""Uploads directly to the store: announce, send to the signed link, complete. The uploaded bytes are never served."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, Self
from uuid import UUID

import anyio.to_thread
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from onbrand.api.authorization import BrandAccess, ReadCaller, UploadAccess, UploadCaller, UserRoute
from onbrand.api.checking import FileChecker, in_turn_of
from onbrand.api.idempotency import OnlyOnce
from onbrand.api.lists import Listed, Paging, listed
from onbrand.errors import Conflict, InvalidInput, OnbrandError, StorageError, TooLarge, UnsupportedMedia
from onbrand.services import uploads
from onbrand.services.storage_quota import limits_of
from onbrand.storage.links import UploadLink
from onbrand.storage.store import BrandStore

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/brands/{brand_id}/uploads", tags=["uploads"], route_class=UserRoute)

_REFUSALS = (UnsupportedMedia, TooLarge, InvalidInput, Conflict)


class UploadTarget(BaseModel):
    """How to send the file, once, before the link expires.

    PUT: the bytes with `headers`. POST: a form of `fields` and then the file, in a field called `file`.
    """

    method: Literal["PUT", "POST"]
    url: str
    headers: Mapping[str, str]
    fields: Mapping[str, str]
    expires_at: datetime

    @classmethod
    def by(cls, link: UploadLink) -> Self:
        return cls(
            method=link.method, url=link.url, headers=link.headers, fields=link.fields, expires_at=link.expires_at
        )


class Announced(uploads.Upload):
    """An announced upload, with the link to send its file to."""

    send: UploadTarget


@router.post("", status_code=201, response_model=Announced)
async def create_upload(body: uploads.NewUpload, caller: UploadCaller, once: OnlyOnce) -> JSONResponse:
    """Announce a file. The response has the link to send it to; complete the upload after sending."""
    settings = caller.state.settings
    limits = limits_of(caller.scope, settings.limits)

    async def create() -> Announced:
        upload, link = await uploads.create_upload(
            caller.session, caller.store, caller.brand_id, caller.user_id, body, limits, settings.link_seconds
        )
        return Announced(**upload.model_dump(), send=UploadTarget.by(link))

    return await once.answer(caller, 201, create)


@router.get("", response_model=Listed)
async def list_uploads(caller: ReadCaller, paging: Paging) -> dict[str, Any]:
    """The brand's uploads of the last day."""
    return listed(await uploads.list_uploads(caller.session, caller.brand_id, paging.limit, paging.cursor))


@router.get("/{upload_id}")
async def get_upload(upload_id: UUID, caller: ReadCaller) -> uploads.Upload:
    """The current state of one upload, with the ids of the objects made of it."""
    return await uploads.get_upload(caller.session, caller.brand_id, str(upload_id))


@router.post("/{upload_id}/complete")
async def complete_upload(upload_id: UUID, access: UploadAccess, checker: FileChecker) -> uploads.Upload:
    """Check the uploaded file and make assets or a document of it. A repeated call returns the same."""
    async with access.open() as caller:
        upload = await uploads.get_own_upload(caller.session, caller.brand_id, caller.user_id, str(upload_id))
        store, checker = caller.store, await in_turn_of(checker, caller)
    if upload.status != "pending":
        return uploads.must_be_completed(upload)
    limits = access.state.settings.limits
    async with checker.whole():
        arrived = await uploads.read_arrived(store, upload)
        try:
            await anyio.to_thread.run_sync(uploads.must_be_as_announced, upload, arrived)
            checked = await uploads.check(checker, upload, arrived, limits)
            async with access.open() as caller:
                upload = await uploads.complete_upload(caller.session, store, upload, checked, limits)
        except _REFUSALS as problem:
            await _refuse(access, store, upload, problem)
            raise
    await _discard(store, upload)
    return upload


@router.delete("/{upload_id}", status_code=204, response_class=Response)
async def cancel_upload(upload_id: UUID, access: UploadAccess) -> None:
    """Cancel an own upload that is not completed, and remove its bytes."""
    async with access.open() as caller:
        upload = await uploads.cancel_upload(caller.session, caller.brand_id, caller.user_id, str(upload_id))
        store = caller.store
    await _discard(store, upload)


async def _refuse(access: BrandAccess, store: BrandStore, upload: uploads.Upload, problem: OnbrandError) -> None:
    async with access.open() as caller:
        await uploads.refuse_upload(caller.session, upload, problem)
    await _discard(store, upload)


async def _discard(store: BrandStore, upload: uploads.Upload) -> None:
    """Remove the uploaded bytes after the commit; `background.upload_cleanup` removes them if this fails."""
    try:
        await uploads.discard(store, upload.key)
    except StorageError as problem:
        log.warning("the bytes of upload %s are left for the clean-up: %s", upload.id, problem.code)
