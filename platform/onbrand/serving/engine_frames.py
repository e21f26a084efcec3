"""The messages between a replica and its engine's process: JSON with bytes behind it, over a socket pair.

No pickle. Both ends are of one version, because a replica starts its engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from onbrand import errors
from onbrand.internal.generation import RenderRequest
from onbrand.sandbox.framing import HEAD
from onbrand.serving import drawing
from onbrand.serving.drawing import DrawingEvent, EngineStats, Pixels

_REQUEST = TypeAdapter(RenderRequest)
_EVENTS = {
    kind.__name__: kind
    for kind in (
        drawing.Taken,
        drawing.Progressed,
        drawing.Previewed,
        drawing.Drawn,
        drawing.Completed,
        drawing.Failed,
        drawing.Canceled,
        drawing.Refused,
    )
}


class Channel:
    """One end of the socket pair; in an event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, kind: str, data: bytes = b"", **fields: Any) -> None:
        """Send a message. Nothing happens once the other end is gone."""
        text = json.dumps({"kind": kind, **fields}).encode()
        self._writer.write(HEAD.pack(len(text), len(data)) + text)
        if data:
            self._writer.write(data)

    async def drained(self) -> None:
        """Wait until the other end has read most of what was sent."""
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def receive(self) -> tuple[dict[str, Any], bytes] | None:
        """The next message and its bytes; None once the other end is gone."""
        try:
            text_bytes, num_bytes = HEAD.unpack(await self._reader.readexactly(HEAD.size))
            message = json.loads(await self._reader.readexactly(text_bytes))
            return message, await self._reader.readexactly(num_bytes)
        except (asyncio.IncompleteReadError, OSError):
            return None

    def close(self) -> None:
        """Close this end."""
        self._writer.close()


def request_fields(request: RenderRequest) -> dict[str, Any]:
    """A request as JSON."""
    return {"request": _REQUEST.dump_python(request, mode="json")}


def request_of(message: dict[str, Any]) -> RenderRequest:
    """The request of a message."""
    return _REQUEST.validate_python(message["request"])


def send_event(channel: Channel, number: int, event: DrawingEvent) -> None:
    """Send an event of a drawing."""
    fields: dict[str, Any] = {name: getattr(event, name) for name in event.__slots__}
    pixels = fields.pop("pixels", None)
    if (problem := fields.pop("error", None)) is not None:
        fields["error"] = error_fields(problem)
    size = {} if pixels is None else {"width": pixels.width, "height": pixels.height}
    data = b"" if pixels is None else pixels.data
    channel.send("event", data, number=number, event=type(event).__name__, fields=fields, size=size)


def event_of(message: dict[str, Any], data: bytes) -> DrawingEvent:
    """The event of a message."""
    fields = dict(message["fields"])
    if message["size"]:
        fields["pixels"] = Pixels(**message["size"], data=data)
    if "error" in fields:
        fields["error"] = error_of(fields["error"])
    return _EVENTS[message["event"]](**fields)


def error_fields(problem: errors.OnbrandError) -> dict[str, Any]:
    """An error as JSON."""
    return {"code": problem.code, "message": problem.message, "fields": problem.fields}


def error_of(said: dict[str, Any]) -> errors.OnbrandError:
    """The error of `error_fields`."""
    return errors.of_code(said["code"], said["message"], **said["fields"])


def stats_fields(stats: EngineStats) -> dict[str, Any]:
    """Stats as JSON."""
    return {"stats": asdict(stats)}


def stats_of(message: dict[str, Any]) -> EngineStats:
    """The stats of a message."""
    said = message["stats"]
    return EngineStats(**said | {"slots": tuple(said["slots"]), "memory": tuple(said["memory"])})
