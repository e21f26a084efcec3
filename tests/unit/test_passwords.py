"""A few passwords are checked at a time, a bounded number waits, and a refusal says when to retry."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

from onbrand.config import Limits
from onbrand.errors import InvalidInput, TooManyRequests
from onbrand.services import passwords
from onbrand.services.password_queue import Client
from onbrand.services.passwords import Passwords

FEW = Limits(passwords_at_once=2, passwords_waiting=3)
_numbers = itertools.count()


def someone() -> Client:
    """Another user at each call."""
    return Client(f"network {(n := next(_numbers))}", f"{n}@example.com")


class Held:
    """Checks that last until they are released."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.two_began, self.three_began = threading.Event(), threading.Event()
        self.lock = threading.Lock()
        self.num_now = 0

    def verify(self, password: str, hashed: str) -> bool:
        with self.lock:
            self.num_now += 1
            if self.num_now == 2:
                self.two_began.set()
            if self.num_now > 2:
                self.three_began.set()
        assert self.go.wait(20)
        with self.lock:
            self.num_now -= 1
        return True


async def test_a_few_at_a_time_some_wait_and_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    held, checker = Held(), Passwords(FEW)
    monkeypatch.setattr(passwords, "verify", held.verify)
    under_way = [asyncio.create_task(checker.are_equal("a password", "hash", someone())) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequests) as refusal:
        await checker.are_equal("a password", "hash", someone())
    with pytest.raises(TooManyRequests):
        await checker.hashed("a password", someone())
    assert await asyncio.to_thread(held.two_began.wait, 20)
    assert not await asyncio.to_thread(held.three_began.wait, 0.2)
    held.go.set()
    assert await asyncio.gather(*under_way) == [True] * 5
    assert (held.three_began.is_set(), refusal.value.fields["retry_after"]) == (False, 2)
    assert await checker.are_equal("a password", "hash", someone())


async def test_who_goes_away_while_waiting_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    held, checker = Held(), Passwords(FEW)
    monkeypatch.setattr(passwords, "verify", held.verify)
    under_way = [asyncio.create_task(checker.are_equal("a password", "hash", someone())) for _ in range(5)]
    await asyncio.sleep(0)
    under_way[-1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await under_way.pop()
    under_way.append(asyncio.create_task(checker.are_equal("a password", "hash", someone())))
    held.go.set()
    assert await asyncio.gather(*under_way) == [True] * 5


async def test_a_right_password_is_right_and_others_are_not() -> None:
    checker = Passwords(Limits())
    hashed = await checker.hashed("a long enough password", someone())
    assert await checker.are_equal("a long enough password", hashed, someone())
    for wrong in ("a long enough passwore", "", "a long enough password" + "x" * 300, "a long enough password\x00"):
        assert not await checker.are_equal(wrong, hashed, someone())


async def test_nobodys_password_is_never_right() -> None:
    assert not await Passwords(Limits()).are_equal("a long enough password", None, someone())


@pytest.mark.parametrize("password", ["short", "x" * 257, "with a \x00 in it"])
async def test_what_may_not_be_a_password_is_refused_before_any_work(password: str) -> None:
    with pytest.raises(InvalidInput, match="8 to 256"):
        await Passwords(Limits(passwords_waiting=0)).hashed(password, someone())
