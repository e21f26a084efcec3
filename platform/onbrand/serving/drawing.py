"""The interface between a replica and its engine: requests in, events out. No torch here.

The engine is in this process (`local_engine`) or, as in every replica, in a child of it (`engine_process`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from onbrand.errors import OnbrandError
from onbrand.internal.generation import RenderRequest


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image: 8-bit RGB, `3 * width * height` bytes in rows."""

    width: int
    height: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """The engine has taken the request; it may still wait for its turn."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """`done` of `total` steps of all images."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Previewed:
    """A small image after `step` steps."""

    index: int
    step: int
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished image with its receipt (`engine.request.Receipt.as_json`)."""

    index: int
    seed: int
    pixels: Pixels
    receipt: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Completed:
    """All images are drawn."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Drawing ended with an error after it had begun."""

    error: OnbrandError


@dataclass(frozen=True, slots=True)
class Canceled:
    """Drawing ended by a cancel."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Drawing has not begun: the engine's queue is full, an adapter cannot be loaded, or a number is out of bounds."""

    error: OnbrandError


DrawingEvent = Taken | Progressed | Previewed | Drawn | Completed | Failed | Canceled | Refused
LAST = (Completed, Failed, Canceled, Refused)


class Drawing:
    """The events of one request, for one reader. Closing it early cancels the request.

    Args:
        cancel: called once, unless the last event was read; a `Canceled` follows, or an end that came before it.
    """

    def __init__(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        self._events: asyncio.Queue[DrawingEvent] = asyncio.Queue()
        self._is_over = self._is_canceled = False

    def put(self, event: DrawingEvent) -> None:
        """Add an event; in the reader's event loop."""
        self._events.put_nowait(event)

    async def next(self) -> DrawingEvent:
        """The next event. Raises the error of `Refused`."""
        event = await self._events.get()
        self._is_over = isinstance(event, LAST)
        if isinstance(event, Refused):
            raise event.error
        return event

    def cancel(self) -> None:
        """End the request at the next step, or the loading of its adapters at once. The last event still comes."""
        if not self._is_canceled and not self._is_over:
            self._is_canceled = True
            self._cancel()

    def close(self) -> None:
        """Cancel the request, unless it is over."""
        self.cancel()


class DrawingEngine(Protocol):
    """An engine with the adapters of its family."""

    @property
    def is_alive(self) -> bool:
        """False once it can draw no more."""
        ...

    def draw(self, request: RenderRequest) -> Drawing:
        """Load the adapters and draw; in an event loop."""
        ...

    def stats(self) -> EngineStats:
        """Its adapters and its pace."""
        ...

    async def close(self) -> None:
        """End it after the step in progress; unfinished requests get a `Failed` event."""
        ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Routing ids of the adapters in slots and in memory (most recently used first), and the pace of the engine's
    thread (`engine_thread.Pace`)."""

    slots: tuple[str, ...] = ()
    memory: tuple[str, ...] = ()
    num_gaps: int = 0
    gap_seconds: float = 0.0
