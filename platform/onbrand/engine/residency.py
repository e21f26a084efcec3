"""Adapters on the device: which ones have a slot, which one leaves when another needs its slot."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from onbrand.engine.adapters import AdapterKey
from onbrand.engine.decayed_counts import DecayedCounts
from onbrand.engine.lora_math import RowAdapter, Slot, rank_class
from onbrand.engine.slots import Slots
from onbrand.families.lora import AdapterWeights

_QUOTAS_REMEMBERED = 4096
_HALF_LIFE = 20
"""A use counts half after this many uses per slot."""
_CLAIM_SECONDS = 5.0
_UNWANTED_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to a slot until `unpin`. The slot's version does not change meanwhile."""

    key: AdapterKey
    slot: Slot
    version: int

    def row(self, scale: float) -> RowAdapter:
        """The adapter of a batch row with this lease."""
        return RowAdapter(self.slot, self.version, scale)


class AdapterResidency:
    """Assigns slots to adapters. It never evicts an adapter in use; of the others it evicts the one used least lately.

    "Least lately" counts uses with decay (`DecayedCounts`). Adapters used now and then do not evict those used all the
    time, as they would with plain LRU.

    A brand's quota is the number of slots it can count on in each rank class, not a limit. It borrows unneeded slots,
    and gives them back first. A brand at its quota takes a slot of a brand within its own only if that slot was unused
    for 10 minutes. So many adapters of one brand do not evict the others'. If every slot is in use, a waiting adapter
    claims one. That slot is *drained* (it gets no new holders) until it is free: a borrowed one first, else the one
    loaded longest ago. So no adapter waits forever behind adapters in constant use, and 17 hot adapters take turns in
    16 slots. At most a quarter of the slots (at least one) is drained at a time.

    One thread calls it; only `holdings` may be called from any.

    Args:
        clock: seconds; a claim that was not renewed for some time lapses.
    """

    def __init__(self, slots: Slots, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots, self._clock = slots, clock
        self._leases: OrderedDict[AdapterKey, Lease] = OrderedDict()
        self._slot_infos: dict[AdapterKey, SlotInfo] = {}
        self._load_numbers = count()
        self._uses: DecayedCounts[AdapterKey] = DecayedCounts(_HALF_LIFE * slots.num_slots)
        self._num_uses = count()
        self._num_pins: dict[AdapterKey, int] = {}
        self._quotas: dict[str, int | None] = {}
        self._claims: dict[AdapterKey, SlotClaim] = {}
        self._holdings: tuple[str, ...] = ()

    @property
    def resident(self) -> list[AdapterKey]:
        """Adapters in slots, least recently used first."""
        return list(self._leases)

    def holdings(self) -> list[str]:
        """Routing ids of the adapters in slots, as replicas publish them."""
        return list(self._holdings)

    def num_pins(self, key: AdapterKey) -> int:
        """Number of current holders of the adapter."""
        return self._num_pins.get(key, 0)

    def pin(self, key: AdapterKey, weights: AdapterWeights, quota: int | None = None) -> Lease | None:
        """Hold `key` in a slot until `unpin`. None: it has to wait; call again later.

        Args:
            quota: slots of one rank class that the key's brand can count on; None: all.

        Raises AdapterRefused when the weights do not fit the base; no slot has changed then.
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
        """Undo one `pin`. The adapter stays until its slot is needed."""
        self._num_pins[lease.key] -= 1
        if not self._num_pins[lease.key]:
            del self._num_pins[lease.key]
            self._leases.move_to_end(lease.key)
            self._slot_infos[lease.key].last_used = self._clock()

    def withdraw(self, key: AdapterKey) -> None:
        """Drop the claim of `key`, after a `pin` that returned None."""
        self._claims.pop(key, None)

    def would_yield(self, key: AdapterKey, num_holders: int, to: AdapterKey, rank: int) -> bool:
        """Whether `to`, an adapter of `rank`, would get the slot of `key` if `num_holders` holders released it."""
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
        self._slot_infos[key] = SlotInfo(next(self._load_numbers), key.routing_id, self._clock())
        self._publish()
        return lease

    def _evicted_for(self, key: AdapterKey, rank: int) -> Slot | None:
        """A slot for `key`, after evicting an adapter that has no holders and may be evicted for it."""
        size, drained = rank_class(rank), self._drained()
        idle = sorted((other for other in self._of_class(size) if not self.num_pins(other)), key=self._uses.of)
        own = [other for other in idle if drained.get(other) == key]
        others = [other for other in idle if other not in drained]
        for other in (*own, *self._takeable(key, size, others)):
            self._slots.release(self._leases.pop(other).slot)
            del self._slot_infos[other]
            self._publish()
            return self._slots.allocate(rank)
        return None

    def _takeable(self, key: AdapterKey, size: int, others: list[AdapterKey]) -> list[AdapterKey]:
        """Those of `others` that may be evicted for `key`, in their order, borrowed slots first."""
        held = Counter(other.brand_id for other in self._of_class(size))
        above = {brand for brand, num in held.items() if num > self._counts_on(brand)}
        borrowed = [other for other in others if other.brand_id in above]
        if held[key.brand_id] < self._counts_on(key.brand_id):
            return [*borrowed, *(other for other in others if other.brand_id not in above)]
        unwanted = self._clock() - _UNWANTED_SECONDS
        return [*borrowed, *(other for other in others if self._is_left(other, key.brand_id, unwanted))]

    def _is_left(self, other: AdapterKey, brand_id: str, unwanted: float) -> bool:
        """Whether a brand at its quota may take this slot: it is the brand's own, or long unused."""
        return other.brand_id == brand_id or (not self.num_pins(other) and self._slot_infos[other].last_used < unwanted)

    def _counts_on(self, brand_id: str) -> float:
        quota = self._quotas.get(brand_id)
        return math.inf if quota is None else max(quota, 1)

    def _of_class(self, size: int) -> list[AdapterKey]:
        return [key for key, lease in self._leases.items() if lease.slot.rank_class == size]

    def _publish(self) -> None:
        self._holdings = tuple(info.routing_id for info in self._slot_infos.values())
        if len(self._quotas) > _QUOTAS_REMEMBERED:
            here = {key.brand_id for key in self._leases}
            self._quotas = {brand: quota for brand, quota in self._quotas.items() if brand in here}

    # --- waiting for a slot -------------------------------------------------------------------------------------

    def _claim(self, key: AdapterKey, size: int) -> None:
        """Have a slot drained for `key`, unless one is already. Claims lapse if they are not renewed."""
        now = self._clock()
        self._claims = {k: claim for k, claim in self._claims.items() if now - claim.renewed <= _CLAIM_SECONDS}
        claim = self._claims.get(key)
        drained = claim.drained if claim else None
        if key in self._leases:  # its own slot is being drained for another: it claims the next after losing it
            drained = None
        elif drained not in self._leases:
            drained = self._to_drain(key, size)
        self._claims[key] = SlotClaim(drained, now)

    def _to_drain(self, key: AdapterKey, size: int) -> AdapterKey | None:
        in_class, drained = self._of_class(size), self._drained()
        others = [other for other in in_class if other not in drained]
        if len(in_class) - len(others) >= max(1, len(in_class) // 4):
            return None
        others.sort(key=lambda other: self._slot_infos[other].number)
        return next(iter(self._takeable(key, size, others)), None)

    def _drained(self) -> dict[AdapterKey, AdapterKey]:
        """The adapters that must leave their slots, with the adapter that waits for each."""
        oldest = self._clock() - _CLAIM_SECONDS
        return {claim.drained: key for key, claim in self._claims.items() if claim.drained and claim.renewed >= oldest}


@dataclass(slots=True)
class SlotInfo:
    """An adapter in its slot: load sequence number, published routing id, and time of last use."""

    number: int
    routing_id: str
    last_used: float


@dataclass(frozen=True, slots=True)
class SlotClaim:
    """A claim on a slot: the adapter that must leave it, and the time of the last request."""

    drained: AdapterKey | None
    renewed: float
