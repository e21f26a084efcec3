"""The public port: a separate listener in the process of Ray Serve's HTTP proxy, in front of it.

Serve calls `middlewares`, named by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`. Serve's own port then answers only the
internal routes and Serve's health checks, and is for internal use. The API is at this port, with limits that Serve
lacks: deadlines for headers and bodies, shares of addresses, and HTTP/1.1 only.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import resource
import socket
from collections import OrderedDict
from typing import Any

import h11
import uvicorn
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from onbrand.api.http.front import ABORT, INTERNAL, Front, is_below, network_of, refuse
from onbrand.api.http.rate_limits import Rates
from onbrand.api.http.responses import Responder
from onbrand.api.problems import MEDIA_TYPE, body
from onbrand.config import Limits, Settings
from onbrand.errors import ConfigurationError, NotFound
from onbrand.serving.http_framing import BoundedConnection, Refusal, holds_request

CALLBACK = "onbrand.serving.listener:middlewares"
"""Value of `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` in the environment of every node."""
_HEADERS_BYTES = 64 * 2**10
_PIECE_BYTES = 16 * 2**10
_NO_HTTP = Refusal(400, "bad_request", "this is not a request of HTTP/1.1, or its headers are larger than 64 KiB")
_KEEP_ALIVE_SECONDS = 75
_FIRST_REQUEST_SECONDS = 2.0
"""Time for the first request on a connection beyond its address's rate."""
_BACKLOG = 2048
_FILES_KEPT = 256
"""Open files that the process needs besides connections."""


def middlewares() -> list[Middleware]:
    """For Serve's proxy: the public port with this process's settings."""
    return [Middleware(Listener, settings=Settings())]


class Listener:
    """Opens the public port, and restricts Serve's own port to internal use.

    Args:
        app: Serve's proxy.

    Raises ConfigurationError if the port cannot be opened; Serve then does not start.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        listening = listen(settings.host, settings.port)
        self.server = public_server(app, settings, own_controls())
        self.serving = asyncio.get_running_loop().create_task(self.server.serve(sockets=[listening]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at Serve's own port: internal routes only."""
        if scope["type"] != "http":
            await refuse(scope, receive, send)
        elif is_below(scope["path"], INTERNAL):
            await self._app(scope, receive, send)
        else:
            answer = Responder(scope, receive, send, "none", (), _KEEP_ALIVE_SECONDS)
            await answer.problem(NotFound("the API is not at this port"))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at `host` and `port`. Raises ConfigurationError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):  # a new proxy of Serve takes over the port, as at Serve's own
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        made.bind((host, port))
        made.listen(_BACKLOG)
    except OSError as problem:
        made.close()
        raise ConfigurationError(f"cannot listen on {host} port {port} ({problem.strerror})", param="port") from None
    return made


def public_server(app: ASGIApp, settings: Settings, controls: tuple[str, ...] = ()) -> uvicorn.Server:
    """An HTTP/1.1 server for public clients.

    Args:
        app: the application behind it.
        controls: names of headers that steer `app`; clients may not send them.
    """
    front = Front(app, settings.limits, settings.cors_origins, controls)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would log what clients send
    connections = Connections(settings.limits, settings.trusted_proxies)
    config = uvicorn.Config(
        front,
        http=functools.partial(PublicProtocol, connections=connections),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=_HEADERS_BYTES,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
    )
    return uvicorn.Server(config)


def own_controls() -> tuple[str, ...]:
    """The headers that control this Serve."""
    from ray.serve._private import constants

    return (
        constants.SERVE_MULTIPLEXED_MODEL_ID,
        constants.SERVE_SESSION_ID,
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
    )


class Connections:
    """The open connections, longest idle first."""

    def __init__(self, limits: Limits, trusted_proxies: tuple[str, ...] = ()) -> None:
        self.limits = limits
        self._trusted = [ipaddress.ip_network(each, strict=False) for each in trusted_proxies]
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = files == resource.RLIM_INFINITY
        self._most = limits.connections if unlimited else max(1, min(limits.connections, files - _FILES_KEPT))
        self._open: OrderedDict[PublicProtocol, None] = OrderedDict()
        self._by_address: dict[str, OrderedDict[PublicProtocol, None]] = {}
        self._rates = Rates(limits.connections_per_second, limits.connections_burst)

    def __len__(self) -> int:
        return len(self._open)

    def may_open(self, address: str) -> bool:
        """Whether the address is within its rate of new connections, or trusted."""
        return self._rates.take(address) or self._is_trusted(address)

    def add(self, made: PublicProtocol) -> None:
        """Register a new connection. Beyond the limit of its address, or of all, the longest idle one is dropped."""
        own = self._by_address.setdefault(made.address, OrderedDict())
        own[made] = self._open[made] = None
        if len(own) > self.limits.connections_per_address and not self._is_trusted(made.address):
            _longest_idle(own, made).drop()
        if len(self._open) > self._most:
            _longest_idle(self._open, made).drop()

    def used(self, connection: PublicProtocol) -> None:
        """Record a request on the connection."""
        if connection in self._open:
            self._open.move_to_end(connection)
            self._by_address[connection.address].move_to_end(connection)

    def remove(self, connection: PublicProtocol) -> None:
        """Remove a closed connection."""
        self._open.pop(connection, None)
        own = self._by_address.get(connection.address)
        if own is not None:
            own.pop(connection, None)
            if not own:
                del self._by_address[connection.address]

    def _is_trusted(self, address: str) -> bool:
        try:
            return any(ipaddress.ip_network(address).subnet_of(each) for each in self._trusted)  # type: ignore[arg-type]
        except (ValueError, TypeError):
            return False


def _longest_idle(line: OrderedDict[PublicProtocol, None], made: PublicProtocol) -> PublicProtocol:
    """The first connection without a request under way; without one, the new connection."""
    return next((each for each in line if each.is_idle), made)


class PublicProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a deadline for headers, and a limit of connections per address.

    `Upgrade` is answered as HTTP/1.1, as RFC 9110 (7.8) allows; httptools would lose such a request's body.
    """

    def __init__(self, *args: Any, connections: Connections, **named: Any) -> None:
        super().__init__(*args, **named)
        self.conn: BoundedConnection = BoundedConnection(_HEADERS_BYTES)
        self._connections = connections
        self._deadline: asyncio.TimerHandle | None = None
        self.address = ""
        self._held: bytes | None = None
        """The start of the first request, on a connection beyond its address's rate; parsed once all of it is here."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = network_of(self.client[0] if self.client else "")
        self._held = None if self._connections.may_open(self.address) else b""
        self.app_state = {ABORT: transport.abort}
        self._connections.add(self)
        self._watch(is_due=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self._watch(is_due=False)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass data on in pieces, so that the search for a chunk covers few bytes."""
        if self._held is not None:
            data = self._held + data
            if len(data) < _PIECE_BYTES and not holds_request(data):
                self._held = data
                return
            self._held = None
        for start in range(0, len(data), _PIECE_BYTES):
            if not self.transport.is_closing():
                super().data_received(data[start : start + _PIECE_BYTES])

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._connections.used(self)
        self._watch(self._owes_more())

    def drop(self) -> None:
        """Close now, even during a request."""
        self.transport.abort()

    def _owes_more(self) -> bool:
        """Whether a request's headers are incomplete, or a body that the app no longer reads is still coming."""
        begun = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        unread = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        return begun or unread

    def _watch(self, is_due: bool) -> None:
        if is_due and self._deadline is None:
            seconds = self._connections.limits.header_seconds
            seconds = seconds if self._held is None else min(seconds, _FIRST_REQUEST_SECONDS)
            self._deadline = self.loop.call_later(seconds, self._too_slow)
        elif not is_due and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._held:
            rate = self._connections.limits.connections_per_second
            reason = (
                f"this address opens more than {rate:g} connections a second, and this one's request did not come whole"
            )
            self._refuse(408, "request_timeout", f"{reason} within {_FIRST_REQUEST_SECONDS:g} s; keep connections open")
        elif self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            seconds = self._connections.limits.header_seconds
            self._refuse(408, "request_timeout", f"the headers did not come within {seconds:g} s")
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        refusal = self.conn.refusal or _NO_HTTP
        self._refuse(refusal.status, refusal.code, refusal.detail)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Send a problem unless an answer has begun, and close: further data on this connection cannot be parsed."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        content = problem_bytes(status, code, detail)
        headers = [
            ("content-type", MEDIA_TYPE),
            ("content-length", str(len(content))),
            ("x-content-type-options", "nosniff"),
            ("connection", "close"),
        ]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False


def problem_bytes(status: int, code: str, detail: str) -> bytes:
    """The JSON body of a problem, for a request without an id yet."""
    import json
    from http import HTTPStatus

    return json.dumps(body(status, code, HTTPStatus(status).phrase, detail, "none")).encode()
