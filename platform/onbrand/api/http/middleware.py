"""The outermost middleware but CORS: request ids, body limits, security headers, an access log without secrets.

`front` limits addresses and slow bodies, where connections are known.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onbrand.api import problems
from onbrand.api.http import body_limits
from onbrand.api.http.head_requests import HeadOnly
from onbrand.errors import InvalidInput

access_log = logging.getLogger("onbrand.access")
fault_log = logging.getLogger("onbrand.faults")

ANONYMOUS_BYTES = 16 * 2**10
PARTS_MAX = 100
"""The most query parameters, and the most cookies, of a request."""
EXCHANGE = "onbrand.exchange"
_LINKED = "/v1/files/"  # the path's signature is the credential; the route checks it before the body is read
_DROPPED_HEADERS = frozenset({b"serve_multiplexed_model_id", b"serve-multiplexed-model-id"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9-]{8,64}")
_SAFE_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}


class RequestMiddleware:
    """ASGI middleware.

    Args:
        body_limit: the most body bytes for a method and path.
        anonymous_bytes: the most body bytes that are read before `admit` is called for the request.
    """

    def __init__(
        self,
        app: ASGIApp,
        body_limit: Callable[[str, str], int] = body_limits.of_users,
        anonymous_bytes: int = ANONYMOUS_BYTES,
    ) -> None:
        self._app = app
        self._body_limit = body_limit
        self._anonymous_bytes = anonymous_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._body_limit(scope["method"], scope["path"])
        exchange = _Exchange(scope, receive, send, limit, self._anonymous_bytes)
        await exchange.run(self._app)


def admit(scope: Scope) -> None:
    """Raise the body limit to that of the request's path; call it once the sender is authenticated."""
    if EXCHANGE in scope:
        scope[EXCHANGE].admit()


def hold(scope: Scope, share: AbstractContextManager[None]) -> None:
    """Enter `share` now and exit it when this request has been answered."""
    if EXCHANGE in scope:
        scope[EXCHANGE].held.enter_context(share)


def expected_bytes(scope: Scope) -> int:
    """Bytes of this request's body: its Content-Length, or the path's limit for a body without one."""
    return scope[EXCHANGE].expected_bytes() if EXCHANGE in scope else 0


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int, anonymous_bytes: int) -> None:
        given = _given_request_id(scope)
        self._is_named_outside = given is not None
        self.request_id = given or uuid.uuid4().hex
        kept = [pair for pair in scope["headers"] if pair[0].lower() not in _DROPPED_HEADERS]
        self._scope = dict(scope) | {"headers": kept, problems.REQUEST_ID: self.request_id, EXCHANGE: self}
        self._receive, self._send = receive, send
        self._full_limit, self._num_received = limit, 0
        self._limit = limit if scope["path"].startswith(_LINKED) else min(limit, anonymous_bytes)
        self._status: int | None = None
        self.held = ExitStack()

    def admit(self) -> None:
        """Allow the path's full body limit."""
        self._limit = self._full_limit

    def expected_bytes(self) -> int:
        """The Content-Length, or the full limit for a chunked body."""
        is_open = any(name == b"transfer-encoding" for name, _ in self._scope["headers"])
        return self._full_limit if is_open else body_limits.announced_bytes(self._scope)

    async def run(self, app: ASGIApp) -> None:
        started = time.monotonic()
        try:
            with self.held:
                if (odd := _too_many_parts(self._scope)) is not None:
                    await self._answer(problems.problem(odd, self.request_id, {"Connection": "close"}))
                elif body_limits.announced_bytes(self._scope) > self._full_limit:
                    excess = body_limits.too_large(self._full_limit)
                    await self._answer(problems.problem(excess, self.request_id, {"Connection": "close"}))
                else:
                    await HeadOnly(app)(self._scope, self._bounded_receive, self._marked_send)
        except Exception as fault:
            await self._on_fault(fault)
        finally:
            self._log(time.monotonic() - started)

    async def _bounded_receive(self) -> Message:
        """Receive the next message. Raises HTTPException 413 once the body exceeds the limit; the rest is not read."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._num_received += len(message.get("body", b""))
            if self._num_received > self._limit:
                raise HTTPException(413, headers={"Connection": "close"})
        return message

    async def _marked_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message = dict(message) | {"headers": self._with_safe_headers(message.get("headers", []))}
        await self._send(message)

    def _with_safe_headers(self, headers: Any) -> list[tuple[bytes, bytes]]:
        sent = [(name.lower(), value) for name, value in headers]
        names = {name for name, _ in sent}
        safe = [pair for pair in _SAFE_HEADERS.items() if pair[0] not in names]
        own = [] if self._is_named_outside else [(b"x-request-id", self.request_id.encode())]
        return [*sent, *safe, *own]

    async def _answer(self, response: ASGIApp) -> None:
        await response(self._scope, self._receive, self._marked_send)

    async def _on_fault(self, fault: Exception) -> None:
        """Log the exception's type and place, not its text, which may hold a prompt or a row; answer 500."""
        frames = traceback.extract_tb(fault.__traceback__)
        places = "; ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:])
        fault_log.error("request %s: %s at %s", self.request_id, type(fault).__name__, places)
        if self._status is None:
            await self._answer(problems.fault(self.request_id))

    def _log(self, seconds: float) -> None:
        """Log method, path and status; no query (it may hold a signature), no header, no body."""
        path = self._scope["path"].encode("unicode_escape").decode()[:300]
        method, status = self._scope["method"], self._status or 499
        access_log.info("%s %s %s %.0f ms %s", method, path, status, seconds * 1000, self.request_id)


def _too_many_parts(scope: Scope) -> InvalidInput | None:
    """The error for too many query parameters or cookies, else None. The framework parses all before it routes."""
    if scope.get("query_string", b"").count(b"&") >= PARTS_MAX:
        return InvalidInput(f"the address has more than {PARTS_MAX} parameters; leave some out", param="query")
    if sum(1 + value.count(b";") for name, value in scope["headers"] if name.lower() == b"cookie") > PARTS_MAX:
        return InvalidInput(f"the request has more than {PARTS_MAX} cookies; leave some out", param="Cookie")
    return None


def _given_request_id(scope: Scope) -> str | None:
    """The request id that a proxy set, if valid. Ray Serve's proxy sets one and adds it to the response itself."""
    for name, value in scope["headers"]:
        if name.lower() == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return None
