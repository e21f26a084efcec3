"""Routes of a brand's documents (guidelines, voice and tone; PDF or Markdown). Uploading a title again versions it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import FormData

from onbrand.api.authorization import Admin, AppStateDep, ReadCaller, UploadAccess, UserRoute
from onbrand.api.checking import FileChecker, in_turn_of
from onbrand.api.files import Link, link_to
from onbrand.api.forms import file_of, must_have_only, read_form
from onbrand.api.idempotency import OnlyOnce
from onbrand.api.input import must_be_storable
from onbrand.api.lists import Listed, Paging, listed
from onbrand.errors import InvalidInput
from onbrand.sandbox.incoming_files import SentFile
from onbrand.services import documents

router = APIRouter(prefix="/v1/brands/{brand_id}/documents", tags=["documents"], route_class=UserRoute)

_FIELDS = frozenset({"file", "title"})
_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "A .pdf or a .md."},
                        "title": {
                            "type": "string",
                            "description": "The file's name if left out.",
                        },
                    },
                }
            }
        },
    }
}


async def _form(request: Request, access: UploadAccess) -> AsyncIterator[FormData]:
    async with access.open():
        pass  # callers without the right are refused before a byte of the form is read
    async with read_form(request, 1, "file") as form:
        yield form


DocumentForm = Annotated[FormData, Depends(_form)]


@router.post("", status_code=201, response_model=documents.Document, openapi_extra=_SCHEMA)
async def create_document(
    form: DocumentForm, access: UploadAccess, once: OnlyOnce, state: AppStateDep, checker: FileChecker
) -> JSONResponse:
    """Upload a document: the first or next version of its title. A child process reads it and writes it anew."""
    async with access.open() as caller:
        checker = await in_turn_of(checker, caller)
    limits = state.settings.limits
    filename, sent, title = await _sent(form, limits.document_bytes)
    async with checker.whole():
        checked = await documents.check(checker, filename, sent, limits, title)
        async with access.open() as caller:

            async def store() -> documents.Document:
                owner = (caller.brand_id, caller.user_id)
                return await documents.store_checked(caller.session, caller.store, *owner, checked, limits)

            return await once.answer(caller, 201, store)


@router.get("", response_model=Listed)
async def list_documents(caller: ReadCaller, paging: Paging) -> dict[str, Any]:
    """The brand's documents, each as its newest version."""
    return listed(await documents.list_documents(caller.session, caller.brand_id, paging.limit, paging.cursor))


@router.get("/{document_id}")
async def get_document(document_id: UUID, caller: ReadCaller) -> documents.Document:
    """One version of a document."""
    return await documents.get_document(caller.session, caller.brand_id, str(document_id))


@router.get("/{document_id}/versions", response_model=Listed)
async def list_versions(document_id: UUID, caller: ReadCaller, paging: Paging) -> dict[str, Any]:
    """All versions of the document, given the id of any of them; newest first."""
    found = await documents.list_versions(
        caller.session, caller.brand_id, str(document_id), paging.limit, paging.cursor
    )
    return listed(found)


@router.get("/{document_id}/content")
async def link_document(document_id: UUID, caller: ReadCaller) -> Link:
    """A signed link to the document; browsers save it as a file."""
    document = await documents.get_document(caller.session, caller.brand_id, str(document_id))
    ids = {"document_id": document.id}
    return await link_to(caller, "brand-documents", document.object_name, "document.link", ids)


@router.delete("/{document_id}", status_code=204, response_class=Response)
async def delete_document(document_id: UUID, caller: Admin) -> None:
    """Delete this version of the document."""
    await documents.delete_document(caller.session, caller.store, caller.brand_id, str(document_id))


async def _sent(form: FormData, bytes_max: int) -> tuple[str, SentFile, str | None]:
    """File name, file and title (or None) of the form. Raises InvalidInput, TooLarge."""
    must_have_only(form, _FIELDS)
    title = form.get("title")
    if title is not None and not isinstance(title, str):
        raise InvalidInput("title is a text", param="title")
    must_be_storable(title, "title")
    filename, sent = await file_of(form.get("file"), bytes_max, "file")
    must_be_storable(filename, "file")
    return filename, sent, title
