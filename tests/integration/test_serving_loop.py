"""The engine's thread: events come back to the right caller, and its end is told to everyone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from onbrand.engine.engine import Engine
from onbrand.engine.request import Canceled, Completed, Failed, Picture, Progress
from onbrand.errors import InvalidInput, Unavailable
from onbrand.serving.loop import EngineLoop, drawn
from tests.numerics.bases import family_of
from tests.numerics.drawing import request

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def loop() -> Iterator[EngineLoop]:
    running = EngineLoop(Engine(family_of("sd15"), max_batch=4))
    yield running
    running.close()
    assert not running.is_alive


async def test_requests_at_once_each_get_their_own_events(loop):
    stories = await asyncio.gather(*(drawn(loop, request(str(n), n)) for n in range(3)))
    for n, events in enumerate(stories):
        assert {event.request_id for event in events} == {str(n)}
        assert [type(event) for event in events if not isinstance(event, Progress)] == [Picture, Completed]


async def test_what_the_engine_refuses_is_raised_to_who_asked(loop):
    with pytest.raises(InvalidInput, match="height"):
        await drawn(loop, request("r", height=61))


async def test_cancel_ends_the_events(loop):
    async with aclosing(loop.draw(request("r", num_inference_steps=150))) as events:
        await anext(events)
        loop.cancel("r")
        assert [event async for event in events][-1] == Canceled("r")


async def test_who_leaves_early_frees_the_rows(loop):
    async with aclosing(loop.draw(request("gone", num_inference_steps=150))) as events:
        await anext(events)
    for name in ("next", "gone"):  # the id is free again as well
        story = await drawn(loop, request(name, num_inference_steps=1))
        assert isinstance(story[-1], Completed)


async def test_closing_tells_those_who_wait_and_refuses_those_who_come():
    loop = EngineLoop(Engine(family_of("sd15"), max_batch=4))
    async with aclosing(loop.draw(request("r", num_inference_steps=150))) as events:
        await anext(events)
        await asyncio.to_thread(loop.close)
        last = [event async for event in events][-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, Unavailable)
    with pytest.raises(Unavailable):
        await drawn(loop, request("late"))
