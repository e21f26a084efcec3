"""Training pictures: upload with captions, list, look at, recaption, delete."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from onbrand.api.caller import Admin, AppParts, Member, TokenHolder
from onbrand.api.files import Link, link_to
from onbrand.api.input import Input, must_be_storable
from onbrand.api.lists import Listed, Paging, all_of, listed
from onbrand.api.once import OnlyOnce
from onbrand.errors import InvalidInput, TooLarge, UnsupportedMedia
from onbrand.services import assets

router = APIRouter(prefix="/v1/brands/{brand_id}/assets", tags=["assets"])

REQUEST_BYTES = 256 * 2**20
"""One upload request at most; files on their way lie in temporary files, not in memory."""

_FIELDS = frozenset({"files", "files[]", "captions", "object", "metadata"})
_FORM_FIELDS_MAX = 200
_FIELD_BYTES_MAX = 2**18
_UPLOAD_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
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
    caption: str = Field(description="`[brand]` stands for the trigger word.")


async def _form(request: Request, holder: TokenHolder, parts: AppParts) -> AsyncIterator[FormData]:
    """The whole form, read before a transaction begins, and only for those who hold a token."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UnsupportedMedia("send the files as multipart/form-data, in the field 'files'", param="files")
    limits = parts.settings.limits
    try:
        form = await request.form(
            max_files=limits.upload_files, max_fields=_FORM_FIELDS_MAX, max_part_size=_FIELD_BYTES_MAX
        )
    except HTTPException as problem:
        if "Too many files" in str(problem.detail):
            raise _too_many(limits.upload_files) from None
        raise
    try:
        yield form
    finally:
        await form.close()


UploadForm = Annotated[FormData, Depends(_form)]


@router.post("", status_code=201, response_model=Listed, openapi_extra=_UPLOAD_SCHEMA)
async def upload(form: UploadForm, caller: Member, once: OnlyOnce) -> JSONResponse:
    """Upload pictures (PNG, JPEG, WEBP), all or none."""
    limits = caller.parts.settings.limits
    uploads = await _uploads(form, limits.upload_files, limits.upload_bytes)

    async def store() -> dict[str, Any]:
        made = await assets.upload(caller.session, caller.store, caller.brand_id, caller.user_id, uploads, limits)
        return all_of(made)

    return await once.answer(caller, 201, store)


@router.get("", response_model=Listed)
async def list_assets(caller: Member, paging: Paging) -> dict[str, Any]:
    """The brand's pictures."""
    return listed(await assets.list_assets(caller.session, caller.brand_id, paging.limit, paging.cursor))


@router.get("/{asset_id}")
async def get_asset(asset_id: UUID, caller: Member) -> assets.Asset:
    """One picture's row."""
    return await assets.get_asset(caller.session, caller.brand_id, str(asset_id))


@router.get("/{asset_id}/content")
async def link_asset(asset_id: UUID, caller: Member) -> Link:
    """A signed link to the picture."""
    asset = await assets.get_asset(caller.session, caller.brand_id, str(asset_id))
    return await link_to(caller, "training-data", asset.object_name)


@router.patch("/{asset_id}")
async def set_caption(asset_id: UUID, body: NewCaption, caller: Member) -> assets.Asset:
    """Give the picture a new version of its caption."""
    limits = caller.parts.settings.limits
    return await assets.set_caption(
        caller.session, caller.brand_id, caller.user_id, str(asset_id), body.caption, limits
    )


@router.delete("/{asset_id}", status_code=204, response_class=Response)
async def delete_asset(asset_id: UUID, caller: Admin) -> None:
    """Delete the picture; refused while a training job uses it."""
    await assets.delete_asset(caller.session, caller.store, caller.brand_id, str(asset_id))


async def _uploads(form: FormData, num_max: int, bytes_max: int) -> list[assets.Upload]:
    if unknown := sorted(set(form) - _FIELDS):
        raise InvalidInput(f"{unknown[0][:80]} is not a field of this form; leave it out", param=unknown[0][:80])
    files = [part for name in ("files", "files[]") for part in form.getlist(name)]
    if not files:
        raise InvalidInput("send at least one picture in the field 'files'", param="files")
    if len(files) > num_max:
        raise _too_many(num_max)
    captions = _captions(form, len(files))
    shared = _shared(form)
    return [
        assets.Upload(caption=caption, **shared, **await _file(part, bytes_max))
        for part, caption in zip(files, captions, strict=True)
    ]


def _too_many(num_max: int) -> TooLarge:
    return TooLarge(f"at most {num_max} files go in one request; send the others in another", param="files")


async def _file(part: Any, bytes_max: int) -> dict[str, Any]:
    if not isinstance(part, UploadFile):
        raise InvalidInput("'files' holds text; send files with names", param="files")
    if part.size is not None and part.size > bytes_max:
        raise TooLarge(f"{(part.filename or 'a file')[:80]!r} has more than {bytes_max} bytes", param="files")
    return {"filename": part.filename or "image", "data": await part.read()}


def _captions(form: FormData, num_files: int) -> list[str | None]:
    """A JSON list, the repeated field, or one for all."""
    said: list[Any] = [text for text in form.getlist("captions") if isinstance(text, str)]
    if len(said) == 1 and said[0].lstrip().startswith("["):
        parsed = _parsed(said[0], "captions")
        said = parsed if isinstance(parsed, list) else said
    elif len(said) == 1:
        said = said * num_files
    if not said:
        return [None] * num_files
    if len(said) != num_files:
        raise InvalidInput(f"{len(said)} captions for {num_files} files; send one for each", param="captions")
    if not all(caption is None or isinstance(caption, str) for caption in said):
        raise InvalidInput("captions must be texts, or null for none", param="captions")
    must_be_storable(said, "captions")
    return said


def _shared(form: FormData) -> dict[str, Any]:
    """What is said once for all files."""
    shared: dict[str, Any] = {}
    if (kind := form.get("object")) is not None:
        shared["object"] = kind
    if (text := form.get("metadata")) is not None:
        metadata = _parsed(str(text), "metadata")
        if not isinstance(metadata, dict):
            raise InvalidInput("metadata must be a JSON object", param="metadata")
        must_be_storable(metadata, "metadata")
        shared["metadata"] = metadata
    return shared


def _parsed(text: str, param: str) -> Any:
    """JSON, or None for a caption that only looks like a list (`[brand] logo`)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if param == "captions":
            return None
        raise InvalidInput(f"{param} is not valid JSON", param=param) from None
