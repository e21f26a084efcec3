"""The engine's thread returns events to the right caller, and reports its end to every caller."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from onbrand.engine.engine import Engine
from onbrand.engine.request import Canceled, Completed, Failed, FinishedImage, Progress
from onbrand.errors import InvalidInput, Unavailable
from onbrand.serving.engine_thread import EngineThread
from tests.numerics.drawing import drawn, request
from tools.harness.tiny_families import family_of

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def loop() -> Iterator[EngineThread]:
    running = EngineThread(Engine(family_of("sd15"), max_batch=4))
    yield running
    running.close()
    assert not running.is_alive


async def test_requests_at_once_each_get_their_own_events(loop):
    stories = await asyncio.gather(*(drawn(loop, request(str(n), n)) for n in range(3)))
    for n, events in enumerate(stories):
        assert {event.request_id for event in events} == {str(n)}
        assert [type(event) for event in events if not isinstance(event, Progress)] == [FinishedImage, Completed]


async def test_what_the_engine_refuses_is_raised_to_who_asked(loop):
    with pytest.raises(InvalidInput, match="height"):
        await drawn(loop, request("r", height=61))


async def test_cancel_ends_the_events(loop):
    async with aclosing(loop.draw(request("r", num_inference_steps=150))) as events:
        await anext(events)
        loop.cancel("r")
        assert [event async for event in events][-1] == Canceled("r")


async def test_pictures_are_encoded_and_decoded_beside_the_engines_thread(loop, monkeypatch):
    places: dict[str, set[str]] = {"encode_prompts": set(), "decode": set(), "denoise": set()}
    family = family_of("sd15")
    for name, seen in places.items():

        def noted(*args, real=getattr(family, name), seen=seen):
            seen.add(threading.current_thread().name.split("_")[0])
            return real(*args)

        monkeypatch.setattr(family, name, noted)
    await asyncio.gather(*(drawn(loop, request(str(n), n)) for n in range(3)))
    assert places == {"encode_prompts": {"stage"}, "decode": {"stage"}, "denoise": {"engine"}}


async def test_the_thread_sleeps_while_all_there_is_is_being_encoded(loop, monkeypatch):
    family, encoding, go_on = family_of("sd15"), threading.Event(), threading.Event()
    real = family.encode_prompts

    def slowly(prompts):
        encoding.set()
        assert go_on.wait(60)
        return real(prompts)

    monkeypatch.setattr(family, "encode_prompts", slowly)
    story = asyncio.create_task(drawn(loop, request("r")))
    assert await asyncio.to_thread(encoding.wait, 60)
    num_steps, step = [], loop._engine.step
    monkeypatch.setattr(loop._engine, "step", lambda: num_steps.append(1) or step())
    await asyncio.sleep(0.2)
    assert len(num_steps) <= 1  # the one that found nothing to do
    go_on.set()
    assert isinstance((await story)[-1], Completed)


async def test_who_is_encoded_begins_while_others_are_still_decoded(loop, monkeypatch):
    """Also where the thread slept: nobody waits for another's picture."""
    family, decoding, go_on = family_of("sd15"), threading.Event(), threading.Event()
    real, slept = family.decode, []

    def slowly(*latents):
        decoding.set()
        slept.append(go_on.wait(60))
        return real(*latents)

    monkeypatch.setattr(family, "decode", slowly)
    first = asyncio.create_task(drawn(loop, request("first")))
    assert await asyncio.to_thread(decoding.wait, 60)
    await asyncio.sleep(0.2)
    async with aclosing(loop.draw(request("second", 1))) as events:
        assert isinstance(await asyncio.wait_for(anext(events), 60), Progress)
        assert not slept
        go_on.set()
        assert isinstance([event async for event in events][-1], Completed)
    assert isinstance((await first)[-1], Completed)


async def test_cancel_while_the_prompt_is_encoded_ends_at_once(loop, monkeypatch):
    family, encoding, go_on = family_of("sd15"), threading.Event(), threading.Event()
    real = family.encode_prompts
    monkeypatch.setattr(family, "encode_prompts", lambda prompts: encoding.set() or (go_on.wait(60) and real(prompts)))
    story = asyncio.create_task(drawn(loop, request("r")))
    assert await asyncio.to_thread(encoding.wait, 60)
    loop.cancel("r")
    try:
        assert await story == [Canceled("r")]
    finally:
        go_on.set()


async def test_who_leaves_early_frees_the_rows(loop):
    async with aclosing(loop.draw(request("gone", num_inference_steps=150))) as events:
        await anext(events)
    for name in ("next", "gone"):  # the id is free again as well
        story = await drawn(loop, request(name, num_inference_steps=1))
        assert isinstance(story[-1], Completed)


async def test_who_goes_before_the_engine_took_the_request_leaves_nothing(loop, monkeypatch):
    taking, go_on, real = threading.Event(), threading.Event(), loop._engine.add
    monkeypatch.setattr(loop._engine, "add", lambda asked: taking.set() or (go_on.wait(60) and real(asked)))
    first = asyncio.create_task(drawn(loop, request("first", num_inference_steps=150)))
    assert await asyncio.to_thread(taking.wait, 60)
    second = asyncio.create_task(drawn(loop, request("second", num_inference_steps=150)))
    await asyncio.sleep(0.05)
    for each in (first, second):
        each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await each
    go_on.set()
    monkeypatch.undo()
    assert isinstance((await drawn(loop, request("third")))[-1], Completed)
    assert not loop._engine.has_work
    assert not loop._sinks


async def test_a_thread_that_breaks_tells_those_who_wait(monkeypatch):
    loop = EngineThread(Engine(family_of("sd15"), max_batch=4))
    async with aclosing(loop.draw(request("r", num_inference_steps=150))) as events:
        await anext(events)
        monkeypatch.setattr(loop._engine, "step", lambda: 1 / 0)
        last = [event async for event in events][-1]
    assert isinstance(last, Failed)
    assert not loop.is_alive
    with pytest.raises(Unavailable):
        await drawn(loop, request("late"))
    loop.close()


async def test_closing_tells_those_who_wait_and_refuses_those_who_come():
    loop = EngineThread(Engine(family_of("sd15"), max_batch=4))
    async with aclosing(loop.draw(request("r", num_inference_steps=150))) as events:
        await anext(events)
        await asyncio.to_thread(loop.close)
        last = [event async for event in events][-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, Unavailable)
    with pytest.raises(Unavailable):
        await drawn(loop, request("late"))
