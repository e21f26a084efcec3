"""The internal routes, which workers call with a ticket. `onbrand.internal.client` is their client.

A ticket names one brand, one job and one member. Its kind decides which routes it opens, the row policies which rows.
"""

from __future__ import annotations

from typing import Any, TypeVar
from uuid import UUID

import anyio.to_thread
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from onbrand.api.http.json_bodies import parsed
from onbrand.api.http.media_types import plain_media_type
from onbrand.api.idempotency import as_json
from onbrand.api.input import Input, must_be_storable
from onbrand.api.problems import as_own_error
from onbrand.api.ticket_authorization import (
    AnyWorker,
    AppStateDep,
    FileChecker,
    GenerationForm,
    GenerationWorker,
    SystemRoute,
    TrainingForm,
    TrainingWorker,
)
from onbrand.config import Limits
from onbrand.errors import InvalidInput
from onbrand.internal.log_lines import AT_ONCE_MAX, Line
from onbrand.internal.training import ReportResponse, RunCredentials, StoredImage
from onbrand.services import continuation, generation_worker, imports, models, publication, training_worker
from onbrand.services.data_checks import Finding
from onbrand.storage.layout import DrawnBy

F = TypeVar("F", bound=Input)
_BINARY = "application/octet-stream"
router = APIRouter(prefix="/v1", tags=["internal"], route_class=SystemRoute)


class Report(Input):
    """A training run's report; its fields are optional."""

    progress: int | None = Field(None, ge=0, le=100)
    metrics: dict[str, Any] | None = None
    lines: list[Line] = Field(default_factory=list, max_length=AT_ONCE_MAX)
    findings: list[Finding] | None = Field(None, max_length=2000)


class Progress(Input):
    """A generation's progress in percent; `lost`: its engine was lost, and another one is asked."""

    progress: int = Field(ge=0, le=100)
    lost: bool = False


class Failure(Input):
    """Why a job or generation failed: a code for programs, a message for people."""

    code: str = Field(pattern=r"^[a-z_]{1,60}$")
    message: str = Field(max_length=2000)


class SampleFacts(Input):
    """The step, prompt index and source of a sample image."""

    step: int = Field(ge=0, le=10_000_000)
    index: int = Field(ge=0, le=99)
    drawn_by: DrawnBy = "adapter"


class ImageFacts(Input):
    """Index, seed, size in pixels and receipt of a generated image."""

    index: int = Field(ge=0, le=63)
    seed: int = Field(ge=0, le=2**63 - 1)
    width: int = Field(ge=1, le=16_384)
    height: int = Field(ge=1, le=16_384)
    receipt: dict[str, Any]


# training tickets


@router.get("/training")
async def read_training(worker: TrainingWorker) -> Any:
    """The job: configuration, images' ids and captions."""
    return as_json(await training_worker.spec_for_worker(worker.session, worker.ticket))


@router.get("/training/assets/{asset_id}", response_class=Response)
async def read_asset(asset_id: UUID, worker: TrainingWorker) -> Response:
    """The bytes of one image of the job."""
    data, content_type = await training_worker.read_asset(worker.session, worker.store, str(asset_id))
    return Response(data, media_type=content_type)


@router.get("/training/import", response_class=Response)
async def read_import(worker: TrainingWorker) -> Response:
    """The file that the ticket's job imports, as it was uploaded."""
    data = await imports.read_import(worker.session, worker.store, worker.ticket)
    return Response(data, media_type=_BINARY)


@router.get("/training/start", response_class=Response)
async def read_start(worker: TrainingWorker) -> Response:
    """The weights of the model that the ticket's job continues from."""
    data = await continuation.read_start(worker.session, worker.store, worker.ticket)
    return Response(data, media_type=_BINARY)


@router.post("/training/credentials")
async def lend_credentials(
    worker: TrainingWorker, state: AppStateDep, response: Response
) -> dict[str, RunCredentials | None]:
    """Session credentials for the run's folder on S3 while the job is open; null if runs are stored in a folder."""
    names = await training_worker.asset_names(worker.session, worker.ticket)
    run_id = await training_worker.run_of(worker.session, worker.ticket)
    response.headers["cache-control"] = "no-store"
    if state.credentials is None:
        return {"credentials": None}
    issue = state.credentials.issue
    return {"credentials": await anyio.to_thread.run_sync(issue, worker.ticket.brand_id, run_id, names)}


@router.post("/training/report")
async def report(body: Report, worker: TrainingWorker) -> ReportResponse:
    """Store progress, metrics, log lines and the heartbeat; returns whether the owner asked to cancel."""
    reported = (body.progress, body.metrics, body.lines, body.findings)
    return await training_worker.report(worker.session, worker.ticket, *reported)


@router.post("/training/samples", status_code=204, response_class=Response)
async def add_sample(form: TrainingForm, worker: TrainingWorker) -> None:
    """Store a sample image of a training step."""
    facts = _facts(SampleFacts, {name: form[name] for name in SampleFacts.model_fields if name in form})
    data, content_type = await _file_of(form)
    which = (facts.step, facts.index, data, content_type, facts.drawn_by)
    await training_worker.add_sample(worker.session, worker.store, worker.ticket, *which)


@router.post("/training/publish", status_code=201)
async def publish(form: TrainingForm, worker: TrainingWorker, checker: FileChecker, state: AppStateDep) -> Any:
    """Publish the adapter as the brand's next version and complete the job."""
    facts = _json_of(form, "facts", state.settings.limits)
    must_be_storable(facts, "facts")
    data, _ = await _file_of(form)
    return as_json(await publication.publish(worker.session, worker.store, worker.ticket, data, facts, checker))


@router.post("/training/fail", status_code=204, response_class=Response)
async def fail(body: Failure, worker: TrainingWorker) -> None:
    """End the job as failed, with its reason."""
    await training_worker.fail(worker.session, worker.ticket, body.code, body.message, worker.store)


@router.post("/training/canceled", status_code=204, response_class=Response)
async def canceled(worker: TrainingWorker) -> None:
    """End the job as canceled by its owner."""
    await training_worker.canceled(worker.session, worker.ticket, worker.store)


# generation tickets


@router.get("/models/{model_id}/weights", response_class=Response)
async def read_weights(model_id: UUID, worker: GenerationWorker) -> Response:
    """The weights that the ticket's generation draws with."""
    model, data = await models.read_weights(worker.session, worker.store, worker.ticket.brand_id, str(model_id))
    return Response(data, media_type=_BINARY, headers={"ETag": f'"{model.sha256}"'})


@router.post("/generation/start")
async def start_generation(worker: GenerationWorker) -> ReportResponse:
    """Mark the generation as running; returns whether the owner has canceled meanwhile."""
    return await generation_worker.start_generation(worker.session, worker.ticket)


@router.post("/generation/report")
async def report_generation(body: Progress, worker: GenerationWorker) -> ReportResponse:
    """Store progress and the heartbeat; `lost` counts a lost engine."""
    return await generation_worker.report_generation(worker.session, worker.ticket, body.progress, body.lost)


@router.post("/generation/images", status_code=201)
async def add_image(form: GenerationForm, worker: GenerationWorker, state: AppStateDep) -> StoredImage:
    """Store one image; the last one completes the generation."""
    facts = _facts(ImageFacts, _json_of(form, "facts", state.settings.limits))
    data, content_type = await _file_of(form)
    stored = await generation_worker.add_image(
        worker.session,
        worker.store,
        worker.ticket,
        data=data,
        content_type=content_type,
        limits=state.settings.limits,
        **facts.model_dump(),
    )
    return StoredImage(id=stored.image.id, index=stored.image.index, completed=stored.completed)


@router.post("/generation/fail", status_code=204, response_class=Response)
async def fail_generation(body: Failure, worker: GenerationWorker) -> None:
    """End the generation as failed, with its reason; the code `canceled` ends it as canceled by its owner."""
    await generation_worker.fail_generation(worker.session, worker.ticket, body.code, body.message)


# either


@router.post("/ticket:renew")
async def renew(worker: AnyWorker, state: AppStateDep) -> dict[str, str]:
    """A ticket with the same rights for more time, while the job is open and the member still one."""
    of_kind = training_worker if worker.ticket.kind == "training" else generation_worker
    await of_kind.must_be_open(worker.session, worker.ticket)
    return {"ticket": worker.ticket.renewed(state.settings.ticket_seconds).sign(state.secrets.tickets)}


async def _file_of(form: FormData) -> tuple[bytes, str]:
    part = form.get("file")
    if not isinstance(part, UploadFile):
        raise InvalidInput("send the bytes as the file 'file'", param="file")
    return await part.read(), plain_media_type(part.content_type or _BINARY)


def _facts(kind: type[F], facts: Any) -> F:
    """`facts` as a validated `kind`. Raises InvalidInput naming the field."""
    must_be_storable(facts, "facts")
    try:
        return kind.model_validate(facts)
    except ValidationError as problem:
        raise as_own_error([{**fault, "loc": ("body", *fault["loc"])} for fault in problem.errors()]) from None


def _json_of(form: FormData, name: str, limits: Limits) -> Any:
    return parsed(str(form.get(name, "")), name, SystemRoute.json_values, limits.json_levels)
