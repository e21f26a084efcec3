"""Adapters in host memory, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock

from onbrand.engine.adapters import AdapterKey
from onbrand.errors import AdapterRefused, NotAsPublished, OnbrandError
from onbrand.families.lora import AdapterWeights


class HostCache:
    """Validated adapters in host memory; the least recently used are dropped first. Thread-safe.

    Args:
        max_bytes: limit of all kept adapters together; the last one used is always kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._kept: OrderedDict[AdapterKey, AdapterWeights] = OrderedDict()
        self._num_bytes: dict[AdapterKey, int] = {}
        self._loading: dict[AdapterKey, Future[AdapterWeights]] = {}
        self._refused: OrderedDict[AdapterKey, OnbrandError] = OrderedDict()

    def get(self, key: AdapterKey, load: Callable[[], AdapterWeights]) -> AdapterWeights:
        """The weights of `key`; calls `load` unless they are here or being loaded.

        A refused file is remembered, because its content cannot change. After any other failure, waiting callers retry
        with their own `load`.
        """
        while True:
            future, must_load = self.get_or_start(key)
            if must_load:
                self.run_load(key, future, load)
            if must_load or future.exception() is None:
                return future.result()

    def get_or_start(self, key: AdapterKey) -> tuple[Future[AdapterWeights], bool]:
        """A future of the weights of `key`, and whether the caller must load them (`run_load`).

        Raises AdapterRefused when they were refused before.
        """
        with self._lock:
            if key in self._refused:
                raise self._refused[key].anew()
            future: Future[AdapterWeights] = Future()
            if key in self._kept:
                self._kept.move_to_end(key)
                future.set_result(self._kept[key])
                return future, False
            loading = self._loading.setdefault(key, future)
            return loading, loading is future

    def run_load(self, key: AdapterKey, future: Future[AdapterWeights], load: Callable[[], AdapterWeights]) -> None:
        """Load for a caller that got True from `get_or_start`. `future` gets the result, or the exception of `load`."""
        try:
            weights = load()
        except BaseException as problem:
            with self._lock:
                if isinstance(problem, AdapterRefused) and not isinstance(problem, NotAsPublished):
                    self._refuse(key, problem)
                del self._loading[key]
            future.set_exception(problem)
            return
        with self._lock:
            self._keep(key, weights)
            del self._loading[key]
        future.set_result(weights)

    def kept(self) -> list[AdapterKey]:
        """Keys of the adapters here, most recently used first."""
        with self._lock:
            return list(reversed(self._kept))

    def _keep(self, key: AdapterKey, weights: AdapterWeights) -> None:
        self._kept[key], self._num_bytes[key] = weights, weights.num_bytes
        while len(self._kept) > 1 and sum(self._num_bytes.values()) > self._max_bytes:
            del self._num_bytes[self._kept.popitem(last=False)[0]]

    def _refuse(self, key: AdapterKey, problem: AdapterRefused) -> None:
        self._refused[key] = problem.anew()
        while len(self._refused) > _REFUSALS_REMEMBERED:
            self._refused.popitem(last=False)


_REFUSALS_REMEMBERED = 1024
