"""Password checks take turns by client address. Each address and each account has few places."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from onbrand.config import Limits
from onbrand.errors import TooManyRequests
from onbrand.services.password_queue import Client, PasswordTurns


class Line:
    """A queue of one place, which records who had a turn."""

    def __init__(self, waiting: int = 6, each: int = 2) -> None:
        self.turns = PasswordTurns(Limits(passwords_waiting=waiting, passwords_waiting_each=each))
        self.order: list[str] = []

    async def come(self, network: str, email: str = "") -> asyncio.Task[None]:
        """A caller arrives, and waits or is refused."""
        task = asyncio.create_task(self._have(network, email or f"{len(asyncio.all_tasks())}@{network}"))
        await asyncio.sleep(0)
        return task

    async def _have(self, network: str, email: str) -> None:
        async with self.turns.take(Client(network, email)):
            self.order.append(network)

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        async with self.turns.take(Client("busy", "busy")):
            yield


async def test_addresses_take_turns_whoever_came_first() -> None:
    line = Line()
    async with line.busy():
        tasks = [await line.come(network) for network in ("a", "a", "b", "c", "b")]
    await asyncio.gather(*tasks)
    assert line.order == ["a", "b", "c", "a", "b"]


async def test_two_of_an_address_and_two_for_an_account_wait() -> None:
    line = Line()
    async with line.busy():
        tasks = [await line.come("a"), await line.come("a"), await line.come("b", "x"), await line.come("c", "X")]
        with pytest.raises(TooManyRequests, match="2 passwords from your network"):
            await (await line.come("a"))
        with pytest.raises(TooManyRequests, match="2 passwords for this account") as refused:
            await (await line.come("d", "x"))
    await asyncio.gather(*tasks)
    assert (line.order, refused.value.fields["retry_after"]) == (["a", "b", "c", "a"], 2)


async def test_of_too_many_the_last_of_the_address_with_most_is_refused() -> None:
    line = Line(waiting=4, each=3)
    async with line.busy():
        tasks = [await line.come(network) for network in ("a", "a", "a", "b")]
        newcomer = await line.come("c")
        with pytest.raises(TooManyRequests):
            await tasks.pop(2)
        with pytest.raises(TooManyRequests):
            await (await line.come("b"))
    await asyncio.gather(*tasks, newcomer)
    assert line.order == ["a", "b", "c", "a"]


async def test_who_goes_away_leaves_the_turn_to_the_next() -> None:
    line = Line()
    async with line.busy():
        first, second, third = [await line.come(network) for network in "abc"]
        second.cancel()
    first.cancel()  # its turn has come just now
    await asyncio.gather(first, second, third, return_exceptions=True)
    assert line.order == ["c"]
    await (await line.come("d"))
    async with line.busy():
        pass
    assert line.order == ["c", "d"]
