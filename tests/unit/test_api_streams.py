"""Event streams are counted by caller and by brand, and released at any kind of end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from onbrand.api import events
from onbrand.api.http.stream_limits import OpenStreams
from onbrand.brand import Scope
from onbrand.config import Limits
from onbrand.db.changes import Changes
from onbrand.errors import TooManyRequests

FEW = Limits(streams_per_caller=2, streams_per_brand=3)


@pytest.fixture
def streams() -> OpenStreams:
    return OpenStreams(FEW)


def test_a_caller_has_so_many_over_all_brands(streams: OpenStreams) -> None:
    streams.open("ada", "acme")
    streams.open("ada", "bolt")
    with pytest.raises(TooManyRequests, match="you have 2 event streams open, of 2 at most") as refusal:
        streams.open("ada", "cask")
    assert refusal.value.fields["retry_after"] > 0
    streams.open("bob", "acme")


def test_a_brand_has_so_many_over_all_members(streams: OpenStreams) -> None:
    for user in ("ada", "bob", "eve"):
        streams.open(user, "acme")
    with pytest.raises(TooManyRequests, match="members of this brand have 3 event streams open, of 3 at most"):
        streams.open("max", "acme")
    streams.open("max", "bolt")


def test_one_that_is_refused_counts_for_nothing_and_one_that_ends_makes_room(streams: OpenStreams) -> None:
    for _ in range(2):
        streams.open("ada", "acme")
    for _ in range(3):
        with pytest.raises(TooManyRequests):
            streams.open("ada", "acme")
    streams.close("ada", "acme")
    streams.open("ada", "acme")
    for _ in range(2):
        streams.close("ada", "acme")
    assert (len(streams), streams._of_caller, streams._of_brand) == (0, {}, {})


class Membership:
    """A membership without a database; the stream needs nothing else."""

    def __init__(self, streams: OpenStreams) -> None:
        state = SimpleNamespace(streams=streams, db=SimpleNamespace(changes=Changes(None)))
        self.scope, self.brand_id, self.state, self.session = Scope("ada"), "acme", state, self

    async def one(self, statement: str, params: Any) -> dict[str, str]:
        return {"subject": "a change", "brand": "its credentials"}

    def open(self) -> Any:
        return self

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


async def look(caller: Any, after: int) -> events.Snapshot:
    return events.Snapshot("running", [])


async def opened(streams: OpenStreams, closed: list[str]) -> Any:
    async def close() -> None:
        closed.append("closed")

    return await events.stream(Membership(streams), "an id", 0, look, close)  # type: ignore[arg-type]


async def test_a_stream_whose_reader_goes_away_is_counted_no_more(streams: OpenStreams) -> None:
    closed: list[str] = []
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            gone.set()

    answer = await opened(streams, closed)
    assert len(streams) == 1
    await answer({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
    assert (len(streams), closed) == (0, ["closed"])


async def test_a_stream_that_is_broken_off_before_its_first_word_is_counted_no_more(streams: OpenStreams) -> None:
    closed: list[str] = []

    async def never(*_: object) -> Any:
        await asyncio.Event().wait()

    answer = await opened(streams, closed)
    task = asyncio.create_task(answer({"type": "http", "asgi": {"spec_version": "2.3"}}, never, never))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (len(streams), closed) == (0, ["closed"])


async def test_a_stream_that_is_refused_leaves_nothing_open(streams: OpenStreams) -> None:
    closed: list[str] = []
    for _ in range(2):
        streams.open("ada", "acme")
    with pytest.raises(TooManyRequests):
        await opened(streams, closed)
    assert (len(streams), closed) == (2, ["closed"])


def test_what_is_bound_to_a_brand_takes_no_share_of_its_user(streams: OpenStreams) -> None:
    in_person, of_a_key = Scope("ada"), Scope("ada", brand_id="acme", key_id="k")
    for _ in range(FEW.streams_per_caller):
        streams.open(of_a_key.holder, "acme")
    streams.open(in_person.holder, "globex")
    with pytest.raises(TooManyRequests):
        streams.open(of_a_key.holder, "acme")
