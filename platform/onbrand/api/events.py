"""Server-Sent Events of a job or a generation, polled from its rows until it has ended; `Last-Event-ID` resumes.

No database connection is held between polls, and every poll checks the membership again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Header
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from onbrand.api.authorization import BrandAccess, BrandCaller
from onbrand.errors import InvalidInput, OnbrandError, TooManyRequests
from onbrand.services.events import AT_ONCE

ENDED = frozenset({"completed", "failed", "canceled"})
OVER: dict[int | str, dict[str, Any]] = {204: {"description": "The stream is over, and `Last-Event-ID` was its last."}}
_LOOK_EVERY = 0.4
_HEARTBEAT_EVERY = 15.0
_LONGEST = 1800.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One poll of the rows: the status is read first, then at most AT_ONCE events, so that no event is missed.

    Args:
        ephemeral: (kind, data) of events that are not stored; they have no id to resume from.
    """

    status: str
    events: list[Any]
    ephemeral: list[tuple[str, Any]] = field(default_factory=list)


Look = Callable[[BrandCaller, int], Awaitable[Snapshot]]
Close = Callable[[], Awaitable[None]]


async def _last_event_id(
    last: Annotated[str | None, Header(alias="Last-Event-ID", description="Resume after this event.")] = None,
) -> int:
    if last is None or last == "":
        return 0
    if not (last.isascii() and last.isdigit() and len(last) <= 18):
        raise InvalidInput("Last-Event-ID must be the id of an event of this stream", param="Last-Event-ID")
    return int(last)


After = Annotated[int, Depends(_last_event_id)]


async def stream(access: BrandAccess, after: int, look: Look, close: Close | None = None) -> Response:
    """The stream, or 204 if the client has already seen its last event: `EventSource` then stops reconnecting.

    Args:
        close: releases what `look` holds, when the stream has ended or its client is gone.

    Raises:
        NotFound: the first poll finds nothing.
        TooManyRequests: the caller or the brand has the maximum number of streams open.
    """
    async with access.open() as caller:
        first = await look(caller, after)
    if after and first.status in ENDED and not first.events:
        if close is not None:
            await close()
        return Response(status_code=204)
    streams, viewer = access.state.streams, (access.scope.holder, access.brand_id)
    try:
        streams.open(*viewer)
    except TooManyRequests:
        if close is not None:
            await close()
        raise

    async def ended() -> None:
        streams.close(*viewer)
        if close is not None:
            await close()

    return _Stream(_written(access, after, first, look), ended)


class _Stream(StreamingResponse):
    """A streaming response that calls `ended` at its end, also if the client left before it began."""

    def __init__(self, text: AsyncIterator[str], ended: Close) -> None:
        super().__init__(text, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._ended()


async def _written(access: BrandAccess, after: int, seen: Snapshot, look: Look) -> AsyncIterator[str]:
    end, last_sent = time.monotonic() + _LONGEST, time.monotonic()
    yield ": onbrand\n\n"
    while True:
        for event in seen.events:
            after, last_sent = event.seq, time.monotonic()
            yield as_text(event.seq, event.kind, event.data)
        for kind, data in seen.ephemeral:
            last_sent = time.monotonic()
            yield as_text(None, kind, data)
        is_whole = len(seen.events) < AT_ONCE
        if is_whole and (seen.status in ENDED or time.monotonic() > end):
            return
        if time.monotonic() - last_sent > _HEARTBEAT_EVERY:
            last_sent = time.monotonic()
            yield ": waiting\n\n"
        if is_whole:
            await asyncio.sleep(_LOOK_EVERY)
        try:
            async with access.open() as caller:
                seen = await look(caller, after)
        except OnbrandError:
            return  # not a member any more, deleted, or no database: the client resumes and gets the error then


def as_text(seq: int | None, kind: str, data: Any) -> str:
    """One event in the format of Server-Sent Events."""
    at = "" if seq is None else f"id: {seq}\n"
    return f"{at}event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
