"""A replica's engine in a process of its own: it draws what an engine in this process draws, and its end is noticed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from onbrand.brand import Ticket
from onbrand.config import Settings
from onbrand.errors import BaseModelRefused, InvalidInput, Unavailable
from onbrand.internal.generation import GenerationParameters, RenderRequest
from onbrand.serving import drawing, engine_process
from onbrand.serving.assembly import assemble
from onbrand.serving.drawing import LAST, DrawingEngine, DrawingEvent
from onbrand.serving.engine_process import EngineProcess
from onbrand.serving.options import EngineOptions
from tools.harness.platform_process import is_ended, wait_for

pytestmark = pytest.mark.timeout(240)

KEY = "a key for the tickets of these tests, long enough"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"data_dir": str(tmp_path_factory.mktemp("data"))}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(settings: dict[str, Any]) -> AsyncIterator[EngineProcess]:
    started = await EngineProcess.start("sd15", {"max_batch": 2}, settings)
    yield started
    await started.close()


def request(generation_id: str, steps: int = 2, **more: Any) -> RenderRequest:
    ticket = Ticket.issue("acme", generation_id, "member", "generation", 60).sign(KEY)
    numbers = {"width": 64, "height": 64, "guidance_scale": 3.0, **more}
    parameters = GenerationParameters(prompt="a red square", seed=7, num_inference_steps=steps, **numbers)
    return RenderRequest(ticket, generation_id, (), parameters)


async def events_of(engine: DrawingEngine, asked: RenderRequest) -> list[DrawingEvent]:
    drawn, events = engine.draw(asked), []
    while not events or not isinstance(events[-1], LAST):
        events.append(await drawn.next())
    return [event for event in events if not isinstance(event, drawing.Progressed)]


async def test_it_draws_what_an_engine_in_this_process_draws(engine: EngineProcess, settings: dict[str, Any]) -> None:
    local = await asyncio.to_thread(assemble, "sd15", EngineOptions(max_batch=2), Settings(**settings))
    asked = request("one", num_images=2, preview_every=1)
    there, here = await events_of(engine, asked), await events_of(local, asked)
    await local.close()
    assert there == here
    assert [type(event) for event in there if not isinstance(event, drawing.Previewed)] == [
        drawing.Taken, drawing.Drawn, drawing.Drawn, drawing.Completed,
    ]  # fmt: skip
    image = next(event for event in there if isinstance(event, drawing.Drawn))
    assert (image.pixels.width, image.pixels.height, len(image.pixels.data)) == (64, 64, 3 * 64 * 64)
    assert image.receipt["brand_id"] == "acme"


async def test_a_request_that_it_refuses_raises_the_engines_error(engine: EngineProcess) -> None:
    with pytest.raises(InvalidInput) as refused:
        await engine.draw(request("two", width=65)).next()
    assert refused.value.param == "width"


async def test_a_cancel_and_a_reader_that_goes_away_free_the_engine(engine: EngineProcess) -> None:
    canceled, left = (
        engine.draw(request("three", steps=150, num_images=4)),
        engine.draw(request("four", steps=150, num_images=4)),
    )
    assert await canceled.next() == drawing.Taken()
    assert await left.next() == drawing.Taken()
    left.close()
    canceled.cancel()
    while not isinstance(event := await canceled.next(), LAST):
        pass
    assert event == drawing.Canceled()
    again = await events_of(engine, request("four"))  # the same id: what the first drawing still sends reaches nobody
    assert isinstance(again[-1], drawing.Completed)


async def test_its_pace_is_told(engine: EngineProcess) -> None:
    await events_of(engine, request("five", steps=20))
    for _ in range(100):
        if engine.stats().num_gaps:
            break
        await asyncio.sleep(0.05)
    assert engine.stats().num_gaps > 0
    assert engine.stats().gap_seconds > 0


async def test_a_base_that_cannot_be_loaded_is_refused_with_its_reason(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(BaseModelRefused):
        await EngineProcess.start("sd15", {}, settings | {"bases": {"sd15": str(tmp_path)}})


async def test_the_end_of_the_process_fails_its_drawings(settings: dict[str, Any]) -> None:
    engine = await EngineProcess.start("sd15", {}, settings)
    waiting = engine.draw(request("six", steps=150, num_images=4))
    assert await waiting.next() == drawing.Taken()
    os.kill(engine._process.pid, signal.SIGKILL)
    while not isinstance(event := await waiting.next(), LAST):
        pass
    assert isinstance(event, drawing.Failed)
    assert isinstance(event.error, Unavailable)
    assert not engine.is_alive
    late = await engine.draw(request("seven")).next()
    assert isinstance(late, drawing.Failed)
    await engine.close()


async def test_a_cancel_right_after_the_request_is_not_lost(engine: EngineProcess) -> None:
    asked = [engine.draw(request(f"at-once-{n}", steps=150, num_images=4)) for n in range(3)]
    for each in asked:
        each.cancel()
    for each in asked:
        while not isinstance(event := await each.next(), LAST):
            pass
        assert event == drawing.Canceled()


async def test_what_the_process_sends_in_error_ends_it_instead_of_leaving_drawings_to_wait(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await EngineProcess.start("sd15", {}, settings)
    monkeypatch.setattr(engine_process, "event_of", lambda message, data: 1 / 0)
    event = await engine.draw(request("eight")).next()
    assert isinstance(event, drawing.Failed)
    assert not engine.is_alive
    await engine.close()
    assert is_ended(engine._process.pid)


PARENT = """
import asyncio, sys
from onbrand.serving.engine_process import EngineProcess
async def main():
    engine = await EngineProcess.start("sd15", {}, {"data_dir": sys.argv[1]})
    print(engine._process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def child_of_a_killed_replica(data_dir: str) -> int:
    """The process id of an engine whose replica was killed."""
    command = [sys.executable, "-c", PARENT, data_dir]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    return child


def test_it_ends_with_its_replica(settings: dict[str, Any]) -> None:
    child = child_of_a_killed_replica(settings["data_dir"])
    wait_for(lambda: is_ended(child), 20, "the end of an engine without a replica")
