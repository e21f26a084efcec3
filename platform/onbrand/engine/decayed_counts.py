"""Recent usage: counts in which older uses weigh less and less. Does not need torch."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

_WEIGHT_MAX = 2.0**20
_LEAST = 1e-3

Name = TypeVar("Name", bound=Hashable)


class DecayedCounts(Generic[Name]):
    """Exponentially decayed counts (frequency and recency of Lee et al. 2001, LRFU, in one number).

    Args:
        half_life: growth of `at` after which a use counts half; the caller chooses the unit.
        max_names: the most names kept; the least used are dropped first.
    """

    def __init__(self, half_life: float, max_names: int = 16_384) -> None:
        self._half_life, self._max_names = half_life, max_names
        self._counts: dict[Name, float] = {}
        self._total = 0.0
        self._since = 0.0
        self._weight = 1.0

    def count(self, name: Name, at: float) -> None:
        """Count one use of `name` at `at`, which never decreases. New uses weigh more, instead of all old ones less."""
        self._weight = 2.0 ** min((at - self._since) / self._half_life, 1000.0)
        if self._weight > _WEIGHT_MAX or len(self._counts) > self._max_names:
            self._rescale(at)
        self._counts[name] = self._counts.get(name, 0.0) + self._weight
        self._total += self._weight

    def of(self, name: Name) -> float:
        """Decayed uses of `name`, as of the last use of any name."""
        return self._counts.get(name, 0.0) / self._weight

    @property
    def total(self) -> float:
        """Decayed uses of all names."""
        return self._total / self._weight

    def share(self, name: Name) -> float:
        """The fraction of `name` in all uses, 0 to 1."""
        return self._counts.get(name, 0.0) / self._total if self._total else 0.0

    def _rescale(self, at: float) -> None:
        most = sorted(self._counts.items(), key=lambda item: item[1], reverse=True)[: self._max_names // 2]
        self._counts = {name: count / self._weight for name, count in most if count / self._weight > _LEAST}
        self._total /= self._weight
        self._since, self._weight = at, 1.0
