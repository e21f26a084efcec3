"""One generation that a replica draws now: its events, for all who follow it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Literal

from onbrand.brand import claims_of
from onbrand.errors import OnbrandError
from onbrand.internal.generation import RenderEvent, RenderRequest
from onbrand.serving.drawing import Drawing

_ENDS = frozenset({"completed", "failed", "canceled"})
EventKind = Literal["progress", "preview", "image", "completed", "failed", "canceled"]


class ActiveGeneration:
    """The events of one generation so far; any number of readers may follow them from the beginning."""

    def __init__(self, request: RenderRequest) -> None:
        self.request = request
        self.began_at = time.monotonic()
        self.progress = 0
        self._progress_due = self.began_at + _PROGRESS_SECONDS
        self.cancel_requested = False
        self.drawing: Drawing | None = None
        self.completed = False
        """Whether its row is completed."""
        self.task: asyncio.Task[None] | None = None
        self._events: list[RenderEvent | None] = []
        self._previews: dict[int, int] = {}
        self._problem: OnbrandError | None = None
        self._changed = asyncio.Event()

    def is_of(self, brand_id: str, user_id: str) -> bool:
        """Whether its ticket names this brand and member."""
        claims = claims_of(self.request.ticket)
        return (claims["brand_id"], claims["sub"]) == (brand_id, user_id)

    def cancel(self) -> None:
        """End it at the next step."""
        self.cancel_requested = True
        if self.drawing is not None:
            self.drawing.cancel()

    def tell(self, kind: EventKind, data: dict[str, object]) -> None:
        """Add an event."""
        self._events.append(RenderEvent(kind=kind, data=data))
        self._wake()

    def advance(self, step: int, num_steps: int) -> None:
        """Record progress; add an event unless the last one is recent, because each costs both ends milliseconds."""
        self.progress = 100 * step // num_steps
        now = time.monotonic()
        if now >= self._progress_due:
            self._progress_due = now + _PROGRESS_SECONDS
            self.tell("progress", {"progress": self.progress, "step": step, "num_steps": num_steps})

    def show(self, index: int, step: int, image: str) -> None:
        """Add a preview of image `index`. The previous one is dropped, also for later readers."""
        if (place := self._previews.get(index)) is not None:
            self._events[place] = None
        self._previews[index] = len(self._events)
        num_steps = self.request.parameters.num_inference_steps
        self.tell("preview", {"index": index, "step": step, "num_steps": num_steps, "image": image})

    def end_with(self, problem: OnbrandError) -> None:
        """Record that the row could not be ended from here: readers get the error."""
        self._problem = problem
        self._wake()

    async def follow(self) -> AsyncIterator[RenderEvent]:
        """Events from the first to the end. Raises the problem that kept the generation from ending properly."""
        num_sent = 0
        while True:
            changed = self._changed
            for event in self._events[num_sent:]:
                num_sent += 1
                if event is not None:
                    yield event
                if event is not None and event.kind in _ENDS:
                    return
            if self._problem is not None:
                raise self._problem
            if changed is self._changed and num_sent == len(self._events):
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


_PROGRESS_SECONDS = 2.0
