"""Rate limits: one token bucket for each key, full at first (Turner 1986, "leaky bucket")."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

_KEYS_MAX = 10_000


class Rates:
    """Allows each key a burst of `burst` calls, refilled at `per_second`.

    Args:
        now: a clock in seconds.
    """

    def __init__(self, per_second: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._now = per_second, burst, now
        self._left: dict[Hashable, tuple[float, float]] = {}
        """By key: tokens left, and at which time."""

    def take(self, key: Hashable) -> bool:
        """Take a token of `key`; False if none is left."""
        now = self._now()
        left = self._left_at(key, now)
        if left < 1:
            return False
        if key not in self._left and len(self._left) >= _KEYS_MAX:
            self._forget_the_full(now)
        self._left[key] = (left - 1, now)
        return True

    def __len__(self) -> int:
        """The number of stored keys."""
        return len(self._left)

    def _left_at(self, key: Hashable, now: float) -> float:
        left, since = self._left.get(key, (float(self._burst), now))
        return min(self._burst, left + (now - since) * self._per_second)

    def _forget_the_full(self, now: float) -> None:
        """Drop the keys with a full bucket; if there are none, drop all keys."""
        kept = {key: self._left[key] for key in self._left if self._left_at(key, now) < self._burst}
        self._left = kept if len(kept) < _KEYS_MAX else {}
