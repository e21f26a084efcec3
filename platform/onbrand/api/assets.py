"""Routes of training images: upload (also zip archives) with captions, list, read, recaption, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.datastructures import FormData

from onbrand.api.authorization import Admin, AppStateDep, ReadCaller, UploadAccess, UploadCaller, UserRoute
from onbrand.api.checking import FileChecker, in_turn_of
from onbrand.api.files import Link, link_to
from onbrand.api.forms import file_of, must_be_short, must_have_only, read_form, too_many_files
from onbrand.api.http.json_bodies import parsed
from onbrand.api.idempotency import OnlyOnce
from onbrand.api.input import Input, must_be_storable
from onbrand.api.lists import Listed, Paging, all_of, listed
from onbrand.config import Limits
from onbrand.errors import InvalidInput
from onbrand.sandbox.incoming_files import SentFile, is_archive
from onbrand.services import asset_checks, assets

router = APIRouter(prefix="/v1/brands/{brand_id}/assets", tags=["assets"], route_class=UserRoute)

_FIELDS = frozenset({"files", "files[]", "captions", "object", "metadata"})
_UPLOAD_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "Pictures, their captions (`a.txt` for `a.png`), or zips of them.",
                        },
                        "captions": {
                            "type": "string",
                            "description": "A JSON list, one caption (or null) per file; or the field repeated.",
                        },
                        "object": {"type": "string", "enum": ["logo", "product", "person", "packaging", "other"]},
                        "metadata": {"type": "string", "description": "A JSON object, kept with every file."},
                    },
                }
            }
        },
    }
}


class NewCaption(Input):
    """A caption that replaces the image's current one."""

    caption: str = Field(description="`[brand]` stands for the trigger word.")


async def _form(request: Request, access: UploadAccess, state: AppStateDep) -> AsyncIterator[FormData]:
    async with access.open():
        pass  # callers without the right are refused before a byte of the form is read
    most = state.settings.limits.upload_files * asset_checks.FILES_PER_PICTURE
    async with read_form(request, most, "files") as form:
        yield form


UploadForm = Annotated[FormData, Depends(_form)]


@router.post("", status_code=201, response_model=Listed, openapi_extra=_UPLOAD_SCHEMA)
async def upload(
    form: UploadForm, access: UploadAccess, once: OnlyOnce, state: AppStateDep, checker: FileChecker
) -> JSONResponse:
    """Upload images (PNG, JPEG, WEBP), or zip archives of images and their captions; all or none."""
    async with access.open() as caller:
        checker = await in_turn_of(checker, caller)
    limits = state.settings.limits
    uploads = await _uploads(form, limits)
    async with checker.whole():
        checked = await asset_checks.check(checker, uploads, limits)
        async with access.open() as caller:

            async def store() -> dict[str, Any]:
                owner = (caller.brand_id, caller.user_id)
                return all_of(await assets.store_checked(caller.session, caller.store, *owner, checked, limits))

            return await once.answer(caller, 201, store)


@router.get("", response_model=Listed)
async def list_assets(caller: ReadCaller, paging: Paging) -> dict[str, Any]:
    """The brand's images."""
    return listed(await assets.list_assets(caller.session, caller.brand_id, paging.limit, paging.cursor))


@router.get("/{asset_id}")
async def get_asset(asset_id: UUID, caller: ReadCaller) -> assets.Asset:
    """One image's row."""
    return await assets.get_asset(caller.session, caller.brand_id, str(asset_id))


@router.get("/{asset_id}/content")
async def link_asset(asset_id: UUID, caller: ReadCaller) -> Link:
    """A signed link to the image."""
    asset = await assets.get_asset(caller.session, caller.brand_id, str(asset_id))
    return await link_to(caller, "training-data", asset.object_name, "asset.link", {"asset_id": asset.id})


@router.patch("/{asset_id}")
async def set_caption(asset_id: UUID, body: NewCaption, caller: UploadCaller) -> assets.Asset:
    """Add a new version of the image's caption."""
    limits = caller.state.settings.limits
    return await assets.set_caption(
        caller.session, caller.brand_id, caller.user_id, str(asset_id), body.caption, limits
    )


@router.delete("/{asset_id}", status_code=204, response_class=Response)
async def delete_asset(asset_id: UUID, caller: Admin) -> None:
    """Delete the image; refused while a training job uses it."""
    await assets.delete_asset(caller.session, caller.store, caller.brand_id, str(asset_id))


async def _uploads(form: FormData, limits: Limits) -> list[asset_checks.Upload]:
    must_have_only(form, _FIELDS)
    files = [part for name in ("files", "files[]") for part in form.getlist(name)]
    if not files:
        raise InvalidInput("send at least one picture in the field 'files'", param="files")
    if len(files) > (most := limits.upload_files * asset_checks.FILES_PER_PICTURE):
        raise too_many_files(most, "files")
    captions = _captions(form, len(files), limits)
    shared = _shared(form, limits)
    return [
        asset_checks.Upload(*await _file(part, limits), caption=caption, **shared)
        for part, caption in zip(files, captions, strict=True)
    ]


async def _file(part: Any, limits: Limits) -> tuple[str, SentFile]:
    """File name and file of a part: an image or an archive, each within its own size limit. Raises TooLarge."""
    filename, sent = await file_of(part, max(limits.zip_bytes, limits.upload_bytes), "files")
    must_be_short(filename, sent, limits.zip_bytes if is_archive(sent) else limits.upload_bytes, "files")
    return filename, sent


def _captions(form: FormData, num_files: int, limits: Limits) -> list[str | None]:
    """One caption (or None) per file, from a JSON list, the repeated field, or one caption for all files."""
    captions: list[Any] = [text for text in form.getlist("captions") if isinstance(text, str)]
    if len(captions) == 1 and captions[0].lstrip().startswith("["):
        found = _list_in(captions[0], limits)
        captions = captions if found is None else found
    elif len(captions) == 1:
        captions = captions * num_files
    if not captions:
        return [None] * num_files
    if len(captions) != num_files:
        raise InvalidInput(f"{len(captions)} captions for {num_files} files; send one for each", param="captions")
    if not all(caption is None or isinstance(caption, str) for caption in captions):
        raise InvalidInput("captions must be texts, or null for none", param="captions")
    must_be_storable(captions, "captions")
    return captions


def _shared(form: FormData, limits: Limits) -> dict[str, Any]:
    """The fields that apply to all files: object and metadata."""
    shared: dict[str, Any] = {}
    if (kind := form.get("object")) is not None:
        shared["object"] = kind
    if (text := form.get("metadata")) is not None:
        metadata = parsed(str(text), "metadata", limits.json_values, limits.json_levels)
        if not isinstance(metadata, dict):
            raise InvalidInput("metadata must be a JSON object", param="metadata")
        must_be_storable(metadata, "metadata")
        shared["metadata"] = metadata
    return shared


def _list_in(text: str, limits: Limits) -> list[Any] | None:
    """A JSON list, or None for a caption that only looks like one (`[brand] logo`)."""
    try:
        captions = parsed(text, "captions", limits.json_values, limits.json_levels)
    except InvalidInput:
        return None
    return captions if isinstance(captions, list) else None
