"""Generations that run: one background task each in the ingress, from the committed row to its end.

The replica that draws stores pictures and ends the row itself, with the ticket. Only when it could not be reached, or
broke off, does this side end the row as failed: honestly, with the same ticket, through the internal routes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from onbrand.brand import Ticket
from onbrand.config import Secrets, Settings
from onbrand.errors import Conflict, NotFound, OnbrandError, TooManyRequests
from onbrand.services.images import Generator, RenderRequest
from onbrand.system_client import AsyncSystemClient

log = logging.getLogger(__name__)

RUNNING_MAX = 512
_REPORT_EVERY = 1.0
_ENDINGS = frozenset({"completed", "failed", "canceled"})
SystemClientFor = Callable[[str], AsyncSystemClient]


class Renderings:
    """The generations of this ingress that have not ended.

    Args:
        client_for: makes a client of the internal routes for a ticket.
    """

    def __init__(
        self, settings: Settings, secrets: Secrets, generator: Generator, client_for: SystemClientFor | None = None
    ) -> None:
        self._secrets = secrets
        self._seconds = settings.ticket_seconds
        self._generator = generator
        self._client_for = client_for or (lambda ticket: AsyncSystemClient(settings.system_url, ticket))
        self._running: dict[str, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()

    def must_have_room(self) -> None:
        """Raise TooManyRequests when this ingress has as many generations under way as it takes."""
        if len(self._running) >= RUNNING_MAX:
            raise TooManyRequests("too many generations are under way; try again soon", retry_after=5)

    def ticket_for(self, brand_id: str, generation_id: str, user_id: str) -> str:
        """A signed ticket for one generation."""
        ticket = Ticket.issue(brand_id, generation_id, user_id, "generation", self._seconds)
        return ticket.sign(self._secrets.tickets)

    def start(self, family: str, request: RenderRequest) -> None:
        """Begin drawing a generation whose row is committed."""
        task = asyncio.create_task(self._render(family, request), name=f"generation-{request.generation_id}")
        self._running[request.generation_id] = task
        task.add_done_callback(lambda _: self._running.pop(request.generation_id, None))

    async def wait(self, generation_id: str, seconds: float) -> None:
        """Return when the task of a generation has ended here, or after `seconds`; at once if it is not ours."""
        task = self._running.get(generation_id)
        if task is not None:
            await asyncio.wait([task], timeout=seconds)

    def is_running(self, generation_id: str) -> bool:
        """Whether this ingress runs it."""
        return generation_id in self._running

    async def cancel(self, family: str, generation_id: str) -> None:
        """Tell the engine to give the rows free; the row itself already says that canceling was asked."""
        try:
            await self._generator.cancel(family, generation_id)
        except Exception as problem:
            log.warning("generation %s: the engine did not hear the cancel (%s)", generation_id, type(problem).__name__)

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Finish `work` although the request that asked for it is gone."""
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def close(self) -> None:
        """Break off what runs."""
        tasks = [*self._running.values(), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _render(self, family: str, request: RenderRequest) -> None:
        ended = False
        async with self._client_for(request.ticket) as client:
            try:
                ended = await self._follow(family, request, client)
                reason = "the engine stopped before the pictures were done; try again"
            except OnbrandError as problem:
                reason, code = problem.message, problem.code
            except Exception as problem:
                log.error("generation %s broke off: %s", request.generation_id, type(problem).__name__)
                reason, code = "the engine could not be reached or broke off; try again", "engine_failed"
            else:
                code = "engine_failed"
            if not ended:
                await self._fail(client, request.generation_id, code, reason)

    async def _follow(self, family: str, request: RenderRequest, client: AsyncSystemClient) -> bool:
        """Read events to the end; True when the replica said how it ended."""
        told = 0.0
        async for event in self._generator.generate(family, request):
            if event.kind in _ENDINGS:
                return True
            if event.kind == "progress" and time.monotonic() - told > _REPORT_EVERY:
                told = time.monotonic()
                await self._report(client, event.data)
        return False

    async def _report(self, client: AsyncSystemClient, data: Any) -> None:
        """Progress for those who watch; drawing goes on whether it is heard or not."""
        try:
            await client.report_generation(int(data.get("progress", 0)))
        except (OnbrandError, TypeError, ValueError) as problem:
            log.info("progress was not heard: %s", type(problem).__name__)

    async def _fail(self, client: AsyncSystemClient, generation_id: str, code: str, reason: str) -> None:
        try:
            await client.fail_generation(code, reason)
        except (Conflict, NotFound):
            pass  # it has ended after all, or was deleted
        except OnbrandError as problem:
            log.error("generation %s could not be marked failed: %s", generation_id, problem.code)
