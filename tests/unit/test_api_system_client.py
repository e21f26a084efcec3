"""The workers' client waits for a restarting platform, and raises the errors that the platform raised."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from onbrand import errors
from onbrand.api import problems
from onbrand.internal.async_client import AsyncSystemClient
from onbrand.internal.client import SystemClient
from tools.harness.httpx_connections import HttpxConnections


def answer_of(error: errors.OnbrandError) -> httpx.Response:
    content = problems.body(error.status, error.code, error.title, error.message, "id", error.param)
    return httpx.Response(error.status, json=content, headers={"content-type": problems.MEDIA_TYPE})


def client_of(handler: Callable[[httpx.Request], httpx.Response], patience: float = 5.0) -> SystemClient:
    return SystemClient("http://test/internal", "ticket", patience=patience, transport=httpx.MockTransport(handler))


def in_turn(
    *answers: httpx.Response | Exception,
) -> tuple[list[httpx.Request], Callable[[httpx.Request], httpx.Response]]:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        answer = answers[len(seen)]
        seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return seen, handler


@pytest.mark.parametrize(
    "first",
    [
        httpx.Response(503, text="starting"),
        httpx.Response(404, text="Path '/internal' not found"),
        answer_of(errors.Unavailable("busy")),
        httpx.ConnectError("refused"),
    ],
    ids=["proxy 503", "proxy 404", "ours", "refused"],
)
def test_a_restarting_platform_costs_a_wait_and_nothing_else(first: httpx.Response | Exception) -> None:
    seen, handler = in_turn(first, httpx.Response(200, json={"cancel_requested": True}))
    with client_of(handler) as client:
        assert client.report(10, {"loss": 0.5}).cancel_requested
    assert len(seen) == 2
    assert seen[0].content == seen[1].content


def test_patience_ends_with_unavailable() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with client_of(handler, patience=0.1) as client, pytest.raises(errors.Unavailable):
        client.spec()


@pytest.mark.parametrize(
    "error",
    [errors.NotFound("there is no such job"), errors.Conflict("ended"), errors.InvalidInput("bad", param="rank"),
     errors.TicketRefused("expired"), errors.AdapterRefused("nan")],
    ids=lambda error: error.code,
)  # fmt: skip
def test_the_platforms_error_is_raised_again(error: errors.OnbrandError) -> None:
    _, handler = in_turn(answer_of(error))
    with client_of(handler) as client, pytest.raises(type(error)) as caught:
        client.publish(b"bytes", {"rank": 8})
    assert (caught.value.message, caught.value.param) == (error.message, error.param)


def test_a_renewed_ticket_is_used_from_then_on() -> None:
    seen, handler = in_turn(httpx.Response(200, json={"ticket": "newer"}), httpx.Response(204))
    with client_of(handler) as client:
        assert client.renew() == "newer"
        client.canceled()
    assert seen[1].headers["authorization"] == "Bearer newer"
    assert seen[1].url.path == "/internal/v1/training/canceled"


def test_what_it_prints_holds_no_ticket() -> None:
    assert "ticket" not in repr(client_of(lambda request: httpx.Response(200)))


async def test_the_async_client_sends_the_same() -> None:
    seen, handler = in_turn(
        httpx.ReadError("cut"), httpx.Response(201, json={"id": "x", "index": 1, "completed": False})
    )
    async with AsyncSystemClient(
        "http://test", "ticket", http=HttpxConnections(httpx.MockTransport(handler))
    ) as client:
        stored = await client.add_image(1, 7, b"png", "image/png", 64, 64, {"engine": "1"})
    assert stored.index == 1
    assert seen[0].url.path == "/v1/generation/images"
    assert json.dumps({"engine": "1"}).encode() in seen[1].content
