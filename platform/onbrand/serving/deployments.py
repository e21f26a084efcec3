"""The two HTTP deployments: `Ingress` for users (web login), `System` for workers with tickets (system login).

Each opens its login in its replica's own event loop; nothing secret travels through Serve.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

from ray import serve
from starlette.types import ASGIApp

from onbrand.app import create_app, create_system_app
from onbrand.config import Settings
from onbrand.db.embedded import read_urls
from onbrand.db.session import Database
from onbrand.secrets_file import load_secrets, with_logins
from onbrand.serving.cluster_security import must_be_closed
from onbrand.serving.internal_socket import internal_socket
from onbrand.serving.ports import listen_on_the_nodes_address
from onbrand.serving.serve_generator import ServeGenerator
from onbrand.storage.store import ObjectStore
from onbrand.training.dispatch.dispatcher import Dispatcher
from onbrand.training.dispatch.providers.ray import RayProvider


@serve.ingress()
class Ingress:
    """The API for users; it draws through Serve.

    Args:
        settings: without secrets, which are read from the data directory here.
    """

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        self._open = AsyncExitStack()
        listen_on_the_nodes_address()
        await asyncio.to_thread(must_be_closed, Settings(**settings))
        known = with_logins(Settings(**settings), "web")
        secrets = load_secrets(known)
        urls = await asyncio.to_thread(read_urls, known)
        db = await Database.open(web_url=urls.web_url, claims_key=secrets.claims)
        self._open.push_async_callback(db.close)
        store = ObjectStore.from_settings(known, secrets)
        self._app = create_app(known, secrets, db, store, ServeGenerator(known.families))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def __del__(self) -> None:
        await self._open.aclose()


@serve.ingress()
class System:
    """The internal routes, the dispatcher of training jobs, and the task that has abandoned generations redrawn."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]
        self._open = AsyncExitStack()
        listen_on_the_nodes_address()
        await asyncio.to_thread(must_be_closed, Settings(**settings))
        known = with_logins(Settings(**settings), "system")
        secrets = load_secrets(known)
        urls = await asyncio.to_thread(read_urls, known)
        db = await Database.open(system_url=urls.system_url, claims_key=secrets.claims)
        self._open.push_async_callback(db.close)
        store = ObjectStore.from_settings(known, secrets)
        self._app = create_system_app(known, secrets, db, store, ServeGenerator(known.families))
        await self._open.enter_async_context(internal_socket(self._app, known.folder))
        dispatcher = Dispatcher(known, secrets, db, [RayProvider(known)])
        dispatching = asyncio.create_task(dispatcher.run(), name="dispatcher")
        self._open.push_async_callback(_ended, dispatching)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    async def __del__(self) -> None:
        await self._open.aclose()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
