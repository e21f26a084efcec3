"""The public port limits headers and chunks before they cost memory or time."""

from __future__ import annotations

import json
from contextlib import suppress

import h11
import pytest

from onbrand.serving.http_framing import BYTES_PER_CHUNK, FREE_CHUNKS, HEADERS_MAX, BoundedConnection
from tests.integration.public_port import Wire, opened, request, until, wire

CHUNKED = b"POST /v1/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunks(num: int, size: int = 1) -> bytes:
    return (b"%x\r\n" % size + b"a" * size + b"\r\n") * num


async def heard(line: Wire) -> tuple[int, str]:
    status, _, body = await line.hear()
    return status, json.loads(body).get("code", "")


# Headers


def with_headers(num: int, line: bytes = b"a:\r\n") -> bytes:
    return b"GET /v1/x HTTP/1.1\r\nhost: a\r\n" + line * (num - 1) + b"\r\n"


async def test_a_hundred_headers_are_taken_and_more_are_431() -> None:
    async with opened() as (port, behind), wire(port) as line:
        await line.say(with_headers(HEADERS_MAX))
        assert await heard(line) == (200, "")
        await line.say(with_headers(HEADERS_MAX + 1))
        assert await heard(line) == (431, "too_many_headers")
        assert await line.is_closed()
    assert len(behind.seen) == 1


@pytest.mark.parametrize("line", [b"a:\r\n", b"a:\n", b" b\r\n"], ids=["headers", "line feeds", "folded"])
@pytest.mark.parametrize("end", [b"\r\n", b""], ids=["whole", "begun"])
async def test_lines_are_counted_however_they_end_and_before_all_are_here(line: bytes, end: bytes) -> None:
    async with opened() as (port, behind), wire(port) as said:
        await said.say(with_headers(5_000, line)[:-2] + end)
        assert await heard(said) == (431, "too_many_headers")
        assert await said.is_closed()
    assert behind.seen == []


async def test_a_request_behind_another_is_counted_alike() -> None:
    async with opened() as (port, behind), wire(port) as line:
        await line.say(with_headers(2) + request(body=b"a\n" * 5_000) + with_headers(5_000))
        assert [await heard(line) for _ in range(3)] == [(200, ""), (200, ""), (431, "too_many_headers")]
    assert len(behind.seen) == 2


# Chunks


@pytest.mark.parametrize(
    "body",
    [chunks(FREE_CHUNKS), chunks(2_000, BYTES_PER_CHUNK), chunks(40, 30_000), chunks(1, 2**20) + chunks(1_000, 3)],
    ids=["few", "many", "large", "large and small"],
)
async def test_honest_chunks_are_taken(body: bytes) -> None:
    async with opened() as (port, _), wire(port) as line:
        for _ in range(2):
            await line.say(CHUNKED + body + END)
            assert (await line.hear())[0] == 200


@pytest.mark.parametrize("size", [1, 16])
async def test_a_body_whose_framing_outweighs_it_ends_the_connection(size: int) -> None:
    async with opened() as (port, behind), wire(port) as line:
        await line.say(CHUNKED + chunks(4 * FREE_CHUNKS, size))
        assert await heard(line) == (400, "bad_request")
        assert await line.is_closed()
        await until(lambda: behind.num_inside == 0)
    assert behind.seen == []


async def test_it_is_ended_also_where_the_app_reads_it_already() -> None:
    async with opened() as (port, behind), wire(port) as line:
        await line.say(CHUNKED + chunks(1, 20_000))
        await until(lambda: behind.num_inside == 1)
        await line.say(chunks(FREE_CHUNKS + 100))
        assert await heard(line) == (400, "bad_request")
        await until(lambda: behind.num_inside == 0)
        assert await line.is_closed()
    assert behind.seen == []


async def test_it_is_ended_also_where_nobody_reads_it_any_more() -> None:
    async with opened() as (port, _), wire(port) as line:
        await line.say(CHUNKED.replace(b"/v1/x", b"/v1/early") + chunks(1, 20_000))
        assert (await line.hear())[0] == 200
        await line.say(chunks(FREE_CHUNKS + 100))
        assert await line.is_closed()


@pytest.mark.parametrize("size", [1, 100, BYTES_PER_CHUNK // 2, BYTES_PER_CHUNK - 1])
@pytest.mark.parametrize("is_split", [False, True], ids=["at once", "a line at a time"])
def test_no_more_is_looked_at_than_is_taken(size: int, is_split: bool) -> None:
    connection, num_chunks = BoundedConnection(2**16), 0
    connection.receive_data(CHUNKED)
    connection.next_event()
    taken = FREE_CHUNKS * BYTES_PER_CHUNK // (BYTES_PER_CHUNK - size)
    while connection.refusal is None:
        for piece in (b"%x\r\n" % size, b"a" * size + b"\r\n") if is_split else [chunks(1, size)]:
            connection.receive_data(piece)
            with suppress(h11.RemoteProtocolError):
                while connection.next_event() is not h11.NEED_DATA:
                    pass
        num_chunks += 1
        assert num_chunks <= taken + 1
    assert num_chunks >= taken - 1


def test_a_chunk_in_many_pieces_is_one() -> None:
    connection = BoundedConnection(2**16)
    connection.receive_data(CHUNKED + b"400\r\n")
    for _ in range(1024):
        connection.next_event()
        connection.receive_data(b"a")
    connection.receive_data(b"\r\n" + END)
    while connection.their_state is not h11.DONE:
        assert connection.next_event() is not h11.NEED_DATA


@pytest.mark.parametrize("name", [b"a" * 300 + b"\r\n", b"a" * 300], ids=["whole", "begun"])
async def test_a_chunks_extension_is_short(name: bytes) -> None:
    async with opened() as (port, behind), wire(port) as line:
        await line.say(CHUNKED + b"1;name=value\r\na\r\n" + END)
        assert (await line.hear())[0] == 200
        await line.say(CHUNKED + chunks(3) + b"1;" + name)
        assert await heard(line) == (400, "bad_request")
    assert len(behind.seen) == 1


@pytest.mark.parametrize("last", [b"0\r\n", b"000;a=b\r\n"])
@pytest.mark.parametrize("is_split", [False, True])
async def test_trailers_are_counted_as_headers(last: bytes, is_split: bool) -> None:
    async with opened() as (port, _), wire(port) as line:
        await line.say(CHUNKED + chunks(2) + last + b"a: b\r\n" * 99 + b"\r\n")
        assert (await line.hear())[0] == 200
        await line.say(CHUNKED + chunks(2) + last)
        if is_split:
            await line.say(b"a: b\r\n")
        await line.say(b"a:\r\n" * 3_000 + b"\r\n")
        assert await heard(line) == (431, "too_many_headers")


@pytest.mark.parametrize(("first", "second"), [(b"Content-Length: 4", b"Transfer-Encoding: chunked")])
@pytest.mark.parametrize("is_turned", [False, True])
async def test_a_request_has_one_length(first: bytes, second: bytes, is_turned: bool) -> None:
    headers = (second, first) if is_turned else (first, second)
    async with opened() as (port, behind), wire(port) as line:
        smuggled = b"0\r\n\r\nGET /internal HTTP/1.1\r\nHost: a\r\n\r\n"
        await line.say(b"POST /v1/brands HTTP/1.1\r\nHost: a\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + smuggled)
        assert await heard(line) == (400, "bad_request")
    assert not behind.seen


@pytest.mark.parametrize("num_at_once", [1, 2, 3, 7])
def test_it_is_the_same_in_whatever_pieces_it_comes(num_at_once: int) -> None:
    connection = BoundedConnection(2**16)
    data = CHUNKED + chunks(3, 5) + b"0\r\na: b\r\n\r\n"
    content, trailers = b"", []
    for start in range(0, len(data), num_at_once):
        connection.receive_data(data[start : start + num_at_once])
        while (event := connection.next_event()) is not h11.NEED_DATA:
            content += bytes(event.data) if isinstance(event, h11.Data) else b""
            if isinstance(event, h11.EndOfMessage):
                trailers = list(event.headers)
                break
    assert (content, trailers) == (b"a" * 15, [(b"a", b"b")])
