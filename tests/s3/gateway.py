"""A loopback proxy in front of the real S3 that behaves like other stores: no POST forms, unsigned requests refused.

`Manners` selects the behaviour. Other requests pass unchanged, with their signatures (which name the proxy).
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit


@dataclass
class Manners:
    """The behaviour of the store.

    Args:
        takes_forms: accept a POST with a form; otherwise respond 501, as Cloudflare's R2 does.
        is_strict: respond 403 to a presigned request with an unsigned ``x-amz-*`` header, as AWS does.
        refuses: words; respond 501 to a request whose method, address or headers contain one.
        ignores: words; respond 200 to a request that contains one, and do nothing.
        drops: headers to remove before the S3 gets the request.
    """

    takes_forms: bool = False
    is_strict: bool = True
    refuses: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    seen: list[str] = field(default_factory=list)


@contextmanager
def gateway(endpoint: str, manners: Manners) -> Iterator[str]:
    """The proxy's address, while it runs."""
    address = urlsplit(endpoint).netloc

    class Handler(_Handler):
        target, how = address, manners

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    target: str
    how: Manners
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        said = f"{self.command} {self.path} {' '.join(self.headers.keys()).lower()}"
        self.how.seen.append(said)
        is_form = self.headers.get("content-type", "").startswith("multipart/form-data")
        if (is_form and not self.how.takes_forms) or any(word in said for word in self.how.refuses):
            self._say(501, b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>")
        elif self.how.is_strict and self._has_unsigned_orders():
            self._say(403, b"<Error><Code>AccessDenied</Code><Message>not signed</Message></Error>")
        elif any(word in said for word in self.how.ignores):
            self._say(200, b"")
        else:
            self._pass_on(body)

    def _has_unsigned_orders(self) -> bool:
        signed = parse_qs(urlsplit(self.path).query).get("X-Amz-SignedHeaders")
        orders = {name.lower() for name in self.headers if name.lower().startswith("x-amz-")}
        return signed is not None and not orders <= set(signed[0].split(";"))

    def _pass_on(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(self.target, timeout=20)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect", *self.how.drops):
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OWN]
        self._say(answer.status, answer.read(), headers, answer.getheader("content-length"))
        connection.close()

    def _say(
        self, status: int, data: bytes, headers: list[tuple[str, str]] | None = None, length: str | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers or ():
            self.send_header(name, value)
        has_body = self.command != "HEAD" and status != 204
        if status != 204:
            self.send_header("content-length", str(len(data)) if has_body else length or "0")
        self.end_headers()
        if has_body:
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def log_message(self, format: str, *given: object) -> None:
        """Log nothing."""


_OWN = ("connection", "transfer-encoding", "content-length", "keep-alive")
