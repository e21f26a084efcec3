"""OpenAI's event stream of one image: `image_generation.partial_image`, then `image_generation.completed`.

Partial images are the engine's previews (small JPEGs). A failure after the stream has begun becomes an `error` event.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
from fastapi.responses import StreamingResponse

from onbrand.api import generation_lifecycle
from onbrand.api.authorization import BrandAccess
from onbrand.api.events import Stream
from onbrand.api.problems import body as problem_body
from onbrand.background.previews import Viewer
from onbrand.errors import (
    AdapterRefused,
    BaseModelRefused,
    Canceled,
    NotFound,
    OnbrandError,
    StorageError,
    Unavailable,
    of_code,
)
from onbrand.services import generations
from onbrand.services.events import ENDED_STATES

_LOOK_SECONDS_MIN = 0.2
"""Pause after a change, before the rows are read."""
_HEARTBEAT_EVERY = 15.0
_NO_TOKENS = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
_USAGE = _NO_TOKENS | {"input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A streamed request.

    Args:
        num_partial: the most partial images.
        quality: as the caller sent it.
        abandon: cancel the generation if the client disconnects.
    """

    generation_id: str
    num_partial: int
    quality: str
    abandon: bool

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the request that each event repeats."""
        return {"background": "opaque", "quality": "auto" if self.quality == "standard" else self.quality}


def streamed(access: BrandAccess, stream_request: StreamRequest, seconds: float) -> StreamingResponse:
    """Stream the events of a started generation for at most `seconds`."""
    tasks = access.state.generation_tasks
    viewer, ended = tasks.viewer(), asyncio.Event()

    async def close() -> None:
        if stream_request.abandon and not ended.is_set():
            tasks.in_background(generation_lifecycle.give_up(access, stream_request.generation_id))
        await viewer.close()

    return Stream(_events(access, stream_request, viewer, seconds, ended), close)


async def _events(
    access: BrandAccess, stream_request: StreamRequest, viewer: Viewer, seconds: float, ended: asyncio.Event
) -> AsyncIterator[str]:
    """The events; sets `ended` if the generation has ended."""
    try:
        async for piece in _drawn(access, stream_request, viewer, seconds):
            yield piece
        ended.set()
    except OnbrandError as problem:
        if not isinstance(problem, Unavailable):
            ended.set()
        yield _event("error", {"error": problem_body(problem.status, problem.code, "", problem.message, "")["error"]})


async def _drawn(
    access: BrandAccess, stream_request: StreamRequest, viewer: Viewer, seconds: float
) -> AsyncIterator[str]:
    """Previews as they arrive, then the image. Raises the error of a generation that ended without an image."""
    num_shown, end, last_sent = 0, time.monotonic() + seconds, time.monotonic()
    changes, names = access.state.db.changes, await generation_lifecycle.names_of(access, stream_request.generation_id)
    with changes.waiter(*names) as waiter:
        while (
            generation := await generation_lifecycle.read(access, stream_request.generation_id)
        ).status not in ENDED_STATES:
            for preview in viewer.news(generation)[: stream_request.num_partial - num_shown]:
                yield _partial(generation, stream_request, num_shown, preview.data)
                num_shown, last_sent = num_shown + 1, time.monotonic()
            if time.monotonic() > end:
                raise Unavailable(f"the picture was not done within {seconds:g} s; try again")
            if time.monotonic() - last_sent > _HEARTBEAT_EVERY:
                last_sent = time.monotonic()
                yield ": waiting\n\n"
            await waiter.wait(changes.patience)
            await asyncio.sleep(_LOOK_SECONDS_MIN)
    if generation.status != "completed":
        raise why_none(generation)
    async with access.open() as caller:
        store = caller.store
    data = await anyio.to_thread.run_sync(store.read, generation.images[0].key)
    yield _completed(generation, stream_request, data)


def why_none(generation: generations.Generation) -> OnbrandError:
    """The error that ended a generation. `should_retry` is true only if the engine failed or the status is 503."""
    error = generation.error or {}
    code = "canceled" if generation.status == "canceled" else error.get("code", "")
    problem = of_code(code, f"no pictures: {error.get('message', 'the generation was canceled')}")
    if not isinstance(problem, NotFound | AdapterRefused | Canceled | Unavailable | BaseModelRefused | StorageError):
        problem = OnbrandError(problem.message)  # an internal fault: the request itself was right
    problem.fields["should_retry"] = problem.status == 503 or code == "engine_failed"
    return problem


def _partial(generation: generations.Generation, stream_request: StreamRequest, index: int, preview: Any) -> str:
    image = str(preview["image"]).partition(",")[2]
    return _event(
        "image_generation.partial_image",
        _about(generation, stream_request) | {"b64_json": image, "output_format": "jpeg", "partial_image_index": index},
    )


def _completed(generation: generations.Generation, stream_request: StreamRequest, data: bytes) -> str:
    image = base64.b64encode(data).decode()
    return _event(
        "image_generation.completed",
        _about(generation, stream_request)
        | {"b64_json": image, "output_format": generation.output_format, "usage": _USAGE},
    )


def _about(generation: generations.Generation, stream_request: StreamRequest) -> dict[str, Any]:
    size = f"{generation.width}x{generation.height}"
    return stream_request.fields | {"created_at": int(generation.created_at.timestamp()), "size": size}


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | data, separators=(',', ':'))}\n\n"
