"""An engine in this process, with the adapters of its family: loads them by ticket and draws."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, aclosing
from functools import partial

import torch
from torch import Tensor

from onbrand.brand import claims_of
from onbrand.engine import request as requests
from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.errors import ModelGone, NotFound, OnbrandError, Unavailable
from onbrand.families.lora import AdapterWeights
from onbrand.internal.client import SystemClient
from onbrand.internal.generation import RenderRequest
from onbrand.serving import drawing
from onbrand.serving.adapter_store import AdapterStore
from onbrand.serving.drawing import Drawing, DrawingEvent, EngineStats, Pixels
from onbrand.serving.engine_thread import EngineThread

logger = logging.getLogger(__name__)

_MEMORY_MAX = 512
_PROGRESS_SECONDS = 0.5
ClientFor = Callable[[str], AbstractContextManager[SystemClient]]


class LocalEngine:
    """`DrawingEngine` in this process.

    Args:
        client_for: makes a client of the internal routes for a ticket, for the threads that load adapters.
    """

    def __init__(self, thread: EngineThread, adapters: AdapterStore, client_for: ClientFor) -> None:
        self.thread, self.adapters = thread, adapters
        self._client_for = client_for
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()

    @property
    def is_alive(self) -> bool:
        """False once the engine's thread ends or is closing."""
        return self.thread.is_alive

    def draw(self, request: RenderRequest) -> Drawing:
        """Load the adapters and draw."""
        loads = [
            self.adapters.prefetch(ref, partial(self._fetched, request.ticket, ref.model_id), request.account_id)
            for ref, _ in request.adapters
        ]
        made = Drawing(lambda: task.cancel())
        task = asyncio.create_task(self._draw(request, loads, made))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            for load in loads:
                load.cancel()
            if task.cancelled():  # perhaps before it began
                made.put(drawing.Canceled())

        task.add_done_callback(ended)
        return made

    def stats(self) -> EngineStats:
        """Its adapters and its pace."""
        pace = self.thread.pace
        memory = self.adapters.holdings()[:_MEMORY_MAX]
        return EngineStats(tuple(self.thread.holdings()), tuple(memory), pace.num_gaps, pace.gap_seconds)

    async def close(self) -> None:
        """End the thread after the step in progress."""
        await asyncio.to_thread(self.thread.close)
        self.adapters.close()

    async def _draw(self, request: RenderRequest, loads: Sequence[Future[AdapterWeights]], out: Drawing) -> None:
        has_begun = False

        def taken() -> None:
            nonlocal has_begun
            has_begun = True
            out.put(drawing.Taken())

        try:
            work = await self._work(request, loads)
            events = self.thread.draw(work, on_taken=taken, progress_seconds=_PROGRESS_SECONDS)
            async with aclosing(events):  # type: ignore[type-var]
                async for event in events:
                    out.put(_plain(event))
        except OnbrandError as problem:
            out.put(drawing.Failed(problem) if has_begun else drawing.Refused(problem))
        except Exception as problem:
            logger.error("generation %s broke off: %s", request.generation_id, type(problem).__name__)
            out.put(drawing.Failed(Unavailable("the engine broke off; try again")))

    async def _work(self, request: RenderRequest, loads: Sequence[Future[AdapterWeights]]) -> requests.Request:
        """The engine's request, with its adapters in host memory."""
        weights = await asyncio.gather(*map(asyncio.wrap_future, loads))
        adapters = tuple(
            AdapterUse(AdapterKey(ref.brand_id, ref.sha256), each, scale)
            for (ref, scale), each in zip(request.adapters, weights, strict=True)
        )
        return requests.Request(
            id=f"{request.generation_id}.{next(self._numbers)}",  # one that is drawn again may not be gone yet
            brand_id=claims_of(request.ticket)["brand_id"],
            parameters=request.parameters,
            adapters=adapters,
            weight=request.weight,
            slot_quota=request.slot_quota,
            account_id=request.account_id,
        )

    def _fetched(self, ticket: str, model_id: str) -> bytes:
        """The file's bytes. Raises ModelGone when the model is gone but its generation is not."""
        with self._client_for(ticket) as client:
            try:
                return client.read_model(model_id)
            except NotFound:
                client.renew()
                raise ModelGone("there is no such model any more") from None


def _plain(event: requests.Event) -> DrawingEvent:
    """The event without tensors and without its request's id."""
    match event:
        case requests.Progress():
            return drawing.Progressed(event.done, event.total)
        case requests.Preview():
            return drawing.Previewed(event.index, event.step, pixels_of(event.image_CHW))
        case requests.FinishedImage():
            return drawing.Drawn(event.index, event.seed, pixels_of(event.image_CHW), event.receipt.as_json())
        case requests.Completed():
            return drawing.Completed()
        case requests.Failed():
            return drawing.Failed(event.error)
        case requests.Canceled():
            return drawing.Canceled()


def pixels_of(image_CHW: Tensor) -> Pixels:
    """8-bit pixels of an image in 0..1."""
    _, height, width = image_CHW.shape
    data = (image_CHW.clamp(0, 1).permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous().numpy().tobytes()
    return Pixels(width, height, data)
