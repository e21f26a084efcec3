"""The public port with slow senders, slow readers and many connections: they delay only each other."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from onbrand.serving import listener
from tests.integration.public_port import SAFE, Wire, asked, lines, opened, request, until, wire

QUICK = {"header_seconds": 0.5, "body_seconds": 0.5}


async def test_headers_that_do_not_come_end_with_408() -> None:
    async with opened(QUICK) as (port, _), wire(port) as line:
        await line.say(b"POST /v1/x HTTP/1.1\r\nhost: a\r\n")
        status, _, body = await line.hear()
        assert (status, json.loads(body)["code"]) == (408, "request_timeout")
        assert await line.is_closed()


async def test_headers_that_drip_end_too_also_on_a_used_connection() -> None:
    async with opened(QUICK) as (port, _), wire(port) as line:
        await line.say(request())
        assert (await line.hear())[0] == 200
        dripping = asyncio.create_task(drip(line, b"POST /v1/x HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 500))
        assert (await line.hear())[0] == 408
        dripping.cancel()


async def drip(line: Wire, data: bytes) -> None:
    for byte in data:
        await line.say(bytes([byte]))
        await asyncio.sleep(0.05)


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with opened(QUICK) as (port, _), wire(port) as line:
        assert await line.is_closed()


async def test_a_body_that_does_not_come_is_408_and_nobody_was_asked() -> None:
    async with opened(QUICK) as (port, behind), wire(port) as line:
        await line.say(b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
        status, headers, body = await line.hear()
        assert (status, json.loads(body)["param"], headers["connection"]) == (408, "body", "close")
    assert (behind.seen, behind.num_inside) == ([], 0)


async def test_a_large_body_that_stops_coming_ends_the_request_inside() -> None:
    async with opened(QUICK | {"body_bytes_per_second": 2**20}) as (port, behind), wire(port) as line:
        await line.say(b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n" + b"a" * 40_000)
        assert (await line.hear())[0] == 408
        assert behind.num_inside == 0


async def test_a_body_that_nobody_reads_any_more_is_passed_over_or_ends_the_connection() -> None:
    async with opened(QUICK) as (port, _), wire(port) as line:
        await line.say(request("/v1/early", body=b"a" * 300_000))
        assert (await line.hear())[0] == 200
        await line.say(request("/v1/x"))
        assert (await line.hear())[0] == 200
        await line.say(b"POST /v1/early HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n" + b"a" * 30_000)
        assert (await line.hear())[0] == 200
        dripping = asyncio.create_task(drip(line, b"a" * 500))
        assert await line.is_closed()
        dripping.cancel()


async def test_a_body_that_comes_at_the_least_rate_is_taken() -> None:
    async with opened({"body_seconds": 0.2, "body_bytes_per_second": 1000}) as (port, _), wire(port) as line:
        await line.say(b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 3000\r\n\r\n")
        for _ in range(6):
            await line.say(b"a" * 500)
            await asyncio.sleep(0.1)
        status, _, body = await line.hear()
    assert (status, json.loads(body)["num_bytes"]) == (200, 3000)


async def test_many_slow_bodies_of_one_address_end_one_another_and_nobody_else() -> None:
    limits = {"open_bodies_per_address": 8, "connections_per_address": 100}
    async with opened(limits) as (port, behind):
        async with lines(port, 40, b"POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{") as slow:
            others = await asyncio.gather(asked(port, request()), asked(port, request(), "127.0.0.2"))
            answers = await asyncio.gather(*(line.hear() for line in slow[:32]))
        assert {status for status, _, _ in answers} == {408}
        assert [status for status, _, _ in others] == [200, 200]
    assert len(behind.seen) == 2


async def test_connections_of_one_address_beyond_its_number_cost_its_idle_ones() -> None:
    async with opened({"connections_per_address": 10}) as (port, _):
        async with lines(port, 30, b"POST /v1/x HTTP/1.1\r\nhost: a\r\n") as idle:
            assert (await asked(port, request()))[0] == 200
            assert await idle[0].is_closed()


async def test_requests_of_one_address_beyond_its_number_are_429_and_another_address_is_served() -> None:
    async with opened({"requests_per_address": 4}) as (port, behind):
        async with lines(port, 4, request("/v1/slow")) as waiting:
            await until(lambda: behind.num_inside == 4)
            status, headers, body = await asked(port, request())
            assert (status, json.loads(body)["code"], headers["retry-after"]) == (429, "too_many_requests", "1")
            assert (await asked(port, request(), "127.0.0.2"))[0] == 200
            behind.let_go.set()
            assert {(await line.hear())[0] for line in waiting} == {200}
        assert (await asked(port, request()))[0] == 200


async def test_an_address_with_many_requests_has_half_of_the_turns_and_another_is_served() -> None:
    async with opened({"turns": 4, "turn_seconds": 60}) as (port, behind):
        async with lines(port, 20, request("/v1/slow")) as waiting:
            await until(lambda: behind.num_inside == 2)
            assert (await asked(port, request(), "127.0.0.2"))[0] == 200
            assert behind.num_inside == 2
            behind.let_go.set()
            assert {(await line.hear())[0] for line in waiting} == {200}


async def test_a_request_that_waits_gives_its_turn_to_the_next() -> None:
    async with opened({"turns": 2, "turn_seconds": 0.02}) as (port, behind), lines(port, 20, request("/v1/slow")):
        await until(lambda: behind.num_inside == 20)


async def test_an_answer_that_has_begun_holds_no_turn() -> None:
    async def begun(send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": SAFE})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await behind.let_go.wait()
        await send({"type": "http.response.body", "body": b"a"})

    async with opened({"turns": 2, "turn_seconds": 60}) as (port, behind):
        behind.answer = begun
        async with lines(port, 20, request()):
            await until(lambda: behind.num_inside == 20)


HASTY = {"connections_burst": 2, "connections_per_second": 0.01}


async def test_a_connection_beyond_its_addresss_rate_is_heard_once_its_request_is_whole() -> None:
    async with opened(HASTY) as (port, behind):
        for _ in range(3):
            assert (await asked(port, request()))[0] == 200
        async with wire(port) as line:
            await line.say(request(body=b"abcd")[:-1])
            await asyncio.sleep(0.2)
            assert len(behind.seen) == 3
            await line.say(b"d")
            assert (await line.hear())[0] == 200
        async with wire(port) as line:
            await line.say(request(body=b"a" * 20_000)[:-1])  # more than is held
            await line.say(b"a")
            assert (await line.hear())[0] == 200
        async with wire(port) as line:
            await line.say(b"POST /v1/x HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n")
            await line.say(b"0\r\n\r\n")
            assert (await line.hear())[0] == 200
        async with wire(port) as line:
            await line.say(request("/v1/x", "Expect: 100-continue", body=b"abc")[:-3])
            told = await asyncio.wait_for(line.reader.readuntil(b"\r\n\r\n"), 5)
            assert told.startswith(b"HTTP/1.1 100 ")
            await line.say(b"abc")
            assert (await line.hear())[0] == 200
    assert [seen["num_bytes"] for seen in behind.seen] == [2, 2, 2, 4, 20_000, 4, 3]


async def test_a_slow_connection_beyond_its_addresss_rate_ends_and_a_trusted_proxys_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "_FIRST_REQUEST_SECONDS", 0.2)
    async with opened(HASTY) as (port, behind):
        for _ in range(2):
            assert (await asked(port, request()))[0] == 200
        async with wire(port) as line:
            await line.say(request()[:-1])
            status, _, body = await line.hear()
            assert (status, json.loads(body)["code"]) == (408, "request_timeout")
            assert "connections a second" in json.loads(body)["detail"]
            assert await line.is_closed()
        async with wire(port) as line:
            assert await line.is_closed()
    assert len(behind.seen) == 2
    async with opened(HASTY, trusted_proxies=("127.0.0.1",)) as (port, _), lines(port, 4, request()[:-1]) as slow:
        await asyncio.sleep(0.4)
        for line in slow:
            await line.say(b"}")
            assert (await line.hear())[0] == 200


async def test_a_body_beyond_the_limit_of_its_address_never_reaches_serve() -> None:
    async with opened() as (port, behind), wire(port) as line:
        await line.say(b"POST /v1/brands/acme/training-jobs HTTP/1.1\r\nhost: a\r\ncontent-length: 1048577\r\n\r\n{")
        status, headers, body = await line.hear()
        assert (status, json.loads(body)["code"], headers["connection"]) == (413, "too_large", "close")
        assert await line.is_closed()
    async with opened() as (port, behind):
        for _ in range(20):  # the answer is read after the body was sent
            answer = await asked(port, request("/v1/brands/acme/training-jobs", body=b"a" * 3 * 2**20))
            assert answer[0] == 413
    assert behind.seen == []


async def test_requests_beyond_the_number_of_all_are_503() -> None:
    async with opened({"requests": 2}) as (port, behind):
        async with lines(port, 2, request("/v1/slow")):
            await until(lambda: behind.num_inside == 2)
            status, headers, _ = await asked(port, request(), "127.0.0.2")
    assert (status, headers["retry-after"]) == (503, "1")


async def test_a_reader_that_does_not_read_is_dropped() -> None:
    async def endless(send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": SAFE})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"a" * 2**20, "more_body": True})

    async with opened({"send_seconds": 0.3}) as (port, behind), wire(port) as line:
        behind.answer = endless
        await line.say(request())
        await until(lambda: len(behind.seen) == 1)
        await until(lambda: behind.num_inside == 0)


async def test_a_refusal_can_be_read_by_a_page_that_may_call() -> None:
    async with opened({"requests": 0}, cors_origins=("https://app.example.com",)) as (port, _):
        _, headers, _ = await asked(port, request("/v1/x", "origin: https://app.example.com"))
        _, others, _ = await asked(port, request("/v1/x", "origin: https://evil.example.com"))
    assert headers["access-control-allow-origin"] == "https://app.example.com"
    assert "access-control-allow-origin" not in others


async def test_a_refused_preflight_is_passed_on_and_serves_own_refusal_is_not() -> None:
    async def refused(send: Any) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"Disallowed CORS headers"})

    asks = ("origin: https://app.example.com", "access-control-request-method: POST")
    async with opened({}, cors_origins=("https://app.example.com",)) as (port, behind):
        behind.answer = refused
        preflight, _, said = await asked(port, request("/v1/x", *asks, method="OPTIONS"))
        other, _, _ = await asked(port, request("/v1/x", *asks))
    assert (preflight, said) == (400, b"Disallowed CORS headers")
    assert other == 500


async def test_a_body_says_which_limit_ended_it() -> None:
    async with opened({"open_bodies_per_address": 10, "open_bodies": 1}) as (port, _), wire(port) as first:
        await first.say(request(body=b"abcd")[:-1])
        await asyncio.sleep(0.2)
        async with wire(port) as second:
            await second.say(request(body=b"abcd")[:-1])
            status, _, body = await first.hear()
    assert status == 408
    assert b"too many bodies are on their way" in body
