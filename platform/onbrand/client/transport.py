"""Sends HTTP requests with retries and idempotency keys, and raises errors. `resources` defines the requests."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from onbrand.client.errors import ConnectionFailed, kind_for
from onbrand.client.sendable import must_be_header, must_be_text, must_be_token, opened

_RETRIED_STATUSES = frozenset({429, 502, 503, 504})
_REPEATABLE = frozenset({"GET", "HEAD", "POST", "PATCH"})
_LONGEST_DELAY = 8.0


class Transport:
    """Sends requests to one platform with one token.

    Args:
        token: a bearer token, or None before logging in.
        max_retries: how often a request is sent again after a broken connection, 429, 502, 503 or 504.
        transport: an `httpx` transport, for tests.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None,
        *,
        timeout: float,
        max_retries: int,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.token = token
        self._max_retries = max_retries
        self._http = opened(base_url, timeout=timeout, transport=transport)

    def close(self) -> None:
        """Close the HTTP client."""
        self._http.close()

    def json(self, method: str, path: str, **parts: Any) -> Any:
        """Send a request and return the parsed JSON (None without a body). Raises RequestRefused, ConnectionFailed."""
        answer = self.send(method, path, **parts)
        return answer.json() if answer.content else None

    def send(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        files: Any = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        """Send with retries. A POST has an Idempotency-Key, so that it is executed only once."""
        sent = dict(headers or {})
        if method == "POST":
            sent["idempotency-key"] = idempotency_key or str(uuid.uuid4())
        for part in (json, params, data):
            must_be_text(part)
        request = self._http.build_request(
            method,
            path,
            json=json,
            params={k: v for k, v in (params or {}).items() if v is not None},
            data=data,
            files=files,
            headers=self._with_token(sent),
            timeout=httpx.USE_CLIENT_DEFAULT if timeout is None else timeout,
        )
        request.read()  # the same bytes at every attempt, multipart boundary included
        return _must_be_good(self._send_with_retries(request))

    def download(self, url: str) -> Iterator[bytes]:
        """The bytes behind a signed link. No token is sent: the link needs none and may point to another host."""
        with self._streamed(url, {}) as answer:
            yield from answer.iter_bytes(2**16)

    def content(self, path: str) -> Iterator[bytes]:
        """The bytes of a file that the API itself returns."""
        with self._streamed(path, self._with_token({})) as answer:
            yield from answer.iter_bytes(2**16)

    def send_file(
        self, method: str, url: str, data: bytes, *, headers: Mapping[str, str], fields: Mapping[str, str]
    ) -> None:
        """Send a file to a signed link. No token is sent, and no retry is made, since a link works only once."""
        body: dict[str, Any] = (
            {"data": dict(fields), "files": {"file": ("file", data)}} if fields else {"content": data}
        )
        try:
            answer = self._http.request(method, url, headers=dict(headers), timeout=300.0, **body)
        except httpx.TransportError as problem:
            raise self._unreachable(problem) from None
        _must_be_good(answer)

    @contextmanager
    def lines(self, path: str, headers: Mapping[str, str]) -> Iterator[Iterator[str]]:
        """The lines of a streamed response (Server-Sent Events)."""
        with self._streamed(path, self._with_token(headers)) as answer:
            yield answer.iter_lines()

    @contextmanager
    def _streamed(self, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        try:
            with self._http.stream("GET", url, headers=dict(headers)) as answer:
                if not answer.is_success:
                    answer.read()
                yield _must_be_good(answer)
        except httpx.TransportError as problem:
            raise self._unreachable(problem) from None

    def _with_token(self, headers: Mapping[str, str]) -> dict[str, str]:
        known = {name: must_be_header(name, value) for name, value in headers.items()}
        return known | ({"authorization": f"Bearer {must_be_token(self.token)}"} if self.token else {})

    def _send_with_retries(self, request: httpx.Request) -> httpx.Response:
        for attempt in range(self._max_retries + 1):
            last = attempt == self._max_retries
            try:
                answer = self._http.send(request)
            except httpx.TransportError as problem:
                if last or not (request.method in _REPEATABLE or isinstance(problem, httpx.ConnectError)):
                    raise self._unreachable(problem) from None
                time.sleep(_delay(attempt, None))
                continue
            if last or answer.status_code not in _RETRIED_STATUSES or request.method not in _REPEATABLE:
                return answer
            time.sleep(_delay(attempt, _retry_after(answer)))
        raise AssertionError("unreachable")

    def _unreachable(self, problem: Exception) -> ConnectionFailed:
        address = self._http.base_url.copy_with(userinfo=b"")  # a password may stand in it
        return ConnectionFailed(
            f"{address} does not answer ({type(problem).__name__}); is it up, and the address right?"
        )


def _delay(attempt: int, asked: float | None) -> float:
    grown: float = min(_LONGEST_DELAY, 0.25 * 2**attempt)
    return asked if asked is not None else grown * random.uniform(0.7, 1.3)


def _retry_after(answer: httpx.Response) -> float | None:
    try:
        return min(30.0, float(answer.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _must_be_good(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        body = answer.json()
        body = body if isinstance(body, dict) else {}
    except ValueError:
        body = {}
    raise kind_for(answer.status_code)(
        body.get("detail") or body.get("title") or f"the platform answered {answer.status_code}",
        answer.status_code,
        body.get("code"),
        body.get("param"),
        body.get("request_id"),
        _retry_after(answer),
    )
