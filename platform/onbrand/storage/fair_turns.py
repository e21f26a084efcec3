"""Turns at the checking children: accounts take turns, and within an account its brands, however much one sends.

Like the engine's line (`onbrand.engine.fairness`), but in one event loop, and counted in seconds that a turn took.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from onbrand.errors import TooManyRequests

_RETRY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Whose:
    """For whom a turn is taken.

    Args:
        account: who answers for the brand; None where that is not known: the brand stands for itself.
        is_bounded: whether it is refused when the queue is full, and has at most half of the turns. What the platform's
            own workers hand in is neither: it was admitted, and made by us.
    """

    brand_id: str
    account: str | None = None
    is_bounded: bool = True


@dataclass(slots=True)
class _Share:
    """What a brand, or an account, has of the turns."""

    num_waiting: int = 0
    num_running: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Waiter:
    """One who waits; `number` is its place in the order of coming."""

    whose: Whose
    number: int
    turn: anyio.Event = field(default_factory=anyio.Event)


class Turn:
    """A turn that runs until `end` is called; calling it again does nothing."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def end(self) -> None:
        """Give the turn to whoever is next."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class FairTurns:
    """So many turns at once. Not to be shared between event loops.

    Who comes next is of the account with the fewest turns that run, then with the fewest seconds used, and among its
    brands likewise. An account has at most half of the turns at once, so that slow files leave room for another's.

    Args:
        num_turns: turns at once.
        waiting_max: how many of one brand may wait.
        now: a clock in seconds.
        what: whose turns they are, for the error.
    """

    def __init__(
        self,
        num_turns: int,
        waiting_max: int,
        now: Callable[[], float] = time.monotonic,
        what: str = "files of this brand wait to be checked",
    ) -> None:
        self._what = what
        self._num_free, self._most = num_turns, max(1, num_turns // 2)
        self._waiting_max, self._now = waiting_max, now
        self._numbers = itertools.count()
        self._brands: dict[str, _Share] = {}
        self._accounts: dict[str, _Share] = {}
        self._waiting: dict[str, deque[_Waiter]] = {}

    @asynccontextmanager
    async def take(self, whose: Whose) -> AsyncIterator[None]:
        """A turn, when it comes. Raises TooManyRequests when as many of the brand wait as may."""
        turn = await self.begin(whose)
        try:
            yield
        finally:
            turn.end()

    async def begin(self, whose: Whose) -> Turn:
        """A turn, when it comes, that its holder ends. Raises TooManyRequests when as many of the brand wait as may."""
        await self._wait(whose)
        began = self._now()
        return Turn(lambda: self._give_back(whose, self._now() - began))

    async def _wait(self, whose: Whose) -> None:
        line = self._waiting.get(whose.brand_id, deque())
        if whose.is_bounded and len(line) >= self._waiting_max:
            raise TooManyRequests(
                f"{len(line)} {self._what} already, of {self._waiting_max} at most (limits.waiting_checks); try again",
                retry_after=_RETRY_SECONDS,
            )
        waiter = self._enter(whose)
        self._grant()
        try:
            await waiter.turn.wait()
        except BaseException:
            self._leave(waiter)
            raise

    def _enter(self, whose: Whose) -> _Waiter:
        """To the end of its brand's line. Who was idle begins where those are who used least: idleness is no credit."""
        for shares, name in self._shares_of(whose):
            if name not in shares:
                shares[name] = _Share(seconds=min((share.seconds for share in shares.values()), default=0.0))
            shares[name].num_waiting += 1
        waiter = _Waiter(whose, next(self._numbers))
        self._waiting.setdefault(whose.brand_id, deque()).append(waiter)
        return waiter

    def _leave(self, waiter: _Waiter) -> None:
        """It waits no more; a turn that came at the same moment goes to the next."""
        if waiter.turn.is_set():
            self._give_back(waiter.whose, 0.0)
            return
        self._waiting[waiter.whose.brand_id].remove(waiter)
        self._change(waiter.whose, num_waiting=-1)

    def _grant(self) -> None:
        while self._num_free and (waiter := self._next()) is not None:
            self._waiting[waiter.whose.brand_id].popleft()
            self._num_free -= 1
            self._change(waiter.whose, num_waiting=-1, num_running=1)
            waiter.turn.set()

    def _next(self) -> _Waiter | None:
        first = [line[0] for line in self._waiting.values() if line]
        may = [waiter for waiter in first if not waiter.whose.is_bounded or self._running(waiter) < self._most]
        return min(may, key=self._place, default=None)

    def _running(self, waiter: _Waiter) -> int:
        """Turns that its account has now."""
        return self._accounts[_account(waiter.whose)].num_running

    def _place(self, waiter: _Waiter) -> tuple[int, float, int, float, int]:
        account, brand = self._accounts[_account(waiter.whose)], self._brands[waiter.whose.brand_id]
        return (account.num_running, account.seconds, brand.num_running, brand.seconds, waiter.number)

    def _give_back(self, whose: Whose, seconds: float) -> None:
        self._num_free += 1
        self._change(whose, num_running=-1, seconds=seconds)
        self._grant()

    def _change(self, whose: Whose, num_waiting: int = 0, num_running: int = 0, seconds: float = 0.0) -> None:
        """Nothing is kept of who neither runs nor waits."""
        for shares, name in self._shares_of(whose):
            share = shares[name]
            share.num_waiting += num_waiting
            share.num_running += num_running
            share.seconds += seconds
            if share.num_waiting == share.num_running == 0:
                del shares[name]
        if not self._waiting.get(whose.brand_id):
            self._waiting.pop(whose.brand_id, None)

    def _shares_of(self, whose: Whose) -> Iterable[tuple[dict[str, _Share], str]]:
        return ((self._accounts, _account(whose)), (self._brands, whose.brand_id))


def _account(whose: Whose) -> str:
    return whose.brand_id if whose.account is None else whose.account
