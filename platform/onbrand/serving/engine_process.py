"""A replica's engine in a process of its own, so that nothing takes its thread's turns: neither HTTP nor Ray.

A replica that shares an interpreter with its engine slows it down: each time its event loop runs Python code, the
thread that steps the engine waits for the interpreter's lock.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import subprocess
import sys
from typing import Any

from onbrand.config import FamilyName
from onbrand.errors import Unavailable
from onbrand.internal.generation import RenderRequest
from onbrand.serving.drawing import LAST, Drawing, DrawingEvent, EngineStats, Failed
from onbrand.serving.engine_frames import Channel, error_of, event_of, request_fields, stats_of

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 35.0


class EngineProcess:
    """`DrawingEngine` in a child process. Make it with `start`."""

    def __init__(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self._process, self._channel = process, channel
        self._drawings: dict[int, Drawing] = {}
        self._numbers = itertools.count()
        self._stats = EngineStats()
        self._is_alive = True
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, family: FamilyName, options: dict[str, Any], settings: dict[str, Any]) -> EngineProcess:
        """Start the process and wait until its base is loaded.

        Args:
            options: `EngineOptions` by name.
            settings: the platform's, without secrets.

        Raises BaseModelRefused and the other errors of loading a base; Unavailable if the process ends meanwhile.
        """
        here, there = socket.socketpair()
        with there:
            process = await asyncio.to_thread(_child_with, there.fileno())
        reader, writer = await asyncio.open_connection(sock=here, limit=2**20)
        channel = Channel(reader, writer)
        try:
            channel.send("begin", family=family, options=options, settings=settings)
            received = await channel.receive()
            if received is None:
                raise _ended()
            if received[0]["kind"] == "failed":
                raise error_of(received[0]["error"])
        except BaseException:
            channel.close()
            process.kill()
            await asyncio.to_thread(process.wait)
            raise
        return cls(process, channel)

    @property
    def is_alive(self) -> bool:
        """False once the process has ended or draws no more."""
        return self._is_alive

    def draw(self, request: RenderRequest) -> Drawing:
        """Load the adapters and draw."""
        number = next(self._numbers)
        made = self._drawings[number] = Drawing(lambda: self._channel.send("cancel", number=number))
        if self._is_alive:
            self._channel.send("draw", number=number, **request_fields(request))
        else:
            self._put(number, Failed(_ended()))
        return made

    def stats(self) -> EngineStats:
        """Its adapters and its pace, at most a second ago."""
        return self._stats

    async def close(self) -> None:
        """End it after the step in progress."""
        self._channel.send("close")
        await asyncio.wait([self._listening], timeout=_CLOSE_SECONDS)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        await asyncio.wait([self._listening])  # nothing more comes, so it fails the drawings that are left
        self._channel.close()

    async def _listen(self) -> None:
        """Pass on what the process sends, until it ends; then fail all drawings."""
        try:
            while (received := await self._channel.receive()) is not None:
                message, data = received
                if message["kind"] == "stats":
                    self._stats = stats_of(message)
                elif message["kind"] == "ended":
                    self._is_alive = False
                else:
                    self._put(message["number"], event_of(message, data))
        except Exception as problem:
            logger.error("the engine's process cannot be understood: %s", type(problem).__name__)
        finally:
            self._is_alive = False
            for number in list(self._drawings):
                self._put(number, Failed(_ended()))

    def _put(self, number: int, event: DrawingEvent) -> None:
        """Pass an event on."""
        self._drawings[number].put(event)
        if isinstance(event, LAST):
            del self._drawings[number]


def _child_with(descriptor: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "onbrand.serving.engine_child", str(descriptor)]
    return subprocess.Popen(command, pass_fds=(descriptor,), stdin=subprocess.DEVNULL)


def _ended() -> Unavailable:
    return Unavailable("the engine's process has ended; try again", retry_after=2)
