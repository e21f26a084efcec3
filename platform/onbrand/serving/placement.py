"""Choice of a replica for a request: rendezvous hashing with bounded load, scored by queue length and miss cost.

Pure: no Ray, no torch, no clock. Used by `onbrand.serving.router` and `benchmarks/residency.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from onbrand.engine.decayed_counts import DecayedCounts

_ROUTES_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """Options that operators may set.

    Args:
        capacity: requests that a replica advances together (its `max_batch`); below it, no request waits.
        bound: most work of a replica without a free row, as a multiple of the mean.
        hot_share: traffic that one home serves, as a part of a replica's fair share; more traffic gives more homes.
        half_life: seconds after which traffic and work count half.
        fetch_cost: cost of fetching an adapter that a replica does not have, in drawing times of one image.
        copy_cost: the same, of copying one from the replica's memory into a slot.
        away_cost: the same, of drawing away from the adapter's homes, where it takes a slot from adapters at home.
        believed_seconds: how long a sent request's adapter is assumed to be there, until the replica publishes it.
    """

    capacity: int = 8
    bound: float = 1.25
    hot_share: float = 0.5
    half_life: float = 60.0
    fetch_cost: float = 1.0
    copy_cost: float = 0.125
    away_cost: float = 0.5
    believed_seconds: float = 30.0


def rendezvous(routing_id: str, replicas: Iterable[str]) -> list[str]:
    """The replicas in order of preference as homes of the adapter (Thaler and Ravishankar 1998).

    A replica that joins or leaves does not change the order of the others. All routers agree without communication.
    """
    return sorted(replicas, key=lambda name: hashlib.blake2b(f"{routing_id}/{name}".encode(), digest_size=8).digest())


def below_bound(loads: Mapping[str, float], bound: float) -> list[str]:
    """The replicas that may take one more: their load is below `bound` times the mean with it (Mirrokni et al. 2018).

    There is always one: not all can be above the mean.
    """
    limit = math.ceil(bound * (sum(loads.values()) + 1) / len(loads))
    return [name for name, load in loads.items() if load < limit]


@dataclass(slots=True)
class _Known:
    """The adapters that one replica published, and the time of later requests sent there, by adapter."""

    slots: frozenset[str] = frozenset()
    memory: frozenset[str] = frozenset()
    sent: dict[str, float] = field(default_factory=dict)


class Placement:
    """Chooses a replica for each request; remembers traffic, published adapters, and the requests it sent.

    Every ingress has its own. All agree on homes. Each bounds its own requests, so the sum is bounded too.
    """

    def __init__(self, options: PlacementOptions | None = None) -> None:
        self.options = options or PlacementOptions()
        self._traffic: DecayedCounts[str] = DecayedCounts(self.options.half_life)
        self._work: DecayedCounts[str] = DecayedCounts(self.options.half_life)
        self._known: dict[str, _Known] = {}

    def publish(self, replica: str, slots: Collection[str], memory: Collection[str] = ()) -> None:
        """Record the adapters that a replica has in slots and in memory."""
        known = self._known.setdefault(replica, _Known())
        known.slots, known.memory = frozenset(slots), frozenset(memory)
        known.sent = {name: sent for name, sent in known.sent.items() if name not in known.slots}

    def keep_only(self, replicas: Collection[str]) -> None:
        """Forget all other replicas."""
        self._known = {name: known for name, known in self._known.items() if name in replicas}

    def ranked(self, routing_id: str, loads: Mapping[str, float], now: float) -> list[str]:
        """All replicas, the best for a request of this adapter first. "" stands for the base.

        Candidates are the adapter's homes, other replicas with it in a slot, and the next in the order, sorted by queue
        plus miss cost. A replica without free rows and with work above the bound is no candidate.

        Args:
            loads: requests under way at each replica.
            now: seconds, never decreasing.
        """
        if not routing_id or len(loads) < 2:
            return sorted(loads, key=loads.__getitem__)
        order = rendezvous(routing_id, loads)
        allowed = set(below_bound({name: self._work.of(name) for name in order}, self.options.bound))
        taking = [name for name in order if loads[name] < self.options.capacity or name in allowed]
        homes = taking[: self.num_homes(routing_id, len(order))]
        away = taking[len(homes) :]
        costs = {name: self._cost(routing_id, name, loads[name], now) for name in homes}
        for name in away:
            if name is away[0] or self._is_at(routing_id, name, now):
                costs[name] = self._cost(routing_id, name, loads[name], now) + self.options.away_cost
        chosen = sorted(costs, key=costs.__getitem__)
        rest = [name for name in taking if name not in costs]
        return [*chosen, *rest, *(name for name in order if name not in taking)]

    def sent(self, routing_id: str, replica: str, now: float) -> None:
        """Record that a request was sent to the replica."""
        self._work.count(replica, now)
        if not routing_id:
            return
        self._traffic.count(routing_id, now)
        sent = self._known.setdefault(replica, _Known()).sent
        sent.pop(routing_id, None)
        sent[routing_id] = now
        if len(sent) > _ROUTES_REMEMBERED:
            del sent[next(iter(sent))]

    def num_homes(self, routing_id: str, num_replicas: int) -> int:
        """Number of home replicas of the adapter; it grows with the adapter's traffic."""
        wanted = math.ceil(self._traffic.share(routing_id) * num_replicas / self.options.hot_share)
        return min(max(wanted, 1), num_replicas)

    def _is_at(self, routing_id: str, replica: str, now: float) -> bool:
        """Whether the adapter is in a slot there: published, or expected since a request was sent there."""
        known = self._known.get(replica)
        if known is None:
            return False
        sent = known.sent.get(routing_id)
        return routing_id in known.slots or (sent is not None and now - sent <= self.options.believed_seconds)

    def _cost(self, routing_id: str, replica: str, load: float, now: float) -> float:
        """Estimated wait for the request there, in drawing times of one image: its queue, and loading its adapter."""
        line = load / self.options.capacity
        if self._is_at(routing_id, replica, now):
            return line
        known = self._known.get(replica)
        is_near = known is not None and routing_id in known.memory
        return line + (self.options.copy_cost if is_near else self.options.fetch_cost)
