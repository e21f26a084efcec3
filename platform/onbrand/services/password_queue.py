"""Queue for password hashing: client addresses take turns, and the one with most waiting is refused first."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from onbrand.config import Limits
from onbrand.errors import TooManyRequests

_RETRY_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Client:
    """The sender of a password.

    Args:
        network: their address, or the /64 of an IPv6 one (`login_limits.network_of`).
        email: of the account, in any case.
    """

    network: str
    email: str = field(repr=False)

    @property
    def account(self) -> str:
        return self.email.lower()


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    client: Client
    turn: asyncio.Future[None]


class PasswordTurns:
    """`passwords_at_once` run, `passwords_waiting` wait: at most `passwords_waiting_each` per address and per account.

    If the queue is full, the last waiter of the address with most waiters gives way to an address with fewer.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._num_free = limits.passwords_at_once
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        """Waiters by address; the address with the next turn comes first."""

    @asynccontextmanager
    async def take(self, client: Client) -> AsyncIterator[None]:
        """Wait for a turn, and hold it in this context. Raises TooManyRequests."""
        await self._wait(client)
        try:
            yield
        finally:
            self._give_back()

    async def _wait(self, client: Client) -> None:
        if self._num_free:  # a free turn means that nobody waits
            self._num_free -= 1
            return
        self._make_room(client)
        waiter = _Waiter(client, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(client.network, deque()).append(waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            self._leave(waiter)
            raise

    def _make_room(self, client: Client) -> None:
        each = self._limits.passwords_waiting_each
        if self._num(lambda other: other.network == client.network) >= each:
            raise _refusal(f"{each} passwords from your network are waiting to be checked")
        if self._num(lambda other: other.account == client.account) >= each:
            raise _refusal(f"{each} passwords for this account are waiting to be checked")
        if self._num(lambda other: True) < self._limits.passwords_waiting:
            return
        most = max(self._waiting.values(), key=len, default=deque[_Waiter]())
        if len(most) <= 1 + len(self._waiting.get(client.network, ())):
            raise _refusal("too many passwords are being checked")
        self._refuse(most[-1])

    def _num(self, is_counted: Callable[[Client], bool]) -> int:
        return sum(is_counted(waiter.client) for line in self._waiting.values() for waiter in line)

    def _refuse(self, waiter: _Waiter) -> None:
        self._remove(waiter)
        if not waiter.turn.done():  # it may have been cancelled just now
            waiter.turn.set_exception(_refusal("too many passwords are being checked"))

    def _leave(self, waiter: _Waiter) -> None:
        """Remove a cancelled waiter; pass on a turn that it got at the same moment."""
        if not waiter.turn.done() or waiter.turn.cancelled():
            self._remove(waiter)
        elif waiter.turn.exception() is None:
            self._give_back()

    def _remove(self, waiter: _Waiter) -> None:
        line = self._waiting.get(waiter.client.network)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._waiting[waiter.client.network]

    def _give_back(self) -> None:
        """Pass the turn to the next address, which then moves to the end."""
        while self._waiting:
            network, line = next(iter(self._waiting.items()))
            waiter = line[0]
            self._waiting.move_to_end(network)
            self._remove(waiter)
            if not waiter.turn.done():  # it may have been cancelled just now
                waiter.turn.set_result(None)
                return
        self._num_free += 1


def _refusal(what: str) -> TooManyRequests:
    return TooManyRequests(f"{what}; try again soon", retry_after=_RETRY_SECONDS)
