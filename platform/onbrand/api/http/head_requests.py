"""HEAD for every GET route (RFC 9110, 9.3.2): same status and headers, no body; a stream ends at once."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OWN = "/v1/files/"
"""Links are signed for one method, so these routes handle HEAD themselves."""


class HeadOnly:
    """ASGI middleware that turns HEAD into GET for the app and drops the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or scope["path"].startswith(_OWN):
            await self._app(scope, receive, send)
            return
        await self._answer_head(scope, receive, send)

    async def _answer_head(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_stream = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
            elif message["type"] == "http.response.body" and not is_stream.is_set():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                if message.get("more_body"):
                    is_stream.set()

        answering = asyncio.ensure_future(self._app(dict(scope) | {"method": "GET"}, receive, send_head))
        waiting = asyncio.create_task(is_stream.wait())
        try:
            await asyncio.wait({answering, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            await _ended(answering, waiting)


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
