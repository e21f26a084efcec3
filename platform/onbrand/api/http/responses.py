"""Sends one response to the client: replaces Ray Serve's own errors with problem bodies and drops slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from onbrand.api import problems
from onbrand.api.http import cors
from onbrand.errors import NotFound, OnbrandError, RequestTimeout, TooManyRequests, Unavailable

_SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_OF_STATUS: dict[int, OnbrandError] = {
    404: NotFound("there is nothing at this address"),
    408: RequestTimeout("the request took too long; try again"),
    429: TooManyRequests("too many requests are under way; try again soon"),
    503: Unavailable("the API does not answer now; try again soon"),
}
_ASKS_METHOD = b"access-control-request-method"


class Responder:
    """ASGI's `send` with a time limit for each message.

    Args:
        scope: the request's.
        request_id: for problems that are sent from here.
        origins: CORS origins that may read those problems.
        seconds: time limit to send one message.
        abort: drops the connection and all unsent data.

    `on_start` is called when the response begins.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
        origins: tuple[str, ...],
        seconds: float,
        abort: Callable[[], object] | None = None,
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._request_id, self._origins = request_id, origins
        self._seconds, self._abort = seconds, abort
        self.has_started = False
        self.on_start: Callable[[], object] = lambda: None
        self._is_replaced = False

    async def send(self, message: Message) -> None:
        """Forward a message of the API. Serve's own errors, without the headers of `middleware`, become problems."""
        if (
            message["type"] == "http.response.start"
            and _is_serves_own(message)
            and not self._refuses_preflight(message)
        ):
            self._is_replaced = True
            await self.problem(_OF_STATUS.get(message["status"], _unforeseen(message["status"])))
        elif not self._is_replaced:
            await self._pass(message)

    async def problem(self, error: OnbrandError, is_whole: bool = True) -> None:
        """Send a problem unless a response has begun.

        Args:
            is_whole: the request's body was read to its end, so the connection can be kept alive.
        """
        if self.has_started:
            return
        headers = _SAFE | {"X-Request-Id": self._request_id} | ({} if is_whole else {"Connection": "close"})
        response = cors.readable(problems.problem(error, self._request_id, headers), self._origins)
        await response(self._scope, self._receive, self._pass)

    def _refuses_preflight(self, message: Message) -> bool:
        """Whether this is CORS middleware's refusal of a preflight (400), which lacks the headers of `middleware`."""
        if not self._origins or message["status"] != HTTPStatus.BAD_REQUEST or self._scope["method"] != "OPTIONS":
            return False
        return _ASKS_METHOD in {name.lower() for name, _ in self._scope["headers"]}

    async def _pass(self, message: Message) -> None:
        if not self.has_started:
            self.has_started = True
            self.on_start()
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            if self._abort is not None:
                self._abort()
            raise


def _is_serves_own(message: Message) -> bool:
    headers = Headers(raw=[(name.lower(), value) for name, value in message.get("headers", [])])
    return message["status"] >= HTTPStatus.BAD_REQUEST and "x-content-type-options" not in headers


def _unforeseen(status: Any) -> OnbrandError:
    return OnbrandError(f"something went wrong on our side ({status}); quote the request id to the operator")
