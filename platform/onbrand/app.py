"""Builds the two apps: for users (web login only) and for workers with tickets (system login only). Ray-free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI

from onbrand import __version__
from onbrand.api import (
    assets,
    audit,
    brands,
    documents,
    files,
    generations,
    invitations,
    jobs,
    keys,
    models,
    openai,
    problems,
    sessions,
    system,
    ticket_authorization,
    uploads,
    users,
)
from onbrand.api.authorization import AppState
from onbrand.api.http import body_limits, cors, middleware
from onbrand.api.http.bytes_in_progress import BytesInProgress
from onbrand.api.http.concurrency_limits import ConcurrencyLimits
from onbrand.api.http.refusal_cache import Refusals
from onbrand.api.http.stream_limits import OpenStreams
from onbrand.api.known_keys import KnownKeys
from onbrand.background import recovery, upload_cleanup
from onbrand.background.generations import GenerationTasks, SystemClientFor
from onbrand.config import Limits, Settings
from onbrand.db.session import Database
from onbrand.fair_turns import FairTurns
from onbrand.internal.generation import Generator
from onbrand.sandbox.checker import Checker
from onbrand.secrets_file import Secrets
from onbrand.services.generations import recommended_of
from onbrand.services.identity import TokenIssuer
from onbrand.services.oidc import OidcIssuer
from onbrand.services.passwords import Passwords
from onbrand.storage.credentials import CredentialIssuer
from onbrand.storage.store import ObjectStore

_TITLE = "Onbrand"
_SUMMARY = "Private image models for brands"
_PROBLEM: dict[str, Any] = {
    "description": "A problem (RFC 9457) that also carries OpenAI's error object.",
    "content": {problems.MEDIA_TYPE: {"schema": {"type": "object"}}},
}

ROUTES = (
    users,
    sessions,
    brands,
    keys,
    invitations,
    assets,
    uploads,
    documents,
    jobs,
    models,
    generations,
    openai,
    audit,
    files,
)
"""The modules of the API's resources, in the order in which the docs show them."""


def create_app(
    settings: Settings,
    secrets: Secrets,
    db: Database,
    store: ObjectStore,
    generator: Generator,
    *,
    client_for: SystemClientFor | None = None,
) -> FastAPI:
    """The API for users.

    Args:
        generator: draws images; `onbrand.serving` implements it over Ray Serve.
        client_for: makes a client of the internal routes for a ticket; None: over HTTP to `settings.system_url`.
    """
    issuer = TokenIssuer(secrets.tokens, settings.token_minutes)
    generation_tasks = GenerationTasks(settings, secrets, generator, client_for, db.changes.tell)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await generation_tasks.close()

    app = _bare_app(lifespan=lifespan)
    app.state.onbrand = AppState(
        settings,
        secrets,
        db,
        store,
        issuer,
        recommended_of(settings),
        generation_tasks,
        Passwords(settings.limits),
        OpenStreams(settings.limits),
        Refusals(),
        KnownKeys(db),
        OidcIssuer.from_settings(settings),
    )
    _share_out(app, settings.limits)
    for each in ROUTES:
        app.include_router(each.router)
    app.add_middleware(
        middleware.RequestMiddleware, body_limit=body_limits.of_users, anonymous_bytes=settings.limits.anonymous_bytes
    )
    cors.add_to(app, settings.cors_origins)
    return app


def create_system_app(
    settings: Settings,
    secrets: Secrets,
    db: Database,
    store: ObjectStore,
    generator: Generator | None = None,
    *,
    client_for: SystemClientFor | None = None,
) -> FastAPI:
    """The internal routes, for tickets only. Also starts generation recovery and upload clean-up.

    Args:
        generator: draws abandoned generations again; None: they are marked failed.
        client_for: as for `create_app`.
    """
    generation_tasks = None if generator is None else GenerationTasks(settings, secrets, generator, client_for)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = [
            asyncio.create_task(recovery.Recovery(db, generation_tasks).run(), name="abandoned"),
            asyncio.create_task(upload_cleanup.watch(db, store), name="upload-cleanup"),
        ]
        yield
        for task in watching:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if generation_tasks is not None:
            await generation_tasks.close()

    app = _bare_app(lifespan=lifespan)
    app.state.checker = Checker(settings.limits)
    app.state.onbrand = ticket_authorization.SystemAppState(
        settings, secrets, db, store, credentials=CredentialIssuer.from_settings(settings)
    )
    app.include_router(system.router)
    app.add_middleware(
        middleware.RequestMiddleware, body_limit=body_limits.of_workers, anonymous_bytes=settings.limits.anonymous_bytes
    )
    return app


def _bare_app(**options: object) -> FastAPI:
    """An app with error handlers and /healthz. No interactive docs pages, since they load scripts from other sites."""
    app = FastAPI(
        title=_TITLE,
        summary=_SUMMARY,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"4XX": _PROBLEM, "5XX": _PROBLEM},
        **options,  # type: ignore[arg-type]
    )
    problems.install(app)
    app.add_api_route("/healthz", _healthz, methods=["GET"], tags=["operation"])
    return app


async def _healthz() -> dict[str, str]:
    """Liveness of this process only; a busy database restarts no replica."""
    return {"status": "ok"}


def _share_out(app: FastAPI, limits: Limits) -> None:
    """Set up this process's shared limits: file checks, requests, form hashing, body bytes."""
    app.state.checker = Checker(limits)
    app.state.callers = ConcurrencyLimits(limits.requests_per_caller, "requests of one account")
    app.state.hashing = FairTurns(2, limits.waiting_checks, things="forms of this account wait to be hashed")
    app.state.bodies = BytesInProgress(limits)
