"""Server-Sent Events of a job or a generation until it has ended; `Last-Event-ID` resumes.

A stream reads the rows when the database announces a change, and now and then without one. No database connection is
held in between, and every look checks the membership again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Header
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from onbrand.api.authorization import BrandAccess, BrandCaller
from onbrand.background.previews import previews_name
from onbrand.db.changes import Waiter
from onbrand.errors import InvalidInput, OnbrandError
from onbrand.services.events import AT_ONCE, ENDED_STATES, change_names

OVER: dict[int | str, dict[str, Any]] = {204: {"description": "The stream is over, and `Last-Event-ID` was its last."}}
_LOOK_SECONDS_MIN = 0.3
"""The least time between two looks of a stream at its rows."""
_HEARTBEAT_EVERY = 15.0
_LONGEST = 1800.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at the rows: the status is read first, then at most AT_ONCE events, so that no event is missed.

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


async def stream(access: BrandAccess, subject_id: str, after: int, look: Look, close: Close | None = None) -> Response:
    """The stream, or 204 if the client has already seen its last event: `EventSource` then stops reconnecting.

    Args:
        close: releases what `look` holds, when the stream has ended or its client is gone.

    Raises:
        NotFound: the first look finds nothing.
        TooManyRequests: the caller or the brand has the maximum number of streams open.
    """
    streams, viewer = access.state.streams, (access.scope.holder, access.brand_id)
    async with AsyncExitStack() as opened:
        if close is not None:
            opened.push_async_callback(close)
        async with access.open() as caller:
            names = *await change_names(caller.session, subject_id), previews_name(subject_id)
            waiter = opened.enter_context(access.state.db.changes.waiter(*names))
            first = await look(caller, after)
        if after and first.status in ENDED_STATES and not first.events:
            return Response(status_code=204)
        streams.open(*viewer)
        opened.callback(streams.close, *viewer)
        return Stream(_written(access, after, first, look, waiter), opened.pop_all().aclose)
    raise AssertionError("unreachable")


class Stream(StreamingResponse):
    """A streaming response that calls `ended` at its end, also if the client left before it began."""

    def __init__(self, text: AsyncIterator[str], ended: Close) -> None:
        super().__init__(text, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._ended()


async def _written(access: BrandAccess, after: int, seen: Snapshot, look: Look, waiter: Waiter) -> AsyncIterator[str]:
    end, last_sent = time.monotonic() + _LONGEST, time.monotonic()
    yield ": onbrand\n\n"
    while True:
        looked = time.monotonic()
        for event in seen.events:
            after, last_sent = event.seq, looked
            yield as_text(event.seq, event.kind, event.data)
        for kind, data in seen.ephemeral:
            last_sent = looked
            yield as_text(None, kind, data)
        is_whole = len(seen.events) < AT_ONCE
        if is_whole and (seen.status in ENDED_STATES or looked > end):
            return
        if looked - last_sent > _HEARTBEAT_EVERY:
            last_sent = looked
            yield ": waiting\n\n"
        if is_whole:
            await waiter.wait(access.state.db.changes.patience)
            await asyncio.sleep(looked + _LOOK_SECONDS_MIN - time.monotonic())
        try:
            async with access.open() as caller:
                seen = await look(caller, after)
        except OnbrandError:
            return  # not a member any more, deleted, or no database: the client resumes and gets the error then


def as_text(seq: int | None, kind: str, data: Any) -> str:
    """One event in the format of Server-Sent Events."""
    at = "" if seq is None else f"id: {seq}\n"
    return f"{at}event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
