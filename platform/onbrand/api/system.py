"""The internal routes, which workers call with a ticket. `onbrand.internal.client` is their client.

A ticket names one brand, one job and one member. Its kind decides which routes it opens, the row policies which rows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from uuid import UUID

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from onbrand.api.authentication import bearer_of
from onbrand.api.checking import checker_of
from onbrand.api.http import middleware
from onbrand.api.http.json_bodies import parsed
from onbrand.api.http.media_types import FORM, media_type_of, plain_media_type
from onbrand.api.idempotency import as_json
from onbrand.api.input import Input, must_be_storable
from onbrand.api.problems import as_own_error
from onbrand.api.route import Route
from onbrand.brand import Ticket, TicketKind
from onbrand.config import Limits, Secrets, Settings
from onbrand.db.session import Database, Session
from onbrand.errors import Conflict, InvalidInput, TicketRefused, UnsupportedMedia
from onbrand.internal.log_lines import AT_ONCE_MAX, Line
from onbrand.internal.training import ReportResponse, RunCredentials
from onbrand.sandbox.checker import Checker
from onbrand.sandbox.fair_queue import QueueOwner
from onbrand.services import continuation, generation_worker, imports, models, training_worker
from onbrand.services.data_checks import Finding
from onbrand.storage.credentials import CredentialIssuer
from onbrand.storage.layout import DrawnBy
from onbrand.storage.store import BrandStore, ObjectStore

F = TypeVar("F", bound=Input)
_BINARY = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class SystemAppState:
    """The internal app's components."""

    settings: Settings
    secrets: Secrets
    db: Database
    store: ObjectStore
    credentials: CredentialIssuer | None = None
    """None if training runs are stored in a folder, not on S3."""

    def __repr__(self) -> str:
        return "SystemAppState(...)"


async def _state(request: Request) -> SystemAppState:
    state: SystemAppState = request.app.state.onbrand
    return state


AppStateDep = Annotated[SystemAppState, Depends(_state)]


async def _ticket(request: Request, state: AppStateDep) -> Ticket:
    ticket = Ticket.verify(bearer_of(request), state.secrets.tickets)
    middleware.admit(request.scope)
    return ticket


class SystemRoute(Route):
    """A route of the internal app. Checks the ticket before it reads the body."""

    credentials = (_ticket,)
    json_values = 200_000  # a report's lines and findings


router = APIRouter(prefix="/v1", tags=["internal"], route_class=SystemRoute)


AnyTicket = Annotated[Ticket, Depends(_ticket)]


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker with a valid ticket, inside this request's transaction."""

    ticket: Ticket
    session: Session
    store: BrandStore


async def _worker(ticket: AnyTicket, state: AppStateDep) -> AsyncIterator[Worker]:
    async with state.db.system_session(ticket) as session:
        yield Worker(ticket, session, state.store.brand(ticket.brand_id))


AnyWorker = Annotated[Worker, Depends(_worker, scope="function")]


def _must_be_of_kind(ticket: Ticket, kind: TicketKind) -> None:
    if ticket.kind != kind:
        raise TicketRefused(f"this needs a {kind} ticket")


async def _trainer(worker: AnyWorker) -> Worker:
    _must_be_of_kind(worker.ticket, "training")
    return worker


async def _drawer(worker: AnyWorker) -> Worker:
    _must_be_of_kind(worker.ticket, "generation")
    return worker


TrainingWorker = Annotated[Worker, Depends(_trainer)]
GenerationWorker = Annotated[Worker, Depends(_drawer)]


async def _checker(request: Request, ticket: AnyTicket) -> Checker:
    """The checker with the queue of the ticket's brand, unbounded: the work of workers was already admitted."""
    return (await checker_of(request)).on_behalf_of(QueueOwner(ticket.brand_id, is_bounded=False))


FileChecker = Annotated[Checker, Depends(_checker)]


def _form_for(kind: TicketKind) -> Any:
    async def form(request: Request, ticket: AnyTicket, state: AppStateDep) -> AsyncIterator[FormData]:
        _must_be_of_kind(ticket, kind)
        await _must_stand(ticket, state)
        async with _read_form(request) as read:
            yield read

    return Depends(form)


async def _must_stand(ticket: Ticket, state: SystemAppState) -> None:
    """Check the ticket's job before the form is read. Raises NotFound if the job or the member is gone.

    A job that has ended passes: the call may be a repeated one, and decides itself.
    """
    of_kind = training_worker if ticket.kind == "training" else generation_worker
    async with state.db.system_session(ticket) as session:
        with suppress(Conflict):
            await of_kind.must_be_open(session, ticket)


@asynccontextmanager
async def _read_form(request: Request) -> AsyncIterator[FormData]:
    """The whole form, read before the call's transaction begins."""
    if media_type_of(request.headers) != FORM:
        raise UnsupportedMedia("send multipart/form-data with one file", param="file")
    form = await request.form(max_files=1, max_fields=10, max_part_size=2**20)
    try:
        yield form
    finally:
        await form.close()


TrainingForm = Annotated[FormData, _form_for("training")]
GenerationForm = Annotated[FormData, _form_for("generation")]


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
    """The step, prompt index and source of a sample picture."""

    step: int = Field(ge=0, le=10_000_000)
    index: int = Field(ge=0, le=99)
    drawn_by: DrawnBy = "adapter"


class ImageFacts(Input):
    """Index, seed, size in pixels and receipt of a generated picture."""

    index: int = Field(ge=0, le=63)
    seed: int = Field(ge=0, le=2**63 - 1)
    width: int = Field(ge=1, le=16_384)
    height: int = Field(ge=1, le=16_384)
    receipt: dict[str, Any]


# training tickets


@router.get("/training")
async def read_training(worker: TrainingWorker) -> Any:
    """The job: configuration, pictures' ids and captions."""
    return as_json(await training_worker.spec_for_worker(worker.session, worker.ticket))


@router.get("/training/assets/{asset_id}", response_class=Response)
async def read_asset(asset_id: UUID, worker: TrainingWorker) -> Response:
    """The bytes of one picture of the job."""
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
    said = (body.progress, body.metrics, body.lines, body.findings)
    return await training_worker.report(worker.session, worker.ticket, *said)


@router.post("/training/samples", status_code=204, response_class=Response)
async def add_sample(form: TrainingForm, worker: TrainingWorker, checker: FileChecker) -> None:
    """Store a sample picture of a training step."""
    facts = _facts(SampleFacts, {name: form[name] for name in SampleFacts.model_fields if name in form})
    data, content_type = await _file_of(form)
    which = (facts.step, facts.index, data, content_type, facts.drawn_by)
    await training_worker.add_sample(worker.session, worker.store, worker.ticket, *which, checker=checker)


@router.post("/training/publish", status_code=201)
async def publish(form: TrainingForm, worker: TrainingWorker, checker: FileChecker, state: AppStateDep) -> Any:
    """Publish the adapter as the brand's next version and complete the job."""
    facts = _json_of(form, "facts", state.settings.limits)
    must_be_storable(facts, "facts")
    data, _ = await _file_of(form)
    return as_json(await training_worker.publish(worker.session, worker.store, worker.ticket, data, facts, checker))


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
async def add_image(form: GenerationForm, worker: GenerationWorker, checker: FileChecker, state: AppStateDep) -> Any:
    """Store one picture."""
    facts = _facts(ImageFacts, _json_of(form, "facts", state.settings.limits))
    data, content_type = await _file_of(form)
    stored = await generation_worker.add_image(
        worker.session,
        worker.store,
        worker.ticket,
        data=data,
        content_type=content_type,
        limits=state.settings.limits,
        checker=checker,
        **facts.model_dump(),
    )
    return as_json(stored)


@router.post("/generation/finish", status_code=204, response_class=Response)
async def finish_generation(worker: GenerationWorker) -> None:
    """End the generation as completed; all its pictures are stored."""
    await generation_worker.finish_generation(worker.session, worker.ticket)


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


def _facts(kind: type[F], said: Any) -> F:
    """`said` as a validated `kind`. Raises InvalidInput naming the field."""
    must_be_storable(said, "facts")
    try:
        return kind.model_validate(said)
    except ValidationError as problem:
        raise as_own_error([{**fault, "loc": ("body", *fault["loc"])} for fault in problem.errors()]) from None


def _json_of(form: FormData, name: str, limits: Limits) -> Any:
    return parsed(str(form.get(name, "")), name, SystemRoute.json_values, limits.json_levels)
