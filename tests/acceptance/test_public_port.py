"""The public port of a running platform: unknown paths, and that no client can impair the others."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
from collections.abc import Iterator

import httpx
import pytest

from tools.harness.platform_process import Running

NUM_SLOW = 1_050
SLOW = b"POST /v1/tokens HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"


@pytest.mark.parametrize("path", ["/internal/healthz", "/internal/v1/ticket:renew", "/-/routes", "/-/healthz"])
def test_what_is_for_the_inside_is_not_at_the_public_port(platform: Running, path: str) -> None:
    answer = httpx.get(f"{platform.url}{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_inside_is_at_its_own_port_and_the_api_is_not(platform: Running) -> None:
    inside = platform.internal_url.removesuffix("/internal")
    assert httpx.get(f"{inside}/-/healthz").status_code == 200
    assert httpx.get(f"{platform.internal_url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{inside}/v1/me").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [{"X-Request-Timeout-Seconds": "0.000001"}, {"serve_multiplexed_model_id": b"\xff\xfe"}, {"X-Session-Id": b"\xff"},
     {"traceparent": b"\xff"}, {"X-Request-Id": b"\xff\xfe"}],
    ids=str,
)  # fmt: skip
def test_no_header_steers_serve(platform: Running, headers: dict[str, str | bytes]) -> None:
    answer = httpx.get(f"{platform.url}/v1/me", headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_a_body_after_an_upgrade_to_http2_is_read(platform: Running) -> None:
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAAB"}
    answer = httpx.post(
        f"{platform.url}/v1/tokens", json={"email": "nobody@example.com", "password": "wrong"}, headers=headers
    )
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


def test_head_is_answered_as_get_is(platform: Running) -> None:
    for path in ("/healthz", "/openapi.json", "/v1/me"):
        got, head = httpx.get(f"{platform.url}{path}"), httpx.head(f"{platform.url}{path}")
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-length"] == str(len(got.content)) or got.status_code == 401


@contextlib.contextmanager
def many_slow(port: int) -> Iterator[list[socket.socket]]:
    """Connections that have each sent one byte of a body."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(NUM_SLOW):
            made.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)))
            with contextlib.suppress(ConnectionError):
                made[-1].sendall(SLOW)
        yield made
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def test_a_thousand_slow_bodies_stop_nobody(platform: Running) -> None:
    with many_slow(platform.port) as slow:
        for _ in range(20):
            answer = httpx.get(f"{platform.url}/v1/me", timeout=10)
            assert answer.status_code == 401
        asked = httpx.post(f"{platform.url}/v1/tokens", json={"email": "a@example.com", "password": "no"}, timeout=10)
        assert asked.status_code == 401
        assert is_answered(slow[50])  # 32 bodies of its address came after it
    assert httpx.get(f"{platform.url}/healthz", timeout=10).json() == {"status": "ok"}


def is_answered(connection: socket.socket) -> bool:
    """Whether the platform's 408 came and the connection was closed."""
    connection.settimeout(5)
    heard = b""
    while piece := connection.recv(65536):
        heard += piece
    head, _, body = heard.partition(b"\r\n\r\n")
    return b" 408 " in head and json.loads(body)["code"] == "request_timeout"
