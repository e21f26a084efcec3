"""Where adapters live: in host memory (one load per adapter, however many wait) and in slots (while rows use them).

An adapter is named by its brand and its content, so "same name, new weights" cannot be stale and one brand's bytes
never answer another brand's request. Fetching bytes is the caller's business (`onbrand.serving`).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock

import torch

from onbrand.engine.slots import RowAdapter, Slot, Slots, rank_class
from onbrand.errors import AdapterRefused
from onbrand.families.lora import AdapterWeights, LayerWeights

_REFUSALS_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """The identity of weights in memory: whose they are, and the hash of their file."""

    brand_id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter as one request uses it."""

    key: AdapterKey
    weights: AdapterWeights
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to a slot until `unpin`. The slot's generation cannot change meanwhile."""

    key: AdapterKey
    slot: Slot
    generation: int

    def row(self, scale: float) -> RowAdapter:
        """What a batch row with this lease binds."""
        return RowAdapter(self.slot, self.generation, scale)


def composed(uses: Sequence[AdapterUse]) -> AdapterUse:
    """Several adapters as one, by concatenating their ranks: sum_k c_k A_k B_k = [A_1; A_2] [c_1 B_1, c_2 B_2].

    All must be of one brand. Raises AdapterRefused otherwise.
    """
    if len(uses) == 1:
        return uses[0]
    brands = {use.key.brand_id for use in uses}
    if len(brands) != 1:
        raise AdapterRefused("adapters of different brands cannot be combined")
    digest = hashlib.sha256("+".join(f"{use.key.sha256}*{use.scale!r}" for use in uses).encode()).hexdigest()
    names = dict.fromkeys(name for use in uses for name in use.weights.layers)
    layers = {name: _concatenated([use for use in uses if name in use.weights.layers], name) for name in names}
    rank = max(len(layer.a) for layer in layers.values())
    return AdapterUse(AdapterKey(brands.pop(), digest), AdapterWeights(layers, rank, {}))


def _concatenated(uses: Sequence[AdapterUse], name: str) -> LayerWeights:
    return LayerWeights(
        torch.cat([use.weights.layers[name].a for use in uses]),
        torch.cat([use.weights.layers[name].b * use.scale for use in uses], dim=1),
    )


class Residency:
    """Adapters in slots. One in use is never evicted; of the others the least recently used makes room."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._leases: OrderedDict[AdapterKey, Lease] = OrderedDict()
        self._num_pins: dict[AdapterKey, int] = {}

    @property
    def resident(self) -> list[AdapterKey]:
        """Adapters in slots, least recently used first."""
        return list(self._leases)

    def num_pins(self, key: AdapterKey) -> int:
        """How many hold the adapter now."""
        return self._num_pins.get(key, 0)

    def pin(self, key: AdapterKey, weights: AdapterWeights) -> Lease | None:
        """Hold `key` in a slot until `unpin`; None while every slot of its rank class is in use.

        Raises AdapterRefused when the weights do not fit the base; then no slot was disturbed.
        """
        lease = self._leases.get(key) or self._put(key, weights)
        if lease is not None:
            self._num_pins[key] = self.num_pins(key) + 1
            self._leases.move_to_end(key)
        return lease

    def unpin(self, lease: Lease) -> None:
        """The counterpart of one `pin`. The adapter stays until its slot is needed."""
        self._num_pins[lease.key] -= 1
        if not self._num_pins[lease.key]:
            del self._num_pins[lease.key]

    def _put(self, key: AdapterKey, weights: AdapterWeights) -> Lease | None:
        self._slots.must_fit(weights.layers, weights.rank)
        slot = self._slots.allocate(weights.rank) or self._evict_for(weights.rank)
        if slot is None:
            return None
        self._leases[key] = Lease(key, slot, self._slots.write(slot, weights.layers))
        return self._leases[key]

    def _evict_for(self, rank: int) -> Slot | None:
        """A slot for `rank` after evicting the least recently used adapter of its class that nobody holds."""
        for key, lease in self._leases.items():
            if lease.slot.rank_class == rank_class(rank) and not self.num_pins(key):
                del self._leases[key]
                self._slots.release(lease.slot)
                return self._slots.allocate(rank)
        return None


class HostCache:
    """Validated adapters in host memory, least recently used first out; safe to call from many threads.

    Args:
        max_bytes: the most that adapters nobody asked for lately may keep.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._kept: OrderedDict[AdapterKey, AdapterWeights] = OrderedDict()
        self._loading: dict[AdapterKey, Future[AdapterWeights]] = {}
        self._refused: OrderedDict[AdapterKey, AdapterRefused] = OrderedDict()

    def get(self, key: AdapterKey, load: Callable[[], AdapterWeights]) -> AdapterWeights:
        """The weights of `key`; calls `load` unless they are here or on their way.

        A refused file is remembered (its content cannot change); any other failure is the loader's own, and those who
        waited for it try with their own `load`.
        """
        while True:
            with self._lock:
                if key in self._refused:
                    raise self._refused[key]
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
                flight = self._loading.get(key)
                if flight is None:
                    mine = self._loading[key] = Future()
                    break
            problem = flight.exception()
            if problem is None:
                return flight.result()
        return self._load(key, load, mine)

    def _load(
        self, key: AdapterKey, load: Callable[[], AdapterWeights], flight: Future[AdapterWeights]
    ) -> AdapterWeights:
        try:
            weights = load()
        except BaseException as problem:
            with self._lock:
                if isinstance(problem, AdapterRefused):
                    self._refuse(key, problem)
                del self._loading[key]
            flight.set_exception(problem)
            raise
        with self._lock:
            self._keep(key, weights)
            del self._loading[key]
        flight.set_result(weights)
        return weights

    def _keep(self, key: AdapterKey, weights: AdapterWeights) -> None:
        self._kept[key] = weights
        while len(self._kept) > 1 and sum(kept.num_bytes for kept in self._kept.values()) > self._max_bytes:
            self._kept.popitem(last=False)

    def _refuse(self, key: AdapterKey, problem: AdapterRefused) -> None:
        self._refused[key] = problem
        while len(self._refused) > _REFUSALS_REMEMBERED:
            self._refused.popitem(last=False)
