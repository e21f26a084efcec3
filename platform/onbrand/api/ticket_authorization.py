"""Dependencies that authorize a worker by its ticket, for the internal routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.datastructures import FormData

from onbrand.api.authentication import bearer_of
from onbrand.api.checking import checker_of
from onbrand.api.http import middleware
from onbrand.api.http.media_types import FORM, media_type_of
from onbrand.api.route import Route
from onbrand.brand import Ticket, TicketKind
from onbrand.config import Settings
from onbrand.db.session import Database, Session
from onbrand.errors import Conflict, TicketRefused, UnsupportedMedia
from onbrand.fair_turns import QueueOwner
from onbrand.sandbox.checker import Checker
from onbrand.secrets_file import Secrets
from onbrand.services import generation_worker, training_worker
from onbrand.storage.credentials import CredentialIssuer
from onbrand.storage.store import BrandStore, ObjectStore


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
