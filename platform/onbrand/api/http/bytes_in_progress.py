"""Limits the bytes of request bodies in progress in one API process, per account and in total."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from onbrand.config import Limits
from onbrand.errors import TooManyRequests

_RETRY_SECONDS = 5


class BytesInProgress:
    """Counts the announced bytes of requests that are not answered yet.

    An account holds at most `limits.account_body_bytes`, and at most as many bytes as remain free of
    `limits.body_bytes`, so that a few accounts leave room for the next one.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held: Counter[str] = Counter()

    @contextmanager
    def held(self, account: str, num_bytes: int) -> Iterator[None]:
        """Hold `num_bytes` more while the context is open. Raises TooManyRequests."""
        self._must_fit(account, num_bytes)
        self._held[account] += num_bytes
        try:
            yield
        finally:
            self._held[account] -= num_bytes
            if not self._held[account]:
                del self._held[account]

    def __len__(self) -> int:
        """Bytes that all accounts hold together."""
        return self._held.total()

    def _must_fit(self, account: str, num_bytes: int) -> None:
        own = self._held.get(account, 0) + num_bytes
        if num_bytes and own > self._limits.account_body_bytes:
            raise TooManyRequests(
                f"your requests would have {own} bytes under way, of {self._limits.account_body_bytes} at most "
                "(limits.account_body_bytes); wait until one has ended",
                retry_after=_RETRY_SECONDS,
            )
        if num_bytes and own > self._limits.body_bytes - len(self):
            raise TooManyRequests(
                "too many bytes are under way here (limits.body_bytes); try again", retry_after=_RETRY_SECONDS
            )
