"""Where adapters live: in host memory (one load per adapter, however many wait) and in slots (while rows use them).

An adapter is named by its brand and its content, so "same name, new weights" cannot be stale and one brand's bytes
never answer another brand's request. Fetching bytes is the caller's business (`onbrand.serving`).
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from threading import Lock

import torch

from onbrand.adapter import combined_sha256, routing_id
from onbrand.engine.slots import RowAdapter, Slot, Slots, rank_class
from onbrand.engine.usage import Usage
from onbrand.errors import AdapterRefused, NotAsPublished, OnbrandError
from onbrand.families.lora import AdapterWeights, LayerWeights

_REFUSALS_REMEMBERED = 1024
_QUOTAS_REMEMBERED = 4096
_HALF_LIFE = 20
"""After so many uses for each slot, a use counts half."""
_CLAIM_SECONDS = 5.0
_UNWANTED_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """The identity of weights in memory: whose they are, and the hash of their file."""

    brand_id: str
    sha256: str

    @property
    def routing_id(self) -> str:
        """What replicas publish of it."""
        return routing_id(self.brand_id, self.sha256)


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
    digest = combined_sha256([(use.key.sha256, use.scale) for use in uses])
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
    """Adapters in slots. One in use is never evicted; of the others the one that was used least lately makes room.

    "Least lately" counts uses, older ones less and less: adapters that are drawn with now and then do not flush those
    that are drawn with all the time, as they would by recency alone.

    A brand's quota is what it can count on in each rank class, not a wall: it borrows slots that nobody needs, and
    gives them back first. A brand at its quota takes no slot from one within its own, so one brand's many adapters do
    not flush the others'. Who finds every slot in use claims one: a slot is then *drained* (nobody new gets to hold it)
    until it is free, a borrowed one first, else the one that has been seated longest. So nobody waits for ever behind
    adapters that are always in use, and 17 hot adapters take turns in 16 slots. At most a quarter is drained at a time.

    One thread calls it; only `holdings` may be called from any.

    Args:
        clock: seconds; a claim that was not renewed for some time lapses.
    """

    def __init__(self, slots: Slots, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots, self._clock = slots, clock
        self._leases: OrderedDict[AdapterKey, Lease] = OrderedDict()
        self._seats: dict[AdapterKey, _Seat] = {}
        self._seatings = count()
        self._uses: Usage[AdapterKey] = Usage(_HALF_LIFE * slots.num_slots)
        self._num_uses = count()
        self._num_pins: dict[AdapterKey, int] = {}
        self._quotas: dict[str, int | None] = {}
        self._claims: dict[AdapterKey, _Claim] = {}
        self._holdings: tuple[str, ...] = ()

    @property
    def resident(self) -> list[AdapterKey]:
        """Adapters in slots, least recently used first."""
        return list(self._leases)

    def holdings(self) -> list[str]:
        """Routing ids of the adapters in slots: what a replica publishes."""
        return list(self._holdings)

    def num_pins(self, key: AdapterKey) -> int:
        """How many hold the adapter now."""
        return self._num_pins.get(key, 0)

    def pin(self, key: AdapterKey, weights: AdapterWeights, quota: int | None = None) -> Lease | None:
        """Hold `key` in a slot until `unpin`; None when it has to wait, and is to be asked again.

        Args:
            quota: slots of one rank class that the key's brand can count on; None: as many as there are.

        Raises AdapterRefused when the weights do not fit the base; then no slot was disturbed.
        """
        self._quotas[key.brand_id] = quota
        lease = self._leases.get(key)
        if lease is None:
            lease = self._put(key, weights)
        elif key in self._drained():
            lease = None
        if lease is None:
            self._claim(key, rank_class(weights.rank))
            return None
        self._claims.pop(key, None)
        self._uses.count(key, next(self._num_uses))
        self._num_pins[key] = self.num_pins(key) + 1
        self._leases.move_to_end(key)
        return lease

    def unpin(self, lease: Lease) -> None:
        """The counterpart of one `pin`. The adapter stays until its slot is needed."""
        self._num_pins[lease.key] -= 1
        if not self._num_pins[lease.key]:
            del self._num_pins[lease.key]
            self._leases.move_to_end(lease.key)
            self._seats[lease.key].last_used = self._clock()

    def withdraw(self, key: AdapterKey) -> None:
        """Nobody waits for `key` any more: the counterpart of a `pin` that answered None."""
        self._claims.pop(key, None)

    def would_yield(self, key: AdapterKey, num_holders: int, to: AdapterKey, rank: int) -> bool:
        """Whether the slot of `key` would be that of `to`, an adapter of `rank`, if so many let go of it."""
        size = rank_class(rank)
        if self._leases[key].slot.rank_class != size or self.num_pins(key) > num_holders:
            return False
        drained = self._drained()
        return drained[key] == to if key in drained else bool(self._takeable(to, size, [key]))

    # --- taking a slot ------------------------------------------------------------------------------------------

    def _put(self, key: AdapterKey, weights: AdapterWeights) -> Lease | None:
        self._slots.must_fit(weights.layers, weights.rank)
        slot = self._slots.allocate(weights.rank) or self._evicted_for(key, weights.rank)
        if slot is None:
            return None
        try:
            lease = self._leases[key] = Lease(key, slot, self._slots.write(slot, weights.layers))
        except BaseException:
            self._slots.release(slot)
            raise
        self._seats[key] = _Seat(next(self._seatings), key.routing_id, self._clock())
        self._publish()
        return lease

    def _evicted_for(self, key: AdapterKey, rank: int) -> Slot | None:
        """A slot for `key` after evicting an adapter that nobody holds and that may be taken from."""
        size, drained = rank_class(rank), self._drained()
        idle = sorted((other for other in self._of_class(size) if not self.num_pins(other)), key=self._uses.of)
        mine = [other for other in idle if drained.get(other) == key]
        others = [other for other in idle if other not in drained]
        for other in (*mine, *self._takeable(key, size, others)):
            self._slots.release(self._leases.pop(other).slot)
            del self._seats[other]
            self._publish()
            return self._slots.allocate(rank)
        return None

    def _takeable(self, key: AdapterKey, size: int, others: list[AdapterKey]) -> list[AdapterKey]:
        """Those of `others` that may make way for `key`, in their order, borrowed slots first."""
        held = Counter(other.brand_id for other in self._of_class(size))
        above = {brand for brand, num in held.items() if num > self._counts_on(brand)}
        borrowed = [other for other in others if other.brand_id in above]
        if held[key.brand_id] < self._counts_on(key.brand_id):
            return [*borrowed, *(other for other in others if other.brand_id not in above)]
        unwanted = self._clock() - _UNWANTED_SECONDS
        return [*borrowed, *(other for other in others if self._is_left(other, key.brand_id, unwanted))]

    def _is_left(self, other: AdapterKey, brand_id: str, unwanted: float) -> bool:
        """Whether a brand at its quota may take this slot: its own, or one that nobody used for long."""
        return other.brand_id == brand_id or (not self.num_pins(other) and self._seats[other].last_used < unwanted)

    def _counts_on(self, brand_id: str) -> float:
        quota = self._quotas.get(brand_id)
        return math.inf if quota is None else max(quota, 1)

    def _of_class(self, size: int) -> list[AdapterKey]:
        return [key for key, lease in self._leases.items() if lease.slot.rank_class == size]

    def _publish(self) -> None:
        self._holdings = tuple(seat.routing_id for seat in self._seats.values())
        if len(self._quotas) > _QUOTAS_REMEMBERED:
            here = {key.brand_id for key in self._leases}
            self._quotas = {brand: quota for brand, quota in self._quotas.items() if brand in here}

    # --- waiting for a slot -------------------------------------------------------------------------------------

    def _claim(self, key: AdapterKey, size: int) -> None:
        """Have a slot drained for `key`, unless one is already. A claim that nobody renewed lapses."""
        now = self._clock()
        self._claims = {k: claim for k, claim in self._claims.items() if now - claim.renewed <= _CLAIM_SECONDS}
        claim = self._claims.get(key)
        drained = claim.drained if claim else None
        if key in self._leases:  # its own slot is being drained for another: it asks for the next when it has lost it
            drained = None
        elif drained not in self._leases:
            drained = self._to_drain(key, size)
        self._claims[key] = _Claim(drained, now)

    def _to_drain(self, key: AdapterKey, size: int) -> AdapterKey | None:
        seated, drained = self._of_class(size), self._drained()
        others = [other for other in seated if other not in drained]
        if len(seated) - len(others) >= max(1, len(seated) // 4):
            return None
        others.sort(key=lambda other: self._seats[other].number)
        return next(iter(self._takeable(key, size, others)), None)

    def _drained(self) -> dict[AdapterKey, AdapterKey]:
        """The adapters that are to leave their slots, and who waits for each."""
        oldest = self._clock() - _CLAIM_SECONDS
        return {claim.drained: key for key, claim in self._claims.items() if claim.drained and claim.renewed >= oldest}


@dataclass(slots=True)
class _Seat:
    """How an adapter sits in its slot: the how manieth seating it was, what is published of it, when it was used."""

    number: int
    routing_id: str
    last_used: float


@dataclass(frozen=True, slots=True)
class _Claim:
    """Somebody waits for a slot: which adapter is to leave it, and when it was last asked for."""

    drained: AdapterKey | None
    renewed: float


class HostCache:
    """Validated adapters in host memory, least recently used first out; safe to call from many threads.

    Args:
        max_bytes: the most that adapters nobody asked for lately may keep.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._kept: OrderedDict[AdapterKey, AdapterWeights] = OrderedDict()
        self._num_bytes: dict[AdapterKey, int] = {}
        self._loading: dict[AdapterKey, Future[AdapterWeights]] = {}
        self._refused: OrderedDict[AdapterKey, OnbrandError] = OrderedDict()

    def get(self, key: AdapterKey, load: Callable[[], AdapterWeights]) -> AdapterWeights:
        """The weights of `key`; calls `load` unless they are here or on their way.

        A refused file is remembered (its content cannot change); any other failure is the loader's own, and those who
        waited for it try with their own `load`.
        """
        while True:
            flight, is_mine = self.join(key)
            if is_mine:
                self.fly(key, flight, load)
            if is_mine or flight.exception() is None:
                return flight.result()

    def join(self, key: AdapterKey) -> tuple[Future[AdapterWeights], bool]:
        """The weights of `key`, there already or to come, and whether the caller is to load them (`fly`).

        Raises AdapterRefused when they were refused before.
        """
        with self._lock:
            if key in self._refused:
                raise self._refused[key].anew()
            flight: Future[AdapterWeights] = Future()
            if key in self._kept:
                self._kept.move_to_end(key)
                flight.set_result(self._kept[key])
                return flight, False
            under_way = self._loading.setdefault(key, flight)
            return under_way, under_way is flight

    def fly(self, key: AdapterKey, flight: Future[AdapterWeights], load: Callable[[], AdapterWeights]) -> None:
        """Load what `join` gave to the caller to load; what comes of it, also what `load` raises, is in `flight`."""
        try:
            weights = load()
        except BaseException as problem:
            with self._lock:
                if isinstance(problem, AdapterRefused) and not isinstance(problem, NotAsPublished):
                    self._refuse(key, problem)
                del self._loading[key]
            flight.set_exception(problem)
            return
        with self._lock:
            self._keep(key, weights)
            del self._loading[key]
        flight.set_result(weights)

    def kept(self) -> list[AdapterKey]:
        """What is here, most recently used first."""
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
