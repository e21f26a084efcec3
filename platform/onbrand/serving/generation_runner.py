"""One generation in a replica, from its ticket to its last stored image. No Ray here.

A generation is drawn to its end even if the ingress that asked is gone: images go through the internal routes, and
the stream only reports. It stops early when its row asks for a cancel, or when `cancel` is called.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import jwt

from onbrand.brand import claims_of
from onbrand.errors import Conflict, NotFound, OnbrandError, TicketRefused, TooManyRequests, Unavailable
from onbrand.internal.async_client import AsyncSystemClient
from onbrand.internal.generation import RenderEvent, RenderRequest
from onbrand.serving.active_generation import ActiveGeneration
from onbrand.serving.drawing import (
    LAST,
    Canceled,
    Completed,
    Drawing,
    DrawingEngine,
    DrawingEvent,
    Drawn,
    EngineStats,
    Failed,
    Previewed,
    Progressed,
    Taken,
)
from onbrand.serving.image_files import CONTENT_TYPES, as_data_url, encoded
from onbrand.serving.prometheus_metrics import Metrics

logger = logging.getLogger(__name__)
security_log = logging.getLogger("onbrand.security")

_REPORT_SECONDS, _REPORT_SECONDS_MAX, _REPORTS_PER_SECOND = 2.0, 10.0, 4
"""Seconds between reports to a generation's row, at least and at most, and reports per second of all generations."""
_RENEW_BEFORE_SECONDS = 600.0

ClientFor = Callable[[str], AsyncSystemClient]


def must_be_for(request: RenderRequest) -> float:
    """Check the ticket's claims against the request; returns its expiry in seconds since the epoch.

    The platform checks its signature with the first call. This check keeps one brand's ticket from being used with
    another brand's adapter. Raises TicketRefused.
    """
    try:
        claims = claims_of(request.ticket)
        brand_id, job_id, kind, expires = (claims[name] for name in ("brand_id", "job_id", "kind", "exp"))
    except (jwt.InvalidTokenError, KeyError):
        raise TicketRefused("the generation's ticket cannot be read") from None
    if (kind, job_id) != ("generation", request.generation_id):
        raise TicketRefused("the ticket is for another job")
    if any(ref.brand_id != brand_id for ref, _ in request.adapters):
        security_log.error("generation %s: an adapter is of another brand than the ticket", request.generation_id)
        raise TicketRefused("the ticket is for another brand")
    return float(expires)


def _stopping() -> Unavailable:
    return _elsewhere("this replica is stopping; another one draws the same")


def _elsewhere(message: str) -> Unavailable:
    return Unavailable(message, elsewhere=True, retry_after=1)


class GenerationRunner:
    """Draws generations with one engine.

    Args:
        client_for: makes a client of the internal routes for a ticket.
        metrics: None: none are kept.
    """

    def __init__(
        self,
        engine: DrawingEngine,
        client_for: ClientFor,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics
        self._engine, self._client_for = engine, client_for
        self._active: dict[str, ActiveGeneration] = {}
        self._closing = False

    async def generate(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """The generation's events up to its end; a second call for one under way follows the same drawing.

        Raises TicketRefused, TooManyRequests or Unavailable when drawing did not begin; the caller asks again later, or
        ends the row.
        Raises NotFound when one under way is of another brand or member than the ticket.
        """
        must_be_for(request)
        if not self.is_alive:
            raise _stopping()
        active = self._active.get(request.generation_id)
        if active is None:
            active = self._active[request.generation_id] = ActiveGeneration(request)
            active.task = asyncio.create_task(self._run(active))
        claims = claims_of(request.ticket)
        async for event in self._followed(active, claims["brand_id"], claims["sub"]):
            yield event

    async def watch(self, generation_id: str, brand_id: str, user_id: str) -> AsyncIterator[RenderEvent]:
        """The events, from the first, of a drawing under way here, for its member.

        Raises NotFound when it is not here, or is of another brand or member: the caller has read its row.
        """
        async for event in self._followed(self._active.get(generation_id), brand_id, user_id):
            yield event

    async def _followed(
        self, active: ActiveGeneration | None, brand_id: str, user_id: str
    ) -> AsyncIterator[RenderEvent]:
        if active is not None and not active.is_of(brand_id, user_id):
            named = active.request.generation_id
            security_log.error("generation %s: its events were requested in another's name", named)
            active = None
        if active is None:
            raise NotFound("there is no such generation")
        async for event in active.follow():
            yield event

    def is_drawing(self, generation_id: str) -> bool:
        """Whether the generation is under way here."""
        return generation_id in self._active

    def cancel(self, generation_id: str) -> None:
        """End a generation at the next step; unknown or finished ids have no effect."""
        if (active := self._active.get(generation_id)) is not None:
            active.cancel()

    def engine_stats(self) -> EngineStats:
        """The engine's adapters and pace."""
        return self._engine.stats()

    def routing_stats(self) -> dict[str, Any]:
        """Stats for routers: adapters in slots and in memory, by routing id, and number of generations under way."""
        held = self._engine.stats()
        if self._metrics is not None:
            self._metrics.set("onbrand_adapters_in_slots", len(held.slots))
            self._metrics.set("onbrand_generations_active", len(self._active))
        return {"slots": list(held.slots), "memory": list(held.memory), "under_way": len(self._active)}

    @property
    def is_alive(self) -> bool:
        """False once the engine has ended or is closing: other replicas then take over its generations."""
        return self._engine.is_alive and not self._closing

    async def close(self) -> None:
        """Stop all generations. Their rows stay running; the callers' error refers them to another replica."""
        self._closing = True
        await self._engine.close()
        tasks = [active.task for active in self._active.values() if active.task]
        if tasks:
            await asyncio.wait(tasks, timeout=10)

    async def _run(self, active: ActiveGeneration) -> None:
        request = active.request
        try:
            async with self._client_for(request.ticket) as client:
                await self._draw(active, client)
        except OnbrandError as problem:
            active.end_with(problem)
        except Exception as problem:
            logger.error("generation %s broke off: %s", request.generation_id, type(problem).__name__)
            active.end_with(_elsewhere("this replica broke off; another one draws the same"))
        finally:
            del self._active[request.generation_id]

    async def _draw(self, active: ActiveGeneration, client: AsyncSystemClient) -> None:
        """Draw, and start the row at the same time; nothing is stored or told before the platform has accepted it."""
        with closing(self._engine.draw(active.request)) as drawing:
            active.drawing = drawing
            reporting = asyncio.create_task(self._report(active, client))
            try:
                answer = await client.start_generation()
                if active.cancel_requested or answer.cancel_requested:
                    await self._ended(active, client, Canceled())
                else:
                    await self._follow(active, client, drawing)
            finally:
                reporting.cancel()

    async def _follow(self, active: ActiveGeneration, client: AsyncSystemClient, drawing: Drawing) -> None:
        try:
            while not await self._pass_on(active, client, await drawing.next()):
                pass
        except TooManyRequests:
            raise
        except OnbrandError as problem:
            if not self.is_alive:
                raise _stopping() from None
            await self._ended(active, client, Failed(problem))
        except Exception as problem:
            logger.error("generation %s broke off: %s", active.request.generation_id, type(problem).__name__)
            await self._ended(active, client, Failed(Unavailable("the engine broke off; try again")))

    async def _pass_on(self, active: ActiveGeneration, client: AsyncSystemClient, event: DrawingEvent) -> bool:
        """Handle an event; whether it was the last one."""
        match event:
            case Taken():
                active.tell("progress", {"progress": 0})
            case Progressed():
                active.advance(event.done, event.total)
            case Previewed():
                active.show(event.index, event.step, await asyncio.to_thread(as_data_url, event.pixels))
            case Drawn():
                await self._store(active, client, event)
            case Failed() if not self.is_alive:
                raise _stopping()
            case Completed() | Failed() | Canceled():
                await self._ended(active, client, event)
        return isinstance(event, LAST)

    async def _store(self, active: ActiveGeneration, client: AsyncSystemClient, drawn: Drawn) -> None:
        request, pixels = active.request, drawn.pixels
        output_format, quality = request.parameters.output_format, request.parameters.output_compression
        data = await asyncio.to_thread(encoded, pixels, output_format, drawn.receipt, quality)
        content_type = CONTENT_TYPES[output_format]
        kept = await client.add_image(
            drawn.index, drawn.seed, data, content_type, pixels.width, pixels.height, drawn.receipt
        )
        active.completed = kept.completed
        if request.parameters.preview_every:  # it replaces the preview; other followers wait for the end
            active.tell("image", {"index": drawn.index, "seed": drawn.seed, "image_id": kept.id})
        if self._metrics is not None:
            self._metrics.count("onbrand_images_total")

    async def _ended(
        self, active: ActiveGeneration, client: AsyncSystemClient, event: Completed | Failed | Canceled
    ) -> None:
        """Write the end into the row, then tell the followers and count it. The last picture has completed the row."""
        if isinstance(event, Completed):
            if not active.completed:
                raise _elsewhere("a picture was deleted while the others were drawn; it is drawn again")
            active.tell("completed", {"progress": 100})
        elif isinstance(event, Canceled):
            await client.fail_generation("canceled", "canceled")
            active.tell("canceled", {})
        else:
            await client.fail_generation(event.error.code, event.error.message)
            active.tell("failed", {"code": event.error.code, "message": event.error.message})
        outcome = event.error.code if isinstance(event, Failed) else type(event).__name__.lower()
        if self._metrics is not None:
            self._metrics.count("onbrand_generations_total", outcome=outcome)
            self._metrics.observe("onbrand_generation_seconds", time.monotonic() - active.began_at, outcome=outcome)

    async def _report(self, active: ActiveGeneration, client: AsyncSystemClient) -> None:
        """While it waits and runs: report progress and that it is alive, check for a cancel, renew the ticket."""
        expires = must_be_for(active.request)
        while True:
            pause = max(_REPORT_SECONDS, len(self._active) / _REPORTS_PER_SECOND)
            await asyncio.sleep(min(_REPORT_SECONDS_MAX, pause))
            try:
                if expires - time.time() < _RENEW_BEFORE_SECONDS:
                    expires = float(claims_of(await client.renew())["exp"])
                unwanted = (await client.report_generation(active.progress)).cancel_requested
            except (NotFound, Conflict):
                unwanted = True  # the row was deleted, or ended elsewhere
            except OnbrandError:
                continue
            except Exception as problem:
                logger.error("a report of a generation failed: %s", type(problem).__name__)
                continue
            if unwanted:
                active.cancel()
