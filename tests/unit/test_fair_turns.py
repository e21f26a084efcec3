"""The order of checks in the sandbox: by account, then by brand, by used time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from onbrand.errors import TooManyRequests
from onbrand.fair_turns import FairTurns, QueueOwner


class Files:
    """Files that are being checked; `end` ends one after so many seconds by the clock of the turns."""

    def __init__(self, num_turns: int = 2, waiting_max: int = 100) -> None:
        self.time = 0.0
        self.turns = FairTurns(num_turns, waiting_max, now=lambda: self.time)
        self.begun: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def send(self, name: str, whose: QueueOwner) -> None:
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._check(name, whose))
        await settle()

    async def _check(self, name: str, whose: QueueOwner) -> None:
        async with self.turns.take(whose):
            self.begun.append(name)
            await self._ends[name].wait()

    async def end(self, name: str, seconds: float = 1.0) -> None:
        self.time += seconds
        self._ends[name].set()
        await settle()

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def files() -> AsyncIterator[Files]:
    made = Files()
    yield made
    await made.close()


A, B = QueueOwner("acme", "ann"), QueueOwner("globex", "bob")


async def test_a_brand_with_many_files_leaves_a_turn_for_another(files: Files) -> None:
    for number in range(20):
        await files.send(f"a{number}", A)
    assert files.begun == ["a0"]
    await files.send("b", B)
    assert files.begun == ["a0", "b"]


async def test_two_brands_with_many_files_take_turns(files: Files) -> None:
    for number in range(6):
        await files.send(f"a{number}", A)
    for number in range(6):
        await files.send(f"b{number}", B)
    for _ in range(4):
        for name in files.begun[-2:]:
            await files.end(name)
    assert sorted(name[0] for name in files.begun) == ["a"] * 5 + ["b"] * 5


async def test_many_brands_of_one_account_have_its_share_only(files: Files) -> None:
    for number in range(40):
        await files.send(f"many{number}", QueueOwner(f"brand-{number}", "ann"))
    for number in range(3):
        await files.send(f"b{number}", B)
    for _ in range(3):
        for name in files.begun[-2:]:
            await files.end(name)
    assert {"b0", "b1", "b2"} <= set(files.begun)
    assert len(files.begun) <= 8


async def test_brands_of_an_account_take_turns_within_it(files: Files) -> None:
    for number in range(5):
        await files.send(f"first{number}", QueueOwner("first", "ann"))
    await files.send("second", QueueOwner("second", "ann"))
    await files.end("first0")
    assert files.begun == ["first0", "second"]


async def test_a_brand_with_slow_files_has_fewer_turns() -> None:
    files = Files(num_turns=1)
    try:
        for number in range(6):
            await files.send(f"slow{number}", A)
            await files.send(f"fast{number}", B)
        while len(files.begun) < 6:
            await files.end(files.begun[-1], 10.0 if files.begun[-1].startswith("slow") else 1.0)
        assert files.begun == ["slow0", "fast0", "fast1", "fast2", "fast3", "fast4"]
    finally:
        await files.close()


async def test_who_was_idle_has_no_credit() -> None:
    files = Files(num_turns=1)
    try:
        for number in range(4):
            await files.send(f"a{number}", A)
        await files.end("a0", 100.0)
        for number in range(4):
            await files.send(f"b{number}", B)
        for _ in range(4):
            await files.end(files.begun[-1])
        assert files.begun.count("a2") == 1
    finally:
        await files.close()


async def test_a_full_queue_is_429_for_its_brand_only() -> None:
    files = Files(num_turns=2, waiting_max=3)
    try:
        for number in range(4):
            await files.send(f"a{number}", A)
        with pytest.raises(TooManyRequests, match=r"3 files of this brand .*waiting_checks") as told:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(files.turns.take(A))
        assert told.value.fields["retry_after"] > 0
        await files.send("b", B)
        assert "b" in files.begun
    finally:
        await files.close()


async def test_what_workers_hand_in_is_not_refused_and_has_all_turns(files: Files) -> None:
    files = Files(num_turns=2, waiting_max=0)
    try:
        for number in range(3):
            await files.send(f"w{number}", QueueOwner("acme", is_bounded=False))
        assert files.begun == ["w0", "w1"]
        assert not files.tasks["w2"].done()
    finally:
        await files.close()


async def test_who_gives_up_waiting_leaves_the_line(files: Files) -> None:
    for name in ("a0", "a1", "a2"):
        await files.send(name, A)
    files.tasks["a1"].cancel()
    await settle()
    await files.end("a0")
    assert files.begun == ["a0", "a2"]


async def test_a_turn_that_comes_to_one_who_gives_up_goes_to_the_next(files: Files) -> None:
    for name in ("a0", "a1", "a2"):
        await files.send(name, A)
    files._ends["a0"].set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    files.tasks["a1"].cancel()
    await settle()
    assert "a2" in files.begun


async def test_nothing_is_kept_of_who_is_done(files: Files) -> None:
    for number in range(3):
        await files.send(f"a{number}", A)
        await files.send(f"b{number}", B)
    files.tasks["a2"].cancel()
    for _ in range(3):
        for name in list(files.begun):
            await files.end(name)
    turns = files.turns
    assert (turns._brands, turns._accounts, turns._waiting, turns._num_free) == ({}, {}, {}, 2)


async def test_a_turn_that_is_ended_twice_is_one_turn(files: Files) -> None:
    turn = await files.turns.begin(A)
    turn.end()
    turn.end()
    for name in ("a1", "b1"):
        await files.send(name, A if name == "a1" else B)
    await files.send("b2", B)
    assert files.begun == ["a1", "b1"]
