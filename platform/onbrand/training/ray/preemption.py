"""Notice of preemption: nodes that will be removed, known while there is time to save a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable

import ray.train
from ray.train import PreemptionInfo

INTERVAL_SECONDS = 2.0


class PreemptionWatcher:
    """Asks Ray at intervals whether nodes of this run will be preempted.

    Args:
        ask: the call to Ray. It is a barrier, so all workers must make it in the same steps.
    """

    def __init__(
        self, ask: Callable[[], PreemptionInfo | None] | None = None, interval: float = INTERVAL_SECONDS
    ) -> None:
        self._ask, self._interval = ask or ray.train.get_preemption_info, interval
        self._asked_at = time.monotonic()
        self._known: frozenset[str] = frozenset()

    @property
    def due(self) -> bool:
        """True if this worker's interval has passed. All workers ask once one of them is due."""
        return time.monotonic() - self._asked_at >= self._interval

    def heard(self) -> bool:
        """Ask Ray; True if a node will be preempted that was not known before. Same result on all workers."""
        info = self._ask()
        self._asked_at = time.monotonic()
        nodes = frozenset(info.preempted_node_ids) if info else frozenset()
        is_news = bool(nodes - self._known)
        self._known |= nodes
        return is_news
