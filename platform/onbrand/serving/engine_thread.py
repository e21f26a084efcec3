"""The engine's own thread, and its entry from event loops: requests in, each request's events out."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from onbrand.engine.engine import Engine
from onbrand.engine.request import Canceled, Completed, Event, Failed, Progress, Request
from onbrand.errors import Unavailable

logger = logging.getLogger(__name__)

Sink = Callable[[Event], object]
_ENDS = Completed | Failed | Canceled
_CLOSE_SECONDS = 30.0


@dataclass(slots=True)
class Pace:
    """How long an engine's thread takes from the end of a step to the begin of the next one, while there is work.

    Args:
        num_gaps, gap_seconds: how many such times so far, and their sum in seconds.
    """

    num_gaps: int = 0
    gap_seconds: float = 0.0
    _ended_at: float | None = None

    def begin(self) -> None:
        """A step begins."""
        if self._ended_at is not None:
            self.num_gaps += 1
            self.gap_seconds += time.perf_counter() - self._ended_at

    def end(self) -> None:
        """A step has ended."""
        self._ended_at = time.perf_counter()

    def rest(self) -> None:
        """There is nothing to step: the time until the next step is not counted."""
        self._ended_at = None


class _Sink:
    """Passes a request's events on, and progress at intervals."""

    def __init__(self, put: Sink, progress_seconds: float) -> None:
        self._put, self._seconds, self._due = put, progress_seconds, 0.0

    def __call__(self, event: Event) -> object:
        if isinstance(event, Progress) and self._seconds:
            now = time.monotonic()
            if now < self._due:
                return None
            self._due = now + self._seconds
        return self._put(event)


class EngineThread:
    """Steps an engine in one thread while there is work. No other thread uses the engine.

    Safe to use from any event loop and thread.

    Args:
        num_stage_threads: threads that encode text and decode images, so that no step waits for them.
    """

    def __init__(self, engine: Engine, num_stage_threads: int = 2) -> None:
        self._engine = engine
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stages = ThreadPoolExecutor(num_stage_threads, thread_name_prefix="stage")
        engine.use(self._stages, on_done=lambda: self._inbox.put(_look_again))
        self._sinks: dict[str, Sink] = {}
        self.pace = Pace()
        self._closing = self._is_deaf = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False when the thread ends: closed, or failed by an error that is not of a single request."""
        return self._thread.is_alive() and not self._closing

    def holdings(self) -> list[str]:
        """Routing ids of the adapters in slots."""
        return self._engine.residency.holdings()

    async def draw(
        self, request: Request, on_taken: Callable[[], object] | None = None, progress_seconds: float = 0.0
    ) -> AsyncIterator[Event]:
        """The request's events up to its end. Leaving early cancels it.

        Args:
            on_taken: called once the engine has accepted the request, however long the request then waits.
            progress_seconds: the least time between two `Progress` events; those between are dropped in the thread.

        Raises the errors of `Engine.add`; Unavailable when the loop is closing.
        """
        events: asyncio.Queue[Event] = asyncio.Queue()
        here = asyncio.get_running_loop()
        sink = _Sink(lambda event: here.call_soon_threadsafe(events.put_nowait, event), progress_seconds)
        accepted = self._add(request, sink)
        try:
            await asyncio.wrap_future(accepted)
        except asyncio.CancelledError:
            accepted.add_done_callback(partial(self._cancel_taken, request.id))
            raise
        try:
            if on_taken is not None:
                on_taken()
            while True:
                event = await events.get()
                yield event
                if isinstance(event, _ENDS):
                    return
        finally:
            self.cancel(request.id)

    def cancel(self, request_id: str) -> None:
        """Free the request's rows at the next step; unknown or finished ids have no effect."""
        self._inbox.put(lambda: self._engine.cancel(request_id))

    def close(self) -> None:
        """End the thread after the step in progress; unfinished requests get a `Failed` event."""
        self._inbox.put(self._close)
        self._thread.join(_CLOSE_SECONDS)
        self._stages.shutdown(wait=False, cancel_futures=True)

    def _cancel_taken(self, request_id: str, accepted: Future[None]) -> None:
        if not accepted.cancelled() and accepted.exception() is None:
            self.cancel(request_id)

    def _add(self, request: Request, sink: Sink) -> Future[None]:
        accepted: Future[None] = Future()
        self._inbox.put(lambda: self._take(request, sink, accepted))
        if self._is_deaf:  # the thread may have read the inbox for the last time
            self._refuse_rest()
        return accepted

    # --- in the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._listen()
                self._deliver(self._engine.collect())
                if self._engine.can_step and not self._closing:
                    self.pace.begin()
                    events = self._engine.step()
                    self.pace.end()
                    self._deliver(events)
        except Exception as problem:
            frames = "".join(traceback.format_tb(problem.__traceback__))
            logger.critical("the engine's thread ends: %s\n%s", type(problem).__name__, frames)
        finally:
            self._closing = True
            for request_id in list(self._sinks):
                self._deliver([Failed(request_id, Unavailable("the engine is stopping; try again", retry_after=2))])
            self._is_deaf = True
            self._refuse_rest()

    def _listen(self) -> None:
        """Run queued calls; wait for one if the engine has nothing to step."""
        wait = not self._engine.can_step
        if wait:
            self.pace.rest()
        while not self._closing:
            try:
                self._inbox.get(block=wait)()
            except queue.Empty:
                return
            wait = False

    def _take(self, request: Request, sink: Sink, accepted: Future[None]) -> None:
        if not accepted.set_running_or_notify_cancel():
            return  # the caller is gone
        try:
            if self._closing:
                raise Unavailable("the engine is stopping; try again", retry_after=2)
            self._engine.add(request)
        except Exception as problem:
            accepted.set_exception(problem)
            return
        self._sinks[request.id] = sink
        accepted.set_result(None)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            sink = self._sinks.pop(event.request_id) if isinstance(event, _ENDS) else self._sinks[event.request_id]
            try:
                sink(event)
            except RuntimeError:  # the caller's event loop has closed
                self._engine.cancel(event.request_id)

    def _close(self) -> None:
        self._closing = True

    def _refuse_rest(self) -> None:
        self._closing = True
        while True:
            try:
                self._inbox.get_nowait()()
            except queue.Empty:
                return


def _look_again() -> None:
    """Wakes the thread after an encoding or decoding."""
