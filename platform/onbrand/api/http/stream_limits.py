"""Limits the open event streams in this process, per caller and per brand."""

from __future__ import annotations

from collections import Counter

from onbrand.config import Limits
from onbrand.errors import TooManyRequests

_RETRY_SECONDS = 5


class OpenStreams:
    """Counts open streams. Call `close` once for each successful `open`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of_caller: Counter[str] = Counter()
        self._of_brand: Counter[str] = Counter()

    def open(self, holder: str, brand_id: str) -> None:
        """Count one more stream of the holder (`Scope.holder`). Raises TooManyRequests at the limit."""
        for held, most, whose in (
            (self._of_caller[holder], self._limits.streams_per_caller, "you have"),
            (self._of_brand[brand_id], self._limits.streams_per_brand, "the members of this brand have"),
        ):
            if held >= most:
                raise TooManyRequests(
                    f"{whose} {held} event streams open, of {most} at most; close one, or ask for the thing itself",
                    retry_after=_RETRY_SECONDS,
                )
        self._of_caller[holder] += 1
        self._of_brand[brand_id] += 1

    def close(self, holder: str, brand_id: str) -> None:
        """Count one stream less."""
        self._of_caller[holder] -= 1
        self._of_brand[brand_id] -= 1
        self._of_caller, self._of_brand = +self._of_caller, +self._of_brand  # forgets those at zero

    def __len__(self) -> int:
        return self._of_caller.total()
