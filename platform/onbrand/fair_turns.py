"""A limited number of turns, granted fairly: first between accounts, then between the brands of an account.

File checks (`onbrand.sandbox.checker`), hashing of forms (`onbrand.app`) and the public port, there with addresses in
place of brands (`onbrand.api.http.front`), use it. It works within one event loop and measures seconds. The engine's
queue is another one (`onbrand.engine.fair_queue`): it decides anew at every step and measures pixels.
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
class QueueOwner:
    """The brand and account of a turn.

    Args:
        account: the account that answers for the brand; None if unknown: the brand then counts as its own account.
        is_bounded: whether the limits apply: refusal when the queue is full, and at most half of the turns. They do
            not apply to files of the platform's own workers, whose jobs were admitted already.
    """

    brand_id: str
    account: str | None = None
    is_bounded: bool = True


@dataclass(slots=True)
class _Share:
    """Counters of one brand or account; `seconds` is what its turns took."""

    num_waiting: int = 0
    num_running: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Waiter:
    """A waiting request; `number` is its place in the order of arrival."""

    whose: QueueOwner
    number: int
    turn: anyio.Event = field(default_factory=anyio.Event)


class Turn:
    """A turn that runs until `end` is called; calling it again does nothing."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def end(self) -> None:
        """Pass the turn to the next waiter."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class FairTurns:
    """Grants up to `num_turns` turns at once. Not to be shared between event loops.

    The next turn goes to the account with the fewest running turns, then with the fewest seconds used; its brands are
    ordered the same way. An account has at most half of the turns at once, so that slow files leave room for others.

    Args:
        num_turns: turns at once.
        waiting_max: how many requests of one brand may wait.
        now: a clock in seconds.
        things: the waiting things, for the error's text.
        limit: the setting of `waiting_max`, for the error's text.
    """

    def __init__(
        self,
        num_turns: int,
        waiting_max: int,
        now: Callable[[], float] = time.monotonic,
        things: str = "files of this brand wait to be checked",
        limit: str = "waiting_checks",
    ) -> None:
        self._things, self._limit = things, limit
        self._num_free, self._most = num_turns, max(1, num_turns // 2)
        self._waiting_max, self._now = waiting_max, now
        self._numbers = itertools.count()
        self._brands: dict[str, _Share] = {}
        self._accounts: dict[str, _Share] = {}
        self._waiting: dict[str, deque[_Waiter]] = {}

    @asynccontextmanager
    async def take(self, whose: QueueOwner) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Raises TooManyRequests when the brand's queue is full."""
        turn = await self.begin(whose)
        try:
            yield
        finally:
            turn.end()

    async def begin(self, whose: QueueOwner) -> Turn:
        """Wait for a turn; the caller must end it. Raises TooManyRequests when the brand's queue is full."""
        await self._wait(whose)
        began = self._now()
        return Turn(lambda: self._give_back(whose, self._now() - began))

    async def _wait(self, whose: QueueOwner) -> None:
        line = self._waiting.get(whose.brand_id, deque())
        if whose.is_bounded and len(line) >= self._waiting_max:
            raise TooManyRequests(
                f"{len(line)} {self._things} already, of {self._waiting_max} at most (limits.{self._limit}); try again",
                retry_after=_RETRY_SECONDS,
            )
        waiter = self._enter(whose)
        self._grant()
        try:
            await waiter.turn.wait()
        except BaseException:
            self._leave(waiter)
            raise

    def _enter(self, whose: QueueOwner) -> _Waiter:
        """Append to the brand's queue. An idle share starts at the smallest `seconds` in use: idleness is no credit."""
        for shares, name in self._shares_of(whose):
            if name not in shares:
                shares[name] = _Share(seconds=min((share.seconds for share in shares.values()), default=0.0))
            shares[name].num_waiting += 1
        waiter = _Waiter(whose, next(self._numbers))
        self._waiting.setdefault(whose.brand_id, deque()).append(waiter)
        return waiter

    def _leave(self, waiter: _Waiter) -> None:
        """Remove a waiter; a turn that was granted at the same moment goes to the next."""
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
        """Running turns of the waiter's account."""
        return self._accounts[_account(waiter.whose)].num_running

    def _place(self, waiter: _Waiter) -> tuple[int, float, int, float, int]:
        account, brand = self._accounts[_account(waiter.whose)], self._brands[waiter.whose.brand_id]
        return (account.num_running, account.seconds, brand.num_running, brand.seconds, waiter.number)

    def _give_back(self, whose: QueueOwner, seconds: float) -> None:
        self._num_free += 1
        self._change(whose, num_running=-1, seconds=seconds)
        self._grant()

    def _change(self, whose: QueueOwner, num_waiting: int = 0, num_running: int = 0, seconds: float = 0.0) -> None:
        """Update both shares; a share with nothing running or waiting is deleted."""
        for shares, name in self._shares_of(whose):
            share = shares[name]
            share.num_waiting += num_waiting
            share.num_running += num_running
            share.seconds += seconds
            if share.num_waiting == share.num_running == 0:
                del shares[name]
        if not self._waiting.get(whose.brand_id):
            self._waiting.pop(whose.brand_id, None)

    def _shares_of(self, whose: QueueOwner) -> Iterable[tuple[dict[str, _Share], str]]:
        return ((self._accounts, _account(whose)), (self._brands, whose.brand_id))


def _account(whose: QueueOwner) -> str:
    return whose.brand_id if whose.account is None else whose.account
