"""The engine's process: `python -m onbrand.serving.engine_child DESCRIPTOR`, started by `engine_process`.

It draws and loads adapters, and does nothing else: the thread that steps the engine shares its interpreter with no
HTTP, no encoding of files and no Ray. It ends with its replica.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from typing import Any

from onbrand.config import Settings
from onbrand.errors import OnbrandError, Unavailable
from onbrand.serving.drawing import LAST, Drawing, DrawingEvent, EngineStats, Failed, Refused
from onbrand.serving.engine_frames import (
    Channel,
    error_fields,
    request_of,
    send_event,
    stats_fields,
)
from onbrand.serving.local_engine import LocalEngine
from onbrand.serving.options import EngineOptions

logger = logging.getLogger(__name__)

_STATS_SECONDS = 0.5
_NICENESS = 4
"""Drawing on a CPU yields to the API and the database, which share its cores and need little of them."""


class Child:
    """Serves one replica.

    Args:
        channel: to the replica.
    """

    def __init__(self, channel: Channel, engine: LocalEngine) -> None:
        self._channel, self._engine = channel, engine
        self._drawings: dict[int, Drawing] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: EngineStats | None = None

    async def run(self) -> None:
        """Draw until the replica closes the channel or asks to end."""
        telling = asyncio.create_task(self._tell_stats())
        while (received := await self._channel.receive()) is not None:
            message, _ = received
            if message["kind"] == "draw":
                self._start(message)
            elif message["kind"] == "cancel":
                if (drawing := self._drawings.get(message["number"])) is not None:
                    drawing.cancel()
            else:
                break
        else:
            os._exit(0)  # the replica is gone: nobody waits for the step in progress
        telling.cancel()
        await self._engine.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, message: dict[str, Any]) -> None:
        number = message["number"]
        drawing = self._drawings[number] = self._engine.draw(request_of(message))
        task = asyncio.create_task(self._pass_on(number, drawing))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, number: int, drawing: Drawing) -> None:
        """Send the drawing's events; before its last one, the adapters that the engine holds now.

        The end of the engine is told before the failures that it causes.
        """
        event: DrawingEvent | None = None
        while not isinstance(event, LAST):
            try:
                event = await drawing.next()
            except OnbrandError as problem:
                event = Refused(problem)
            if isinstance(event, LAST):
                del self._drawings[number]
                self._send_stats()
                if not self._engine.is_alive:
                    self._channel.send("ended")
            try:
                send_event(self._channel, number, event)
            except (TypeError, ValueError) as problem:
                logger.error("an event of a drawing cannot be sent: %s", type(problem).__name__)
                drawing.cancel()
                send_event(self._channel, number, Failed(Unavailable("the engine broke off; try again")))
            await self._channel.drained()

    async def _tell_stats(self) -> None:
        """Tell the replica now and then what the engine holds, and when the engine's thread has ended."""
        while self._engine.is_alive:
            self._send_stats()
            await asyncio.sleep(_STATS_SECONDS)
        self._channel.send("ended")

    def _send_stats(self) -> None:
        if (stats := self._engine.stats()) != self._told:
            self._channel.send("stats", **stats_fields(stats))
            self._told = stats


async def main(descriptor: int) -> None:
    """Load the base that the first message names, say so, and draw."""
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=descriptor), limit=2**20)
    channel = Channel(reader, writer)
    received = await channel.receive()
    if received is None:
        return
    from onbrand.serving.assembly import assemble

    given, _ = received
    options = EngineOptions.model_validate(given["options"])
    if not options.num_gpus:
        os.nice(_NICENESS)
    try:
        engine = await asyncio.to_thread(assemble, given["family"], options, Settings(**given["settings"]))
    except OnbrandError as problem:
        channel.send("failed", error=error_fields(problem))
        await writer.drain()
        return
    channel.send("ready")
    await Child(channel, engine).run()
    await writer.drain()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(asctime)s %(name)s -- %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(main(int(sys.argv[1])))
