"""The engine's process tells its end before the failures that it causes, so that the replica does not fail the rows."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from onbrand.errors import OnbrandError, Unavailable
from onbrand.internal.generation import GenerationParameters, RenderRequest
from onbrand.serving import drawing
from onbrand.serving.drawing import Drawing, EngineStats
from onbrand.serving.engine_child import Child
from onbrand.serving.engine_frames import error_fields, error_of, event_of, request_fields


class Channel:
    """Keeps what is sent; receives `draw` once, then waits."""

    def __init__(self) -> None:
        request = RenderRequest("ticket", "one", (), GenerationParameters(prompt="a square", seed=1))
        self.sent: list[tuple[str, dict[str, Any], bytes]] = []
        self.has_failed = asyncio.Event()
        self._messages = [{"kind": "draw", "number": 7, **request_fields(request)}]

    async def receive(self) -> tuple[dict[str, Any], bytes]:
        if self._messages:
            return self._messages.pop(), b""
        await asyncio.Event().wait()
        raise AssertionError

    async def drained(self) -> None:
        pass

    def send(self, kind: str, data: bytes = b"", **fields: Any) -> None:
        json.dumps(fields)
        self.sent.append((kind, fields, data))
        if fields.get("event") == "Failed":
            self.has_failed.set()


class BrokenEngine:
    """Its thread ends while it draws, between two looks of the process at it."""

    is_alive = True

    def draw(self, request: RenderRequest) -> Drawing:
        made = Drawing(lambda: None)
        made.put(drawing.Taken())
        asyncio.get_running_loop().call_later(0.1, self.end, made)
        return made

    def end(self, made: Drawing) -> None:
        self.is_alive = False
        made.put(drawing.Failed(Unavailable("the engine is stopping; try again", retry_after=2)))

    def stats(self) -> EngineStats:
        return EngineStats()


async def test_the_end_of_the_engine_is_told_first() -> None:
    channel = Channel()
    running = asyncio.create_task(Child(channel, BrokenEngine()).run())  # type: ignore[arg-type]
    await asyncio.wait_for(channel.has_failed.wait(), 5)
    running.cancel()
    kinds = [fields.get("event", kind) for kind, fields, _ in channel.sent if kind != "stats"]
    assert kinds.index("ended") < kinds.index("Failed")
    failed = next(fields | {"kind": kind} for kind, fields, _ in channel.sent if fields.get("event") == "Failed")
    event = event_of(failed, b"")
    assert isinstance(event, drawing.Failed)
    assert event.error.fields == {"retry_after": 2}


class OddEngine(BrokenEngine):
    """It fails with an error that JSON cannot hold."""

    def draw(self, request: RenderRequest) -> Drawing:
        made = Drawing(lambda: None)
        made.put(drawing.Failed(Unavailable("odd", cause=object())))
        return made


async def test_an_event_that_cannot_be_sent_fails_its_drawing_instead_of_leaving_it_to_wait() -> None:
    channel = Channel()
    running = asyncio.create_task(Child(channel, OddEngine()).run())  # type: ignore[arg-type]
    await asyncio.wait_for(channel.has_failed.wait(), 5)
    running.cancel()


def every_error() -> list[type[OnbrandError]]:
    found, left = [], [OnbrandError]
    while left:
        kind = left.pop()
        found.append(kind)
        left += kind.__subclasses__()
    return sorted((kind for kind in found if kind.__module__ == "onbrand.errors"), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_an_error_arrives_as_one_of_its_code_with_its_fields(kind: type[OnbrandError]) -> None:
    arrived = error_of(error_fields(kind("why", param="steps", retry_after=3)))
    assert (arrived.code, arrived.message, arrived.fields) == (kind.code, "why", {"param": "steps", "retry_after": 3})
