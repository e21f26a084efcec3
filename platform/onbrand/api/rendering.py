"""Generations that run: one background task each in the ingress, from the committed row to its end.

The replica that draws stores pictures and ends the row itself, with the ticket. What was admitted is drawn: while the
engine is full or away its task waits here, and new ones are refused meanwhile. Only when that lasts, or drawing broke
off, does this side end the row as failed: honestly, with the same ticket, through the internal routes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from onbrand.brand import Ticket
from onbrand.config import Secrets, Settings
from onbrand.errors import Conflict, NotFound, OnbrandError, TooManyRequests, Unavailable
from onbrand.services.images import Generator, RenderRequest
from onbrand.system_client import AsyncSystemClient

log = logging.getLogger(__name__)

RUNNING_MAX = 512
FULL_SECONDS, AWAY_SECONDS = 600.0, 120.0
"""How long an admitted generation waits while the engine is full, or away, since it last heard of it."""
_REPORT_EVERY = 1.0
_PAUSE_MAX = 20.0
_ENDINGS = frozenset({"completed", "failed", "canceled"})
_NOBODY = ("engine_failed", "the engine stopped before the pictures were done; try again")
SystemClientFor = Callable[[str], AsyncSystemClient]


@dataclass(frozen=True, slots=True)
class Preview:
    """A small picture of what is being drawn; `serial` grows from one to the next. Kept here only, and shortly."""

    serial: int
    data: Mapping[str, Any] = field(repr=False)


@dataclass(slots=True)
class Running:
    """A generation under way: what was heard of it, and its newest preview of each picture."""

    brand_id: str
    progress: int = 0
    heard_at: float = field(default_factory=time.monotonic)
    told_at: float = 0.0
    previews: dict[int, Preview] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)


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
        self._running: dict[str, Running] = {}
        self._refused: dict[str, tuple[float, OnbrandError]] = {}
        self._serials = itertools.count(1)
        self._others: set[asyncio.Task[None]] = set()

    def must_have_room(self) -> None:
        """Raise TooManyRequests when this ingress has as many generations under way as it takes."""
        if len(self._running) >= RUNNING_MAX:
            raise TooManyRequests("too many generations are under way; try again soon", retry_after=5)

    def must_have_room_for(self, brand_id: str, family: str) -> None:
        """Raise what the engine said a moment ago, with the time that is left of it.

        TooManyRequests while it takes no more of this brand, which others are not told; Unavailable while it is away.
        """
        for key in (_full(brand_id, family), family):
            until, problem = self._refused.get(key, (0.0, None))
            left = until - time.monotonic()
            if problem is not None and left > 0:
                raise type(problem)(problem.message, retry_after=math.ceil(left))

    def ticket_for(self, brand_id: str, generation_id: str, user_id: str) -> str:
        """A signed ticket for one generation."""
        ticket = Ticket.issue(brand_id, generation_id, user_id, "generation", self._seconds)
        return ticket.sign(self._secrets.tickets)

    def start(self, family: str, request: RenderRequest) -> None:
        """Begin drawing a generation whose row is committed."""
        brand_id = Ticket.verify(request.ticket, self._secrets.tickets).brand_id
        running = self._running[request.generation_id] = Running(brand_id)
        running.task = asyncio.create_task(
            self._render(family, request, running), name=f"generation-{request.generation_id}"
        )
        running.task.add_done_callback(lambda _: self._running.pop(request.generation_id, None))

    async def wait(self, generation_id: str, seconds: float) -> None:
        """Return when the task of a generation has ended here, or after `seconds`; at once if it is not ours."""
        running = self._running.get(generation_id)
        if running is not None and running.task is not None:
            await asyncio.wait([running.task], timeout=seconds)

    def is_running(self, generation_id: str) -> bool:
        """Whether this ingress runs it."""
        return generation_id in self._running

    def previews(self, generation_id: str, after: int = 0) -> list[Preview]:
        """The newest preview of each of its pictures, of those after a serial number; none if it does not run here.

        Whose generation it is, and who asks, is for the caller to know.
        """
        running = self._running.get(generation_id)
        found = running.previews.values() if running else ()
        return sorted((each for each in found if each.serial > after), key=lambda preview: preview.serial)

    async def cancel(self, family: str, generation_id: str) -> None:
        """Tell the engine to give the rows free; the row itself already says that canceling was asked."""
        if running := self._running.get(generation_id):
            running.wake.set()
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
        tasks = [*(each.task for each in self._running.values() if each.task), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one generation's task ----------------------------------------------------------------------------------

    async def _render(self, family: str, request: RenderRequest, running: Running) -> None:
        async with self._client_for(request.ticket) as client:
            try:
                why = None if await self._drawn(family, request, running, client) else _NOBODY
            except OnbrandError as problem:
                why = problem.code, problem.message
            except Exception as problem:
                log.error("generation %s broke off: %s", request.generation_id, type(problem).__name__)
                why = "engine_failed", "the engine could not be reached or broke off; try again"
            if why is not None:
                await self._fail(client, request.generation_id, *why)

    async def _drawn(self, family: str, request: RenderRequest, running: Running, client: AsyncSystemClient) -> bool:
        """Follow the drawing to its end, waiting while the engine is full or away; True when the row has its end."""
        while True:
            try:
                return await self._follow(family, request, running, client)
            except (TooManyRequests, Unavailable) as problem:
                is_full = isinstance(problem, TooManyRequests)
                seconds = min(_PAUSE_MAX, float(problem.fields.get("retry_after", 2)))
                patience = FULL_SECONDS if is_full else AWAY_SECONDS
                if time.monotonic() + seconds > running.heard_at + patience:
                    raise
                self._note(_full(running.brand_id, family) if is_full else family, seconds, problem)
            if not await self._is_wanted_after(seconds, running, client):
                return True

    async def _follow(self, family: str, request: RenderRequest, running: Running, client: AsyncSystemClient) -> bool:
        """Read events to the end; True when the replica said how it ended."""
        async for event in self._generator.generate(family, request):
            running.heard_at = time.monotonic()
            if event.kind in _ENDINGS:
                return True
            if event.kind == "preview":
                running.previews[int(event.data["index"])] = Preview(next(self._serials), event.data)
            elif event.kind == "image":
                running.previews.pop(int(event.data["index"]), None)
            elif event.kind == "progress":
                running.progress = int(event.data.get("progress", 0))
                await self._report(running, client)
        return False

    def _note(self, key: str, seconds: float, problem: OnbrandError) -> None:
        now = time.monotonic()
        self._refused = {each: said for each, said in self._refused.items() if said[0] > now}
        self._refused[key] = now + seconds, problem

    async def _is_wanted_after(self, seconds: float, running: Running, client: AsyncSystemClient) -> bool:
        """Wait, and say that it is alive; False when it has ended meanwhile, which a cancel that is heard here does."""
        with suppress(TimeoutError):
            await asyncio.wait_for(running.wake.wait(), seconds)
        running.wake.clear()
        try:
            if (await client.report_generation(running.progress)).cancel_requested:
                await client.fail_generation("canceled", "canceled")
                return False
        except (Conflict, NotFound):
            return False  # it has ended, or was deleted
        except OnbrandError as problem:
            log.info("a waiting generation was not heard: %s", problem.code)
        return True

    async def _report(self, running: Running, client: AsyncSystemClient) -> None:
        """Progress for those who watch, about once a second; drawing goes on whether it is heard or not."""
        if time.monotonic() - running.told_at <= _REPORT_EVERY:
            return
        running.told_at = time.monotonic()
        try:
            await client.report_generation(running.progress)
        except OnbrandError as problem:
            log.info("progress was not heard: %s", problem.code)

    async def _fail(self, client: AsyncSystemClient, generation_id: str, code: str, reason: str) -> None:
        try:
            await client.fail_generation(code, reason)
        except (Conflict, NotFound):
            pass  # it has ended after all, or was deleted
        except OnbrandError as problem:
            log.error("generation %s could not be marked failed: %s", generation_id, problem.code)


def _full(brand_id: str, family: str) -> str:
    """What is remembered of one brand alone; a family's name is what is remembered for all."""
    return f"{family}/{brand_id}"
