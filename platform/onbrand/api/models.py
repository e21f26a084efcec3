"""Routes of published adapters: list, read, download in two formats, import, delete. Only the system creates them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import FormData

from onbrand.api import jobs as training_jobs
from onbrand.api.authorization import Admin, AppStateDep, BrandAccess, ReadAccess, ReadCaller, TrainAccess, UserRoute
from onbrand.api.checking import FileChecker, in_turn_of
from onbrand.api.files import Link, link_to
from onbrand.api.forms import file_of, must_have_only, read_form
from onbrand.api.http import middleware
from onbrand.api.http.bytes_in_progress import BytesInProgress
from onbrand.api.idempotency import OnlyOnce
from onbrand.api.input import must_be_storable
from onbrand.api.lists import Listed, Paging, listed
from onbrand.api.problems import as_own_error
from onbrand.config import FAMILIES
from onbrand.errors import AdapterRefused, InvalidInput
from onbrand.families.lora_kohya import kohya_name
from onbrand.sandbox.checker import Checker
from onbrand.sandbox.incoming_files import SentFile
from onbrand.sandbox.results import CheckedWeights
from onbrand.services import imports, models, training_job

security_log = logging.getLogger("onbrand.security")

router = APIRouter(prefix="/v1/brands/{brand_id}/models", tags=["models"], route_class=UserRoute)

_KOHYA_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}
_IMPORT_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "model_type"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "A LoRA of any trainer"},
                        "model_type": {"type": "string", "enum": list(FAMILIES)},
                        "trigger_word": {"type": "string", "description": "What `[brand]` stands for in prompts."},
                        "name": {"type": "string", "description": "Of the job that imports it."},
                        "text_encoder": {
                            "type": "string",
                            "enum": ["refuse", "drop"],
                            "default": "refuse",
                            "description": "`drop`: import without layers of text encoders; the job says how much.",
                        },
                        "lora_alpha": {
                            "type": "number",
                            "description": "What PEFT's `adapter_config.json` says, for files that do not.",
                        },
                    },
                }
            }
        },
    }
}
"""OpenAPI description of an import's form."""


async def _form(request: Request, access: TrainAccess) -> AsyncIterator[FormData]:
    async with access.open():
        pass  # callers without the right are refused before a byte of the form is read
    async with read_form(request, 1, "file") as form:
        yield form


ImportForm = Annotated[FormData, Depends(_form)]


@router.post(":import", status_code=202, response_model=training_job.TrainingJob, openapi_extra=_IMPORT_SCHEMA)
async def import_model(
    form: ImportForm, access: TrainAccess, once: OnlyOnce, state: AppStateDep, checker: FileChecker
) -> JSONResponse:
    """Import another trainer's LoRA file as the brand's next version. Returns the job that imports it."""
    async with access.open() as caller:
        checker = await in_turn_of(checker, caller)
    new = _new_import(form)
    imports.must_be_importable(new, state.recommended)
    _, sent = await file_of(form.get("file"), imports.IMPORT_BYTES_MAX, "file")
    async with checker.whole():
        checked = await _checked(checker, sent, new, access)
        data = await sent.read()
        async with access.open() as caller:

            async def create() -> training_job.TrainingJob:
                owner = (caller.session, caller.store, caller.brand_id, caller.user_id)
                served, limits = state.recommended, state.settings.limits
                job = await imports.create_import(*owner, new, data, served, limits, checked.dropped)
                return await training_jobs.shown(caller, job)

            return await once.answer(caller, 202, create)


async def _checked(checker: Checker, sent: SentFile, new: imports.NewImport, access: BrandAccess) -> CheckedWeights:
    try:
        return await checker.run(checker.weights, sent, new.options)
    except AdapterRefused:
        security_log.warning("a file to import into brand %s was refused", access.brand_id)
        raise


def _new_import(form: FormData) -> imports.NewImport:
    """The form's fields other than the file. Raises InvalidInput naming a missing, unknown or invalid field."""
    must_have_only(form, frozenset({"file", *imports.NewImport.model_fields}))
    fields = {name: form[name] for name in imports.NewImport.model_fields if name in form}
    if not all(isinstance(value, str) for value in fields.values()):
        raise InvalidInput("send one file, in the field 'file'", param="file")
    must_be_storable(fields, "body")
    try:
        return imports.NewImport.model_validate(fields)
    except ValidationError as problem:
        raise as_own_error([{**fault, "loc": ("body", *fault["loc"])} for fault in problem.errors()]) from None


@router.get("", response_model=Listed)
async def list_models(caller: ReadCaller, paging: Paging) -> dict[str, Any]:
    """The brand's adapters."""
    return listed(await models.list_models(caller.session, caller.brand_id, paging.limit, paging.cursor))


@router.get("/{model}")
async def get_model(model: str, caller: ReadCaller) -> models.Model:
    """One adapter, by id or by name (`flux-lora-v2`)."""
    return await models.get_model(caller.session, caller.brand_id, model)


@router.get("/{model}/download", response_model=Link, responses=_KOHYA_RESPONSE)
async def download_model(
    model: str, access: ReadAccess, request: Request, checker: FileChecker, format: models.FileFormat = "diffusers"
) -> Link | Response:
    """A signed link to the safetensors file; with `format=kohya` the file itself, with kohya's names of the layers.

    The download is recorded.
    """
    async with access.open() as caller:
        found = await models.get_model(caller.session, caller.brand_id, model)
        if format == "diffusers":
            return await link_to(caller, "models", found.object_name, "model.download", {"model_id": found.id})
        store, turns = caller.store, await in_turn_of(checker, caller)
    bodies: BytesInProgress = request.app.state.bodies
    middleware.hold(
        request.scope, bodies.held(access.scope.user_id, found.bytes)
    )  # the answer is in memory until it is sent
    async with turns.whole():
        data = await models.read_kohya(store, found)
    async with access.open() as caller:  # a removed member gets no file
        await models.record_download(caller.session, found)
    headers = {"Content-Disposition": f'attachment; filename="{kohya_name(found.name)}"', "Cache-Control": "no-store"}
    return Response(data, media_type="application/octet-stream", headers=headers)


@router.delete("/{model}", status_code=204, response_class=Response)
async def delete_model(model: str, caller: Admin) -> None:
    """Delete the adapter and its weights; images made with it stay."""
    await models.delete_model(caller.session, caller.store, caller.brand_id, model)
