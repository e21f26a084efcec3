"""Limits on request bodies that are still arriving: a deadline for each, and a maximum number of open ones.

A body that has arrived whole does not count. Each address, and all together, may have a limited number of open bodies;
beyond it the body that was silent longest is ended, so that slow senders hinder only each other.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import suppress

from starlette.types import Message, Receive

from onbrand.config import Limits
from onbrand.errors import RequestTimeout

_SKIP_BYTES, _SKIP_SECONDS = 4 * 2**20, 1.0
HELD_BYTES = 16 * 2**10
"""This much of a body, or all of it, is received before the app is called."""


class OpenBodies:
    """The bodies that are still arriving, in order of last activity (longest silent first)."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: OrderedDict[Body, None] = OrderedDict()
        self._by_address: dict[str, OrderedDict[Body, None]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def received(self, body: Body) -> None:
        """Note that a body began or made progress; end the longest silent ones beyond the limits."""
        own = self._by_address.setdefault(body.address, OrderedDict())
        for line in (own, self._open):
            line[body] = None
            line.move_to_end(body)
        if len(own) > self.limits.open_bodies_per_address:
            most = self.limits.open_bodies_per_address
            self._end(next(iter(own)), f"more than {most} bodies of one address are on their way; send fewer")
        if len(self._open) > self.limits.open_bodies:
            self._end(next(iter(self._open)), "too many bodies are on their way; try again")

    def forget(self, body: Body) -> None:
        """Remove a body that is whole or whose sender is gone."""
        self._open.pop(body, None)
        own = self._by_address.get(body.address)
        if own is not None:
            own.pop(body, None)
            if not own:
                del self._by_address[body.address]

    def _end(self, body: Body, why: str) -> None:
        self.forget(body)
        body.end(f"{why}. This one was silent for longest")


class Body:
    """One request's body as ASGI's `receive`, with deadlines.

    Args:
        receive: the server's.
        address: the sender's, for limits.

    `problem` is the reason if it was ended early, else None.
    """

    def __init__(self, receive: Receive, address: str, bodies: OpenBodies) -> None:
        self.address = address
        self.problem: RequestTimeout | None = None
        self._receive, self._bodies, self._limits = receive, bodies, bodies.limits
        self._held: deque[Message] = deque()
        self._num_bytes, self._is_whole = 0, False
        self._ended_because: str | None = None
        self._is_gone = False
        self._began = asyncio.get_running_loop().time()
        self._waiting: asyncio.Timeout | None = None

    async def hold(self) -> None:
        """Wait for the first HELD_BYTES or the whole body. Raises RequestTimeout."""
        while not self._is_whole and self._num_bytes < HELD_BYTES:
            self._held.append(await self._next())
            if self.problem is not None:
                raise self.problem

    async def receive(self) -> Message:
        """The next message: first those held, then new ones. A body that is too slow ends as a disconnect."""
        if self._held:
            return self._held.popleft()
        if self.problem is not None:
            return {"type": "http.disconnect"}
        return await (self._receive() if self._is_whole else self._next())

    async def skip(self) -> None:
        """Read and drop up to 4 MiB for 1 s: most clients read an answer only after they have sent their body."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SKIP_SECONDS):
                while not self._is_whole and self.problem is None and self._num_bytes < _SKIP_BYTES:
                    await self._next()

    def end(self, why: str) -> None:
        """Stop waiting for the rest of the body; `why` is the error's message."""
        self._ended_because = why
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(0)

    @property
    def is_gone(self) -> bool:
        """Whether the client disconnected before the whole body arrived."""
        return self._is_gone

    def close(self) -> None:
        """Release the body after the response."""
        self._bodies.forget(self)

    async def _next(self) -> Message:
        self._bodies.received(self)
        try:
            async with asyncio.timeout_at(self._deadline()) as self._waiting:
                message = await self._receive()
        except TimeoutError:
            self.problem = self._too_slow()
            self._bodies.forget(self)
            return {"type": "http.disconnect"}
        finally:
            self._waiting = None
        self._num_bytes += len(message.get("body", b""))
        self._is_gone = message["type"] == "http.disconnect"
        self._is_whole = message["type"] != "http.request" or not message.get("more_body", False)
        if self._is_whole:
            self._bodies.forget(self)
        return message

    def _deadline(self) -> float:
        if self._ended_because is not None:
            return 0
        return self._began + self._limits.body_seconds + self._num_bytes / self._limits.body_bytes_per_second

    def _too_slow(self) -> RequestTimeout:
        if self._ended_because is not None:
            return RequestTimeout(self._ended_because, param="body")
        rate, seconds = self._limits.body_bytes_per_second, self._limits.body_seconds
        return RequestTimeout(
            f"the body comes too slowly: after {seconds:g} s it must come at {rate} bytes a second", param="body"
        )
