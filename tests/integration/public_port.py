"""The public port with a small app behind it, and connections that send bytes by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi.routing import APIRoute, iter_route_contexts

from onbrand.config import Limits, Settings
from onbrand.serving.listener import listen, own_controls, public_server

SAFE = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]


@dataclass
class Behind:
    """An app in place of Serve's proxy. It reads the body and responds with the request's facts.

    `/v1/slow` waits for `let_go`, and `/v1/early` responds before it reads anything.
    """

    seen: list[dict[str, Any]] = field(default_factory=list)
    num_inside: int = 0
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    answer: Callable[[Any], Awaitable[None]] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.num_inside += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.num_inside -= 1

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        got, more = b"", scope["path"] != "/v1/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            got, more = got + message["body"], message["more_body"]
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        facts = {"path": scope["path"], "method": scope["method"], "headers": headers, "num_bytes": len(got)}
        self.seen.append(facts | {"client": scope["client"][0], "scheme": scope["scheme"]})
        if self.answer is not None:
            await self.answer(send)
            return
        if scope["path"] == "/v1/slow":
            await self.let_go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": SAFE})
        await send({"type": "http.response.body", "body": json.dumps(facts).encode()})


@asynccontextmanager
async def opened(limits: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[tuple[int, Behind]]:
    """Open the port in front of an app."""
    behind, listening = Behind(), listen("127.0.0.1", 0)
    known = Settings(limits=Limits(**(limits or {})), **settings)
    server = public_server(behind, known, own_controls())
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await until(lambda: server.started)
        yield listening.getsockname()[1], behind
    finally:
        behind.let_go.set()
        server.should_exit = server.force_exit = True
        await serving


@dataclass
class Wire:
    """A connection that sends given bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hear(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one response."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
        return int(first.split()[1]), headers, await self._body(headers)

    async def _body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        body = b""
        while (size := int(await self.reader.readline(), 16)) > 0:
            body += await self.reader.readexactly(size)
            await self.reader.readline()
        await self.reader.readline()
        return body

    async def is_closed(self) -> bool:
        """Whether the other side closes the connection in time."""
        with suppress(ConnectionError):
            await asyncio.wait_for(self.reader.read(), 20)
        return True


@asynccontextmanager
async def wire(port: int, source: str = "127.0.0.1") -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def request(path: str = "/v1/x", *headers: str, method: str = "POST", body: bytes = b"{}") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: test", *headers, f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def asked(port: int, data: bytes, source: str = "127.0.0.1") -> tuple[int, dict[str, str], bytes]:
    async with wire(port, source) as line:
        await line.say(data)
        return await line.hear()


@asynccontextmanager
async def lines(port: int, count: int, data: bytes, source: str = "127.0.0.1") -> AsyncIterator[list[Wire]]:
    """Open this many connections, each of which has sent the bytes."""
    made: list[Wire] = []
    try:
        for _ in range(count):
            line = Wire(*await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0)))
            made.append(line)
            await line.say(data)
        yield made
    finally:
        for line in made:
            line.writer.close()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")


def problem_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    return answer.status_code, body["code"], body["param"]


def routes_of(app: Any) -> Iterator[tuple[str, str, APIRoute]]:
    """Method, path and route of every route of the app."""
    for context in iter_route_contexts(app.routes):
        if isinstance(context.original_route, APIRoute):
            for method in context.methods or ():
                yield method, str(context.path), context.original_route
