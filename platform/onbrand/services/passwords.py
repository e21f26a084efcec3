"""Password hashing: argon2id in a few dedicated threads, outside any transaction; clients take turns."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from onbrand.config import Limits
from onbrand.errors import InvalidInput
from onbrand.services.password_queue import Client, PasswordTurns

T = TypeVar("T")
PASSWORD_CHARS = (8, 256)
_HASH_OF_NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$PFXUoBagHnummeZo0beoIg$5Bza2iwRUr8Vaytzg5f8lhjF7TdmCiyTiWpT4bRn3Ng"
"""Hash of a discarded long random password: an unknown address's password is compared with it."""
_NICENESS = 4
"""Niceness of the threads (on Linux each has its own), so that requests go first."""
_LOOKUPS_AT_ONCE = 2


class Passwords:
    """Checks and hashes passwords for one process: a few at a time, with a bounded queue.

    However many clients log in, other requests keep the processor and the database's connections.
    """

    def __init__(self, limits: Limits) -> None:
        self._turns = PasswordTurns(limits)
        self._threads = ThreadPoolExecutor(limits.passwords_at_once, "passwords", initializer=_give_way)
        self.lookups = asyncio.Semaphore(_LOOKUPS_AT_ONCE)
        """Held while an attempt is counted: attempts of one client address wait for each other, and would otherwise
        occupy all connections to the database."""

    async def are_equal(self, password: str, hashed: str | None, client: Client) -> bool:
        """Whether `password` matches the hash. None (no account) takes as long and gives False.

        Raises TooManyRequests if too many passwords wait, of this client or of all (`password_queue`).
        """
        sent = password[: PASSWORD_CHARS[1] + 1].replace("\x00", "\ufffd")
        is_right = await self._done(partial(verify, sent, hashed or _HASH_OF_NOBODY), client)
        return is_right and hashed is not None and sent == password

    async def hashed(self, password: str, client: Client) -> str:
        """The hash to store. Raises InvalidInput for an invalid password, TooManyRequests."""
        must_be_password(password)
        return await self._done(partial(hash_password, password), client)

    async def _done(self, work: Callable[[], T], client: Client) -> T:
        async with self._turns.take(client):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def must_be_password(password: str) -> None:
    """Raise InvalidInput for an invalid length or a NUL character."""
    least, most = PASSWORD_CHARS
    if not least <= len(password) <= most or "\x00" in password:
        raise InvalidInput(f"password must have {least} to {most} characters", param="password")


def hash_password(password: str) -> str:
    """An argon2id hash (OWASP's parameters: 19 MiB, two passes)."""
    return _hasher().hash(password)


def verify(password: str, hashed: str) -> bool:
    """Whether `hashed` is a hash of `password`."""
    return _hasher().verify(password, hashed)


def _give_way() -> None:
    if sys.platform == "linux":
        os.nice(_NICENESS)


@cache
def _hasher() -> PasswordHash:
    return PasswordHash((Argon2Hasher(time_cost=2, memory_cost=19456, parallelism=1),))
