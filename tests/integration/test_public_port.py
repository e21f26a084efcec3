"""The public port on loopback with a small app behind it: what reaches the app, and what does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onbrand.api.http.front import Front, network_of
from onbrand.config import Limits, Settings
from onbrand.errors import ConfigurationError
from onbrand.serving.listener import Listener, listen, own_controls
from tests.integration.public_port import Behind, asked, opened, request, wire

# Addresses


@pytest.mark.parametrize(
    "path",
    ["/internal/v1/ticket:renew", "/internal", "/-/routes", "/-/healthz", "/engine-sd15", "/", "/v1x", "/%69nternal/v1",
     "/v1/../internal/v1", "/healthz/../-/routes"],
)  # fmt: skip
async def test_what_is_not_public_is_404_and_never_reaches_serve(path: str) -> None:
    async with opened() as (port, behind):
        status, headers, body = await asked(port, request(path, method="GET", body=b""))
    if behind.seen:  # dots are the app's to refuse: Serve looks at the path as it is
        assert [seen["path"] for seen in behind.seen] == [path]
        assert path.startswith(("/v1/", "/healthz/"))
        return
    assert (status, json.loads(body)["code"]) == (404, "not_found")
    assert headers["content-type"] == "application/problem+json"


async def test_serves_own_port_answers_the_inside_alone() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    behind = Behind()
    listener = Listener(behind, Settings(host="127.0.0.1", port=port))
    try:
        for path, status in (("/internal/v1/x", 200), ("/-/healthz", 200), ("/v1/me", 404), ("/", 404)):
            sent.clear()
            scope = {
                "type": "http",
                "path": path,
                "method": "GET",
                "headers": [],
                "client": ("::1", 1),
                "scheme": "http",
            }
            await listener(scope, receive, send)
            assert sent[0]["status"] == status, path
        assert (await asked(port, request("/v1/me")))[0] == 200
        assert (await asked(port, request("/internal/v1/x")))[0] == 404
    finally:
        listener.server.should_exit = True
        await listener.serving


def test_a_port_that_is_taken_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"203\.0\.113\.7"):
        listen("203.0.113.7", 8000)


# Headers that steer Serve


@pytest.mark.parametrize(
    "name",
    ["serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id", "X-Request-Timeout-Seconds",
     "X-Request-Disconnect-Disabled", "x_request_disconnect_disabled", "X-Session-Id", "x_session_id",
     "X-Serve-Router-Any", "traceparent", "tracestate"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["1", "\xff\xfe"])
async def test_no_header_of_a_client_steers_serve(name: str, value: str) -> None:
    async with opened() as (port, behind):
        status, _, _ = await asked(port, request("/v1/x", f"{name}: {value}"))
    assert status == 200
    assert name.lower() not in {header for header, _ in behind.seen[0]["headers"]}


def test_every_header_that_the_installed_serve_knows_is_dropped() -> None:
    from ray.serve._private import constants

    front = Front(Behind(), Limits(), controls=own_controls())
    known = [value for name, value in vars(constants).items() if name.startswith("SERVE_") and "HEADER" in name]
    assert len(known) >= 4, "Serve's constants have other names now: look again"
    for header in {*own_controls(), *known} - {"x-request-id"}:
        assert front._is_control(header.encode()), header


@pytest.mark.parametrize("given", ["\xff\xfe-not-utf-8", "a b", "x" * 65, "<script>"])
async def test_a_request_id_that_is_not_plain_is_replaced(given: str) -> None:
    async with opened() as (port, behind):
        await asked(port, request("/v1/x", f"x-request-id: {given}"))
        await asked(port, request("/v1/x", "x-request-id: 0123-abcd-4567"))
    odd, plain = ([value for name, value in seen["headers"] if name == "x-request-id"] for seen in behind.seen)
    assert [len(each) for each in odd] == [32]
    assert plain == ["0123-abcd-4567"]


async def test_whose_proxy_is_not_trusted_cannot_say_who_calls() -> None:
    asking = request("/v1/x", "x-forwarded-for: 198.51.100.7", "x-forwarded-proto: https")
    async with opened() as (port, behind):
        await asked(port, asking)
    assert (behind.seen[0]["client"], behind.seen[0]["scheme"]) == ("127.0.0.1", "http")
    async with opened(trusted_proxies=("127.0.0.0/8",)) as (port, behind):
        await asked(port, asking)
    assert (behind.seen[0]["client"], behind.seen[0]["scheme"]) == ("198.51.100.7", "https")


def test_an_ipv6_host_cannot_have_as_many_addresses_as_it_likes() -> None:
    assert network_of("2001:db8:1:2:aaaa::1") == network_of("2001:db8:1:2:bbbb::2")
    assert network_of("2001:db8:1:2::1") != network_of("2001:db8:1:3::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1") == "192.0.2.1"


# What Serve says by itself


@pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (408, "request_timeout"), (500, "internal_error")])
async def test_words_of_serve_are_said_in_ours(status: int, code: str) -> None:
    async def serves_own(send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"Path not found. Ping http://.../-/routes"})

    async with opened() as (port, behind):
        behind.answer = serves_own
        answered, _, body = await asked(port, request())
    assert (answered, json.loads(body)["code"]) == (status, code)
    assert b"routes" not in body


async def test_an_app_that_breaks_is_503() -> None:
    async def broken(send: Any) -> None:
        raise RuntimeError("canary-of-a-client")

    async with opened() as (port, behind):
        behind.answer = broken
        status, _, body = await asked(port, request())
    assert (status, json.loads(body)["code"]) == (503, "unavailable")
    assert b"canary" not in body


# HTTP/1.1, whatever a client would like to speak


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0"])
async def test_a_body_after_an_upgrade_is_not_lost(upgrade: str) -> None:
    """The default requests of Java's HttpClient and Ktor, with the next request on the same connection."""
    asking = request(
        "/v1/x",
        "connection: Upgrade, HTTP2-Settings",
        f"upgrade: {upgrade}",
        "http2-settings: AAEAAEAA",
        body=b"a" * 999,
    )
    async with opened() as (port, _), wire(port) as line:
        for _ in range(2):
            await line.say(asking)
            status, _, body = await line.hear()
            assert (status, json.loads(body)["num_bytes"]) == (200, 999)


@pytest.mark.parametrize(
    "data",
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n",
     b"GET /v1/x HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 70_000,
     b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
     b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"],
)  # fmt: skip
async def test_what_is_no_http_is_refused_in_our_words(data: bytes) -> None:
    async with opened() as (port, behind), wire(port) as line:
        await line.say(data)
        if data.startswith(b"\x16"):
            await line.say(b"\r\n\r\n")
        status, headers, body = await line.hear()
        assert await line.is_closed()
    expected = 404 if data.startswith(b"PRI") else 400  # h11 takes it for a request of an address that is not there
    assert (status, json.loads(body)["status"]) == (expected, expected)
    assert headers["content-type"] == "application/problem+json"
    assert behind.seen == []
