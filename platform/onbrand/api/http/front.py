"""The app in front of Ray Serve's proxy: exposes only public paths, applies limits and removes Serve's headers.

It works on connections and client addresses. `middleware` and the routes authenticate callers and interpret bodies.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import uuid
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from onbrand.api.http.body_deadlines import Body, OpenBodies
from onbrand.api.http.body_limits import announced_bytes, of_users, too_large
from onbrand.api.http.concurrency_limits import ConcurrencyLimits
from onbrand.api.http.responses import Responder
from onbrand.config import Limits
from onbrand.errors import NotFound, OnbrandError, Unavailable
from onbrand.fair_turns import FairTurns, QueueOwner

log = logging.getLogger(__name__)

PUBLIC = ("/v1", "/healthz", "/openapi.json")
"""Paths that are reached from outside; all others belong to Serve or to the workers."""
INTERNAL = ("/internal", "/-")
"""Paths that are reached from inside only, at Serve's own port."""
ABORT = "onbrand.abort"
_CONTROLS = frozenset(
    {"x_session_id", "x_request_timeout_seconds", "x_request_disconnect_disabled", "traceparent", "tracestate",
     "baggage", "upgrade", "http2_settings"}
)  # fmt: skip
_CONTROL_PREFIXES = ("serve_", "x_serve_", "ray_", "x_ray_")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9-]{8,64}")
_BODY_HEADERS = (b"content-length", b"transfer-encoding")


class Front:
    """ASGI app in front of Serve's.

    Args:
        app: Serve's proxy.
        cors_origins: origins whose pages may read responses that are sent from here.
        controls: names of further headers that control Serve.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, cors_origins: tuple[str, ...] = (), controls: Iterable[str] = ()
    ) -> None:
        self._app, self._limits, self._cors_origins = app, limits, cors_origins
        self._controls = _CONTROLS | {_plain(name) for name in controls}
        self._bodies = OpenBodies(limits)
        self._requests = ConcurrencyLimits(limits.requests_per_address, "requests of one address")
        most, limit = limits.requests_per_address, "requests_per_address"
        self._turns = FairTurns(limits.turns, most, things="requests of this address wait", limit=limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await refuse(scope, receive, send)
            return
        request_id, headers = self._passed_on(scope["headers"])
        abort = scope.get("state", {}).get(ABORT)
        inner = dict(scope) | {"headers": headers, "state": {}}
        answer = Responder(inner, receive, send, request_id, self._cors_origins, self._limits.send_seconds, abort)
        body = Body(receive, address_of(scope), self._bodies)
        try:
            await self._pass_on(inner, body, answer)
        except OnbrandError as problem:
            await answer.problem(problem, is_whole=not has_body(scope))
        except Exception as fault:
            log.error("request %s: %s in Serve's proxy", request_id, type(fault).__name__)  # its text may be private
            if answer.has_started:
                raise
            await answer.problem(Unavailable("the API ended before it answered; try again"), is_whole=False)
        finally:
            body.close()

    async def _pass_on(self, scope: Scope, body: Body, answer: Responder) -> None:
        if not is_below(scope["path"], PUBLIC):
            raise NotFound("there is nothing at this address")
        if len(self._requests) >= self._limits.requests:
            raise Unavailable("too many requests are under way here; try again soon", retry_after=1)
        with self._requests.held(body.address):
            if announced_bytes(scope) > (limit := of_users(scope["method"], scope["path"])):
                await body.skip()
                raise too_large(limit)
            await body.hold()
            await self._in_turn(scope, body, answer)
        if body.problem is not None:
            raise body.problem
        if not answer.has_started and not body.is_gone:
            raise Unavailable("the API ended before it answered; try again")

    async def _in_turn(self, scope: Scope, body: Body, answer: Responder) -> None:
        """Call the app in this address's turn. A turn ends when the response begins, or after `turn_seconds`."""
        turn = await self._turns.begin(QueueOwner(body.address))
        answer.on_start = turn.end
        timer = asyncio.get_running_loop().call_later(self._limits.turn_seconds, turn.end)
        try:
            await self._app(scope, body.receive, answer.send)
        finally:
            timer.cancel()
            turn.end()

    def _passed_on(self, headers: list[tuple[bytes, bytes]]) -> tuple[str, list[tuple[bytes, bytes]]]:
        """The request's id, and the headers without those that Serve acts on."""
        kept = [(name, value) for name, value in headers if not self._is_control(name)]
        given = [value for name, value in kept if name == b"x-request-id"]
        is_safe = len(given) == 1 and _REQUEST_ID.fullmatch(given[0])
        request_id = given[0] if is_safe else uuid.uuid4().hex.encode()
        others = [pair for pair in kept if pair[0] != b"x-request-id"]
        return request_id.decode(), [*others, (b"x-request-id", request_id)]

    def _is_control(self, name: bytes) -> bool:
        plain = _plain(name.decode("latin-1"))
        return plain in self._controls or plain.startswith(_CONTROL_PREFIXES)


def is_below(path: str, roots: tuple[str, ...]) -> bool:
    """Whether a path is one of `roots` or lies below one."""
    return any(path == root or path.startswith(f"{root}/") for root in roots)


def has_body(scope: Scope) -> bool:
    """Whether a request announces a body."""
    return any(name in _BODY_HEADERS for name, _ in scope["headers"])


def address_of(scope: Scope) -> str:
    """The client's address for limits: an IPv4 address, or the /64 network of an IPv6 address."""
    return network_of(scope["client"][0] if scope.get("client") else "")


def network_of(host: str) -> str:
    """An IPv4 address as it is, the /64 network of an IPv6 address, any other text unchanged."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Close a connection that is not HTTP, such as a websocket."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
