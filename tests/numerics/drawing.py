"""Runs an engine to its end and collects its images."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

import torch

from onbrand.engine.engine import Engine
from onbrand.engine.request import Event, Failed, FinishedImage, Request
from onbrand.serving.engine_thread import EngineThread
from tools.harness.engine_requests import engine_request

Pictures = dict[tuple[str, int], torch.Tensor]

PROMPTS = ("a red square on blue", "a green circle inside a square", "a yellow star", "a black triangle beside a ring")


def request(id: str, number: int = 0, **more: Any) -> Request:
    """A small request; `number` varies prompt, seed and brand."""
    chosen: dict[str, Any] = {
        "brand_id": f"brand-{number}",
        "prompt": PROMPTS[number % len(PROMPTS)],
        "seed": 100 + number,
        "height": 64,
        "width": 64,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "true_cfg_scale": 2.0,
        "negative_prompt": "blurry",
    }
    return engine_request(id, **{**chosen, **more})


def run(engine: Engine, requests: Iterable[Request] = ()) -> list[Event]:
    """Add the requests and step until the engine has no work."""
    for each in requests:
        engine.add(each)
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    return events


async def drawn(loop: EngineThread, request: Request) -> list[Event]:
    """All events of one request of a loop."""
    async with aclosing(loop.draw(request)) as events:  # type: ignore[type-var]
        return [event async for event in events]


def pictures(events: Iterable[Event]) -> Pictures:
    """Images by (request, index). A failed request fails the test."""
    found: Pictures = {}
    for event in events:
        assert not isinstance(event, Failed), event.error
        if isinstance(event, FinishedImage):
            assert (event.request_id, event.index) not in found
            found[event.request_id, event.index] = event.image_CHW
    return found


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two images in 0..1."""
    return float((one - other).abs().max())
