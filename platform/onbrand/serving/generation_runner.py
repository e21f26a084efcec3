"""One generation in a replica, from its ticket to its last stored image. No Ray here.

A generation is drawn to its end even if the ingress that asked is gone: images go through the internal routes, and
the stream only reports. It stops early when its row asks for a cancel, or when `cancel` is called.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, aclosing
from functools import partial
from typing import Any

import jwt

from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.request import Canceled, Completed, Event, Failed, FinishedImage, Preview, Progress, Request
from onbrand.errors import Conflict, ModelGone, NotFound, OnbrandError, TicketRefused, TooManyRequests, Unavailable
from onbrand.families.lora import AdapterWeights
from onbrand.internal.async_client import AsyncSystemClient
from onbrand.internal.client import SystemClient
from onbrand.internal.generation import RenderEvent, RenderRequest
from onbrand.serving.active_generation import ActiveGeneration, claims_of
from onbrand.serving.adapter_store import AdapterStore
from onbrand.serving.engine_thread import EngineThread
from onbrand.serving.image_files import CONTENT_TYPES, as_data_url, encoded
from onbrand.serving.prometheus_metrics import Metrics

logger = logging.getLogger(__name__)
security_log = logging.getLogger("onbrand.security")

_REPORT_SECONDS, _REPORT_SECONDS_MAX, _REPORTS_PER_SECOND = 2.0, 10.0, 4
"""Seconds between reports to a generation's row, at least and at most, and reports per second of all generations."""
_RENEW_BEFORE_SECONDS = 600.0
_MEMORY_TOLD = 512

ClientFor = Callable[[str], AsyncSystemClient]
BlockingClientFor = Callable[[str], AbstractContextManager[SystemClient]]


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
        blocking_client_for: the same, for the threads that load adapters.
        metrics: None: none are kept.
    """

    def __init__(
        self,
        engine: EngineThread,
        library: AdapterStore,
        client_for: ClientFor,
        blocking_client_for: BlockingClientFor,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics
        self._engine, self._library = engine, library
        self._client_for, self._blocking_client_for = client_for, blocking_client_for
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
        if generation_id in self._active:
            self._active[generation_id].cancel_requested = True
        self._engine.cancel(generation_id)

    def pace(self) -> dict[str, float]:
        """The pace of the engine's thread so far; see `EngineThread.pace`."""
        return self._engine.pace()

    def routing_stats(self) -> dict[str, Any]:
        """Stats for routers: adapters in slots and in memory, by routing id, and number of generations under way."""
        in_slots, in_memory = self._engine.holdings(), self._library.holdings()[:_MEMORY_TOLD]
        if self._metrics is not None:
            self._metrics.set("onbrand_adapters_in_slots", len(in_slots))
            self._metrics.set("onbrand_generations_active", len(self._active))
        return {"slots": in_slots, "memory": in_memory, "under_way": len(self._active)}

    @property
    def is_alive(self) -> bool:
        """False once the engine's thread ends or is closing: other replicas then take over its generations."""
        return self._engine.is_alive and not self._closing

    async def close(self) -> None:
        """Stop all generations. Their rows stay running; the callers' error refers them to another replica."""
        self._closing = True
        await asyncio.to_thread(self._engine.close)
        self._library.close()
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
        loads = self._prefetched(active.request)
        try:
            answer = await client.start_generation()
            active.cancel_requested = active.cancel_requested or answer.cancel_requested  # it may be set meanwhile
            await self._draw_begun(active, client, loads)
        finally:
            for load in loads:
                load.cancel()

    async def _draw_begun(
        self, active: ActiveGeneration, client: AsyncSystemClient, loads: Sequence[Future[AdapterWeights]]
    ) -> None:
        request = active.request
        reporting = asyncio.create_task(self._report(active, client))
        try:
            work = await self._work(request, loads)
            if active.cancel_requested:
                await self._ended(active, client, Canceled(request.generation_id))
                return
            begun = partial(active.tell, "progress", {"progress": 0})
            async with aclosing(self._engine.draw(work, on_taken=begun)) as events:  # type: ignore[type-var]
                async for event in events:
                    await self._pass_on(active, client, event)
        except TooManyRequests:
            raise
        except OnbrandError as problem:
            if not self.is_alive:
                raise _stopping() from None
            await self._ended(active, client, Failed(request.generation_id, problem))
        except Exception as problem:
            logger.error("generation %s broke off: %s", request.generation_id, type(problem).__name__)
            broken = Unavailable("the engine broke off; try again")
            await self._ended(active, client, Failed(request.generation_id, broken))
        finally:
            reporting.cancel()

    def _prefetched(self, request: RenderRequest) -> list[Future[AdapterWeights]]:
        """Start loading its adapters. The loads overlap with each other and with starting the generation."""
        fetch = self._fetched
        return [
            self._library.prefetch(ref, partial(fetch, request.ticket, ref.model_id), request.account_id)
            for ref, _ in request.adapters
        ]

    async def _work(self, request: RenderRequest, loads: Sequence[Future[AdapterWeights]]) -> Request:
        """The engine's request, with its adapters in host memory."""
        weights = await asyncio.gather(*map(asyncio.wrap_future, loads))
        adapters = tuple(
            AdapterUse(AdapterKey(ref.brand_id, ref.sha256), each, scale)
            for (ref, scale), each in zip(request.adapters, weights, strict=True)
        )
        return Request(
            id=request.generation_id,
            brand_id=claims_of(request.ticket)["brand_id"],
            parameters=request.parameters,
            adapters=adapters,
            weight=request.weight,
            slot_quota=request.slot_quota,
            account_id=request.account_id,
        )

    def _fetched(self, ticket: str, model_id: str) -> bytes:
        """The file's bytes. Raises ModelGone when the model is gone but its generation is not."""
        with self._blocking_client_for(ticket) as client:
            try:
                return client.read_model(model_id)
            except NotFound:
                client.renew()
                raise ModelGone("there is no such model any more") from None

    async def _pass_on(self, active: ActiveGeneration, client: AsyncSystemClient, event: Event) -> None:
        if isinstance(event, Progress):
            active.advance(event.done, event.total)
        elif isinstance(event, Preview):
            active.show(event.index, event.step, as_data_url(event.image_CHW))
        elif isinstance(event, FinishedImage):
            await self._store(active, client, event)
        elif isinstance(event, Failed) and not self.is_alive:
            raise _stopping()
        else:
            await self._ended(active, client, event)

    async def _store(self, active: ActiveGeneration, client: AsyncSystemClient, finished: FinishedImage) -> None:
        receipt, request = finished.receipt.as_json(), active.request
        output_format, quality = request.parameters.output_format, request.parameters.output_compression
        data = await asyncio.to_thread(encoded, finished.image_CHW, output_format, receipt, quality)
        _, height, width = finished.image_CHW.shape
        kept = await client.add_image(
            finished.index, finished.seed, data, CONTENT_TYPES[output_format], width, height, receipt
        )
        active.completed = kept.completed
        if request.parameters.preview_every:  # it replaces the preview; other followers wait for the end
            active.tell("image", {"index": finished.index, "seed": finished.seed, "image_id": kept.id})
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
            if unwanted:
                self.cancel(active.request.generation_id)
