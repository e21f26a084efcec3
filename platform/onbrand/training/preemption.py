"""Nodes that are about to be taken away: noticed while there is time to keep the run's state."""

from __future__ import annotations

import time
from collections.abc import Callable

import ray.train
from ray.train import PreemptionInfo

INTERVAL_SECONDS = 2.0


class Notice:
    """What Ray says of this run's nodes, asked now and then.

    Args:
        ask: Ray's answer; a barrier over all workers, so that all must ask as often, in the same step.
    """

    def __init__(
        self, ask: Callable[[], PreemptionInfo | None] | None = None, interval: float = INTERVAL_SECONDS
    ) -> None:
        self._ask, self._interval = ask or ray.train.get_preemption_info, interval
        self._asked_at = time.monotonic()
        self._known: frozenset[str] = frozenset()

    @property
    def due(self) -> bool:
        """This worker would ask by now; all do when one would."""
        return time.monotonic() - self._asked_at >= self._interval

    def heard(self) -> bool:
        """Ask; whether a node will go of which that was not known before. The same on all workers."""
        info = self._ask()
        self._asked_at = time.monotonic()
        nodes = frozenset(info.preempted_node_ids) if info else frozenset()
        is_news = bool(nodes - self._known)
        self._known |= nodes
        return is_news
