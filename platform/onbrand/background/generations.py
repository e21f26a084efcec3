"""Runs generations: one background task for each, from the committed row to its end.

The replica that draws stores the images and ends the row itself, with the ticket. An admitted generation is drawn:
its task waits while the engine is full or away, and new generations are refused meanwhile; if a replica dies, another
one is asked. Until a replica has begun, this task writes the row's heartbeat; if this process dies too, `recovery`
takes over. This task marks the row failed, by the internal routes and the same ticket, only if it waited too long or
drawing broke off.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from onbrand.background.previews import Previews, Viewer, previews_name, serials
from onbrand.brand import Ticket
from onbrand.config import Settings
from onbrand.errors import Conflict, EngineLost, NotFound, OnbrandError, TooManyRequests, Unavailable
from onbrand.internal.async_client import AiohttpConnections, AsyncSystemClient
from onbrand.internal.generation import Generator, RenderEvent, RenderRequest
from onbrand.secrets_file import Secrets

log = logging.getLogger(__name__)

RUNNING_MAX = 512
FULL_SECONDS, AWAY_SECONDS = 600.0, 120.0
"""How long an admitted generation waits after its last event while the engine is full, and while it is away."""
ALIVE_SECONDS = 5.0
"""Interval of a row's heartbeat until a replica has begun."""
_PAUSE_MAX, _PAUSE_AFTER_LOSS = 20.0, 0.5
_ENDINGS = frozenset({"completed", "failed", "canceled"})
_UNWANTED = RenderEvent("canceled")
SystemClientFor = Callable[[str], AsyncSystemClient]


@dataclass(slots=True)
class Running:
    """The state of a running generation."""

    ticket: Ticket
    previews: Previews
    account_id: str
    progress: int = 0
    num_lost: int = 0
    heard_at: float = field(default_factory=time.monotonic)
    task: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class GenerationTasks:
    """The generations of this process that have not ended.

    Args:
        client_for: makes a client of the internal routes for a ticket.
        tell: called with the `previews_name` of a generation that has a new preview, and the `end_name` of one whose
            task has ended.
    """

    def __init__(
        self,
        settings: Settings,
        secrets: Secrets,
        generator: Generator,
        client_for: SystemClientFor | None = None,
        tell: Callable[[str], object] = lambda name: None,
    ) -> None:
        self._secrets = secrets
        self._seconds = settings.ticket_seconds
        self._generator, self._tell = generator, tell
        self._http = AiohttpConnections(settings.system_url, settings.folder)
        self._client_for = client_for or partial(AsyncSystemClient, settings.system_url, http=self._http)
        self._running: dict[str, Running] = {}
        self._refused: dict[str, tuple[float, OnbrandError]] = {}
        self._serials = serials()
        self._others: set[asyncio.Task[None]] = set()

    @property
    def room(self) -> int:
        """How many more generations this process accepts from any brand."""
        return max(0, RUNNING_MAX - len(self._running))

    def must_have_room(self, brand_id: str, account_id: str) -> None:
        """Raise TooManyRequests if this process is full, and the brand and its account both have their fair share.

        A brand without a running generation is always accepted.
        """
        if self.room:
            return
        held = Counter(running.account_id for running in self._running.values())
        of_account = Counter(
            running.ticket.brand_id for running in self._running.values() if running.account_id == account_id
        )
        share = RUNNING_MAX / max(1, len(held))
        is_over = held[account_id] + 1 > share and of_account[brand_id] + 1 > share / max(1, len(of_account))
        if of_account[brand_id] and is_over:
            raise TooManyRequests("too many generations of this brand are under way; try again soon", retry_after=5)

    def must_have_room_for(self, brand_id: str, family: str) -> None:
        """Repeat the engine's recent refusal, with the remaining time in `retry_after`.

        Raises TooManyRequests if it refuses this brand only, Unavailable while it is away.
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
        """Start the task of a generation whose row is committed; no effect if it has one."""
        if request.generation_id in self._running:
            return
        ticket = Ticket.verify(request.ticket, self._secrets.tickets)
        running = self._running[request.generation_id] = Running(
            ticket, Previews(self._serials), request.account_id or ticket.brand_id
        )
        running.task = asyncio.create_task(
            self._render(family, request, running), name=f"generation-{request.generation_id}"
        )
        running.task.add_done_callback(lambda _: self._forget(request.generation_id))

    def _forget(self, generation_id: str) -> None:
        self._running.pop(generation_id, None)
        self._tell(end_name(generation_id))

    def is_running(self, generation_id: str) -> bool:
        """Whether this process runs the generation."""
        return generation_id in self._running

    def viewer(self) -> Viewer:
        """A viewer for one event stream; close it with the stream."""
        return Viewer(self._generator, self._previews_here, self._serials, self._tell)

    def _previews_here(self, generation_id: str) -> Previews | None:
        running = self._running.get(generation_id)
        return running.previews if running else None

    async def cancel(self, family: str, generation_id: str) -> None:
        """Tell the engine to drop a generation whose database row already has the cancel request."""
        if running := self._running.get(generation_id):
            running.wake.set()
        try:
            await self._generator.cancel(family, generation_id)
        except Exception as problem:
            log.warning("generation %s: the engine did not hear the cancel (%s)", generation_id, type(problem).__name__)

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` to its end after its request has ended."""
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def close(self) -> None:
        """Cancel all tasks."""
        tasks = [*(each.task for each in self._running.values() if each.task), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.close()

    # --- one generation's task ----------------------------------------------------------------------------------

    async def _render(self, family: str, request: RenderRequest, running: Running) -> None:
        async with self._client_for(request.ticket) as client:
            why = None
            try:
                await self._drawn(family, request, running, client)
            except Conflict:
                pass  # it has ended
            except OnbrandError as problem:
                why = problem.code, problem.message
            except Exception as problem:
                log.error("generation %s broke off: %s", request.generation_id, type(problem).__name__)
                why = "engine_failed", "the engine could not be reached or broke off; try again"
            if why is not None:
                await self._fail(client, request.generation_id, *why)

    async def _drawn(self, family: str, request: RenderRequest, running: Running, client: AsyncSystemClient) -> None:
        """Follow the drawing until the row has ended. Waits while the engine is full or away, and retries on another
        replica after a loss. Raises the engine's error if it lasts too long."""
        while True:
            try:
                return await self._follow(family, request, running, client)
            except (TooManyRequests, Unavailable) as problem:
                seconds, lost = self._pause_after(family, problem, running), "elsewhere" in problem.fields
            client.token = running.ticket.renewed(self._seconds).sign(self._secrets.tickets)
            if not await self._is_wanted_after(seconds, running, client, lost):
                return None
            request = replace(request, ticket=client.token)

    def _pause_after(self, family: str, problem: OnbrandError, running: Running) -> float:
        """Seconds until an engine is asked again. Raises the problem if it has lasted too long.

        After a loss: exponential backoff with jitter, so that a generation that kills engines soon runs alone.
        """
        is_full, is_lost = isinstance(problem, TooManyRequests), "elsewhere" in problem.fields
        if is_lost:
            seconds = min(_PAUSE_MAX, _PAUSE_AFTER_LOSS * 2**running.num_lost) * random.uniform(0.5, 1.0)
            running.num_lost += 1
        else:
            seconds = min(_PAUSE_MAX, float(problem.fields.get("retry_after", 2)))
        patience = FULL_SECONDS if is_full or is_lost else AWAY_SECONDS
        if time.monotonic() + seconds > running.heard_at + patience:
            raise problem
        if not is_lost:
            self._note(_full(running.ticket.brand_id, family) if is_full else family, seconds, problem)
        return seconds

    async def _follow(self, family: str, request: RenderRequest, running: Running, client: AsyncSystemClient) -> None:
        """Read events to the last one. Raises Unavailable if the stream stops without it, as after a lost replica."""
        async with aclosing(self._generator.generate(family, request)) as events:  # type: ignore[type-var]
            event = await self._first(events, running, client)
            while event is not None and event.kind not in _ENDINGS:
                running.heard_at = time.monotonic()
                running.previews.take(event)
                if event.kind == "preview":
                    self._tell(previews_name(request.generation_id))
                if event.kind == "progress":
                    running.progress = int(event.data.get("progress", 0))
                event = await anext(events, None)
        if event is None:
            raise Unavailable("the engine broke off; try again", elsewhere=True)

    async def _first(
        self, events: AsyncIterator[RenderEvent], running: Running, client: AsyncSystemClient
    ) -> RenderEvent | None:
        """The first event (a replica has begun), or None if there is none; writes the row's heartbeat until then.

        `_UNWANTED` if the generation has ended or was canceled meanwhile. Raises Unavailable if no replica begins.
        """
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while not await self._has_come(coming, running):
                if time.monotonic() > running.heard_at + FULL_SECONDS:
                    raise Unavailable("no engine began to draw; try again", retry_after=60)
                if not await self._is_wanted(running, client):
                    return _UNWANTED
            return coming.result()
        finally:
            coming.cancel()
            await asyncio.wait([coming])

    async def _has_come(self, coming: asyncio.Future[Any], running: Running) -> bool:
        """Wait for the event, a local cancel, or the next heartbeat; whether the event has come."""
        woken = asyncio.ensure_future(running.wake.wait())
        try:
            await asyncio.wait([coming, woken], timeout=ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        running.wake.clear()
        return coming.done()

    def _note(self, key: str, seconds: float, problem: OnbrandError) -> None:
        now = time.monotonic()
        self._refused = {key: refusal for key, refusal in self._refused.items() if refusal[0] > now}
        self._refused[key] = now + seconds, problem

    async def _is_wanted_after(self, seconds: float, running: Running, client: AsyncSystemClient, lost: bool) -> bool:
        """Wait for `seconds` or a local cancel; False if the generation has ended meanwhile."""
        with suppress(TimeoutError):
            await asyncio.wait_for(running.wake.wait(), seconds)
        running.wake.clear()
        return await self._is_wanted(running, client, lost)

    async def _is_wanted(self, running: Running, client: AsyncSystemClient, lost: bool = False) -> bool:
        """Write the row's heartbeat; False if it has ended, or ends now because it was canceled.

        Raises EngineLost if it lost its engine too often.
        """
        try:
            if (await client.report_generation(running.progress, lost)).cancel_requested:
                await client.fail_generation("canceled", "canceled")
                return False
        except (Conflict, NotFound):
            return False  # it has ended, or was deleted
        except EngineLost:
            raise
        except OnbrandError as problem:
            log.info("the heartbeat of a waiting generation failed: %s", problem.code)
        return True

    async def _fail(self, client: AsyncSystemClient, generation_id: str, code: str, reason: str) -> None:
        try:
            await client.fail_generation(code, reason)
        except (Conflict, NotFound):
            pass  # it has ended after all, or was deleted
        except OnbrandError as problem:
            log.error("generation %s could not be marked failed: %s", generation_id, problem.code)


def end_name(generation_id: str) -> str:
    """The name of the end of a generation's task, for waiters of this process (`onbrand.db.changes`)."""
    return f"end of {generation_id}"


def _full(brand_id: str, family: str) -> str:
    """Key of refusals of one brand; the family's name is the key of refusals of all brands."""
    return f"{family}/{brand_id}"
