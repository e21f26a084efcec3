"""Limits how many of one thing each key holds at once, such as requests of an address or of a caller.

Counts are local to a process: processes that serve the same address count separately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from onbrand.errors import TooManyRequests


class ConcurrencyLimits:
    """Allows each key to hold at most `most` things at once; `what` names them in the error (``requests of ...``).

    Args:
        retry_after: seconds after which a refused caller may retry.
    """

    def __init__(self, most: int, what: str, retry_after: int = 1) -> None:
        self._most, self._what, self._retry_after = most, what, retry_after
        self._held: Counter[Hashable] = Counter()

    @contextmanager
    def held(self, key: Hashable) -> Iterator[None]:
        """Hold one more while the context is open. Raises TooManyRequests."""
        if self._held[key] >= self._most:
            raise TooManyRequests(
                f"{self._most} {self._what} are open at once, which is the limit; wait until one has ended",
                retry_after=self._retry_after,
            )
        self._held[key] += 1
        try:
            yield
        finally:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]

    def num_held(self, key: Hashable) -> int:
        """The number that the key holds now."""
        return self._held.get(key, 0)

    def __len__(self) -> int:
        """The number that all keys hold together."""
        return self._held.total()
