"""Tells waiting tasks of a process what the database announces (`0012_changes.sql`), so that they need not poll.

An announcement may be lost: a connection breaks, or a pooler shares it. So a task that waits also looks at its rows
after `Changes.patience` seconds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg

log = logging.getLogger(__name__)

QUEUE = "queue"
"""The name of changes of the training queue."""
_CHANNEL = "onbrand_changes"
_LISTENING, _DEAF = 5.0, 1.0
_RETRY_SECONDS = 2.0


class Waiter:
    """Waits for changes of some names."""

    def __init__(self) -> None:
        self._told = asyncio.Event()

    def tell(self) -> None:
        """End the wait in progress, or the next one."""
        self._told.set()

    async def wait(self, seconds: float) -> bool:
        """Return when something has changed since the last call, or after `seconds`; whether something has."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._told.wait(), seconds)
        has_changed = self._told.is_set()
        self._told.clear()
        return has_changed


class Changes:
    """Listens on one connection of its own, from the first wait on.

    Args:
        url: the DSN of a login; None: nothing is ever announced.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._waiters: dict[str, set[Waiter]] = {}
        self._listening: asyncio.Task[None] | None = None
        self._hears = False

    @property
    def patience(self) -> float:
        """Seconds after which a task looks at its rows although nothing was announced."""
        return _LISTENING if self._hears else _DEAF

    @contextmanager
    def waiter(self, *names: str) -> Iterator[Waiter]:
        """A waiter for changes of these names (`private.change_name`, or `QUEUE`), from now on."""
        if self._url is not None and self._listening is None:
            self._listening = asyncio.create_task(self._listen(), name="changes")
        made, distinct = Waiter(), set(names)
        for name in distinct:
            self._waiters.setdefault(name, set()).add(made)
        try:
            yield made
        finally:
            for name in distinct:
                self._waiters[name].discard(made)
                if not self._waiters[name]:
                    del self._waiters[name]

    def tell(self, name: str) -> None:
        """End the waits for this name in this process."""
        for each in self._waiters.get(name, ()):
            each.tell()

    async def close(self) -> None:
        """Stop listening."""
        if self._listening is not None:
            self._listening.cancel()
            with suppress(asyncio.CancelledError):
                await self._listening
            self._listening = None

    async def _listen(self) -> None:
        while True:
            try:
                await self._listen_once()
            except Exception as problem:
                log.warning("changes are not heard of: %s", type(problem).__name__)
            finally:
                self._hears = False
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen_once(self) -> None:
        """Pass announcements on until the connection breaks; none behind a pooler, which shares it."""
        assert self._url is not None
        async with await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, application_name="onbrand changes", keepalives_idle=30, keepalives_interval=10
        ) as connection:
            row = await (await connection.execute("select pg_backend_pid()", prepare=False)).fetchone()
            is_shared = row is None or row[0] != connection.info.backend_pid
            if is_shared:
                await connection.close()
                await asyncio.Event().wait()
            await connection.execute(f"listen {_CHANNEL}", prepare=False)
            self._hears = True
            for name in self._waiters:
                self.tell(name)  # it may have missed something
            async for announced in connection.notifies():
                self.tell(announced.payload)
