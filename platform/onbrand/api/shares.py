"""How many of one thing each holder has at once: requests by address or caller, streams by brand, open uploads.

A count lives in its process. Where several processes serve one address, each counts for itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from onbrand.errors import TooManyRequests


class Shares:
    """At most `most` at once for each key.

    Args:
        what: the things that are counted, for the error: ``requests of this address``.
        retry_after: seconds after which a refused caller may come back.
    """

    def __init__(self, most: int, what: str, retry_after: int = 1) -> None:
        self._most, self._what, self._retry_after = most, what, retry_after
        self._held: Counter[Hashable] = Counter()

    @contextmanager
    def held(self, key: Hashable) -> Iterator[None]:
        """Hold one more for as long as the context is open. Raises TooManyRequests."""
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
        """How many the key holds now."""
        return self._held.get(key, 0)

    def __len__(self) -> int:
        """How many all keys hold together."""
        return self._held.total()
