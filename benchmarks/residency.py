"""Adapter residency: hit rate of the router's placement, load balance of replicas, and the cost of a thousand brands.

`python -m benchmarks.residency --law katz-a --replicas 8 --slots 100 --json` prints one JSON object. Two parts:

- A simulation with a measured popularity law (`adapter_popularity.json`). It uses the router's real `Placement` and
  each replica's real `AdapterResidency`, `Slots` and `HostCache`, with a base of one small layer, in simulated time.
  Requests arrive as a Poisson process, a replica advances `--rows` of them together, the first third is not counted.
- One real replica (tiny sd15, `--slots` slots): throughput with one brand against a thousand brands. With a thousand,
  nearly all adapters are not resident, and most are not in host memory (`--host` adapters) either, so they are read
  from disk. Blocks of both run in turns.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import random
import statistics
import tempfile
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from benchmarks.lib.workload import random_adapter
from onbrand.adapter import AdapterRef
from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.engine import Engine
from onbrand.engine.host_cache import HostCache
from onbrand.engine.request import FinishedImage, Request
from onbrand.engine.residency import AdapterResidency, Lease
from onbrand.engine.slots import Slots
from onbrand.families.bases import base_source
from onbrand.families.family import Family
from onbrand.families.loading import load_family
from onbrand.families.lora import AdapterWeights, LayerWeights, read_adapter
from onbrand.serving.adapter_store import AdapterFiles, AdapterStore
from onbrand.serving.placement import Placement, PlacementOptions
from tools.harness.engine_requests import engine_request

LAWS = Path(__file__).parent / "lib/adapter_popularity.json"
_NUM_ADAPTERS = 4500
_PICTURE_SECONDS, _TELL_SECONDS = 1.0, 1.0
_WINDOW = 2_000
"""Requests per window, enough to measure a replica's share to a few per cent."""


def popularity(law: str) -> list[float]:
    """Cumulative shares of the 4,500 most popular adapters; interpolated linearly in k, as the file prescribes."""
    known = {0: 0.0} | {int(k): share for k, share in json.loads(LAWS.read_text())[law].items()}
    shares, at = [], sorted(known)
    for low, high in pairwise(at):
        slope = (known[high] - known[low]) / (high - low)
        shares += [known[low] + slope * (k - low) for k in range(low + 1, high + 1)]
    return shares[:_NUM_ADAPTERS]


# --- simulated time -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """The adapter and the arrival time of each request, and the configuration of the platform."""

    adapters: list[AdapterKey]
    times: list[float]
    num_replicas: int
    num_slots: int
    num_rows: int
    fetch_seconds: float
    host_adapters: int


def traffic(law: str, chosen: argparse.Namespace) -> Traffic:
    """Random traffic by a popularity law, with Poisson arrivals."""
    dice = random.Random(chosen.seed)
    keys = [AdapterKey(f"brand-{k}", f"{k:064x}") for k in range(_NUM_ADAPTERS)]
    adapters = dice.choices(keys, cum_weights=popularity(law), k=chosen.requests)
    rate = chosen.load * chosen.replicas * chosen.rows / _PICTURE_SECONDS
    now, times = 0.0, []
    for _ in adapters:
        now += dice.expovariate(rate)
        times.append(now)
    return Traffic(adapters, times, chosen.replicas, chosen.slots, chosen.rows, chosen.fetch_seconds, chosen.host)


SMALL = AdapterWeights({"0": LayerWeights(torch.ones(2, 2), torch.ones(2, 2))}, 2, {})


@dataclass(eq=False)
class Asked:
    """A request in a replica."""

    key: AdapterKey
    came: float
    counted: bool
    lease: Lease | None = None


class Replica:
    """The parts of a replica that determine hits: host memory, slots, and rows that pin them."""

    def __init__(self, traffic: Traffic) -> None:
        self.residency = AdapterResidency(
            Slots(nn.Sequential(nn.Linear(2, 2)).requires_grad_(False), traffic.num_slots)
        )
        self.memory = HostCache(traffic.host_adapters * SMALL.num_bytes)
        self.waiting: deque[Asked] = deque()
        self.num_rows = traffic.num_rows
        self.under_way = 0

    def is_in_memory(self, key: AdapterKey) -> bool:
        """True if the adapter is in host memory; if not, it is fetched."""
        fetched: list[AdapterKey] = []

        def fetch() -> AdapterWeights:
            fetched.append(key)
            return SMALL

        self.memory.get(key, fetch)
        return not fetched

    def start(self) -> tuple[Asked, bool] | None:
        """Start the first waiting request that gets a row and a slot.

        Returns the request and True if its adapter was resident, or None if no request can start.
        """
        for asked in list(self.waiting) if self.num_rows else ():
            hit = asked.key in self.residency.resident
            asked.lease = self.residency.pin(asked.key, SMALL)
            if asked.lease is not None:
                self.waiting.remove(asked)
                self.num_rows -= 1
                return asked, hit
        return None

    def end(self, asked: Asked) -> None:
        """Release a finished request's row and slot."""
        assert asked.lease is not None
        self.residency.unpin(asked.lease)
        self.num_rows += 1
        self.under_way -= 1


@dataclass(slots=True)
class Counts:
    """Counts after the first third of the requests."""

    num: int = 0
    hits: int = 0
    fetches: int = 0
    served: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)


Choice = Callable[[str, dict[str, float], float], str]


def simulated(traffic: Traffic, choose: Choice, placement: Placement | None = None) -> Counts:
    """Simulate all requests, with replicas selected by `choose`."""
    replicas = {f"replica-{n}": Replica(traffic) for n in range(traffic.num_replicas)}
    counts = Counts()
    events: list[tuple[float, int, Callable[[float], None]]] = []
    serial = count()

    def at(when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, next(serial), what))

    def start_all(name: str, now: float) -> None:
        while started := replicas[name].start():
            asked, hit = started
            if asked.counted:
                counts.hits += hit
                counts.waits.append(now - asked.came)
            at(now + _PICTURE_SECONDS, lambda now, asked=asked: end(name, asked, now))

    def end(name: str, asked: Asked, now: float) -> None:
        replicas[name].end(asked)
        start_all(name, now)

    def loaded(name: str, asked: Asked, now: float) -> None:
        replicas[name].waiting.append(asked)
        start_all(name, now)

    def come(key: AdapterKey, counted: bool, now: float) -> None:
        loads = {name: float(replica.under_way) for name, replica in replicas.items()}
        name = choose(key.routing_id, loads, now)
        if placement is not None:
            placement.sent(key.routing_id, name, now)
        asked, replica = Asked(key, now, counted), replicas[name]
        replica.under_way += 1
        here = replica.is_in_memory(key)
        if counted:
            counts.num += 1
            counts.fetches += not here
            counts.served.append(name)
        at(now if here else now + traffic.fetch_seconds, lambda now: loaded(name, asked, now))

    def tell(now: float) -> None:
        assert placement is not None
        for name, replica in replicas.items():
            in_memory = [key.routing_id for key in replica.memory.kept()[:512]]
            placement.publish(name, replica.residency.holdings(), in_memory)
        if now < traffic.times[-1]:
            at(now + _TELL_SECONDS, tell)

    if placement is not None:
        at(0.0, tell)
    first = len(traffic.times) // 3
    for n, (key, when) in enumerate(zip(traffic.adapters, traffic.times, strict=True)):
        while events and events[0][0] <= when:
            now, _, what = heapq.heappop(events)
            what(now)
        come(key, n >= first, when)
    while events:
        now, _, what = heapq.heappop(events)
        what(now)
    assert len(counts.waits) == counts.num == len(traffic.times) - first, "a request was lost"
    return counts


def routed(traffic: Traffic) -> dict[str, Any]:
    """Results of the router, and of a random choice of replicas for comparison."""
    placement = Placement(PlacementOptions(capacity=traffic.num_rows))
    ours = simulated(traffic, lambda routing_id, loads, now: placement.ranked(routing_id, loads, now)[0], placement)
    dice = random.Random(0)
    lots = simulated(traffic, lambda _, loads, __: dice.choice(list(loads)))
    return {
        "hit_rate": round(ours.hits / ours.num, 4),
        "max_over_mean_load": _imbalance(ours.served, traffic.num_replicas),
        "max_over_mean_load_of_any_window": max(
            _imbalance(ours.served[at : at + _WINDOW], traffic.num_replicas)
            for at in range(0, max(1, ours.num - _WINDOW + 1), _WINDOW)
        ),
        "fetches_per_request": round(ours.fetches / ours.num, 4),
        "mean_wait_pictures": round(statistics.fmean(ours.waits) / _PICTURE_SECONDS, 4),
        "hit_rate_by_lot": round(lots.hits / lots.num, 4),
        "fetches_per_request_by_lot": round(lots.fetches / lots.num, 4),
        "mean_wait_pictures_by_lot": round(statistics.fmean(lots.waits) / _PICTURE_SECONDS, 4),
    }


def _imbalance(served: Sequence[str], num_replicas: int) -> float:
    """Requests of the busiest replica over the mean."""
    return round(max(Counter(served).values()) * num_replicas / len(served), 4)


# --- one replica for real -------------------------------------------------------------------------------------------


class Shelf:
    """One adapter per brand on this node's disk, more than fit in host memory.

    Args:
        num_kept: adapters in host memory; the others are read from disk and verified on each use.
    """

    def __init__(self, family: Family, folder: Path, num_brands: int, rank: int, num_kept: int) -> None:
        plain, header = random_adapter(family, rank, 1, "attention"), {"format": "pt"}
        tensors = safetensors.torch.load(plain)
        files = [safetensors.torch.save(tensors, header | {"brand": str(n)}) for n in range(num_brands)]
        self._refs = [
            AdapterRef(f"brand-{n}", str(uuid.UUID(int=n)), family.spec.name, 1, hashlib.sha256(file).hexdigest())
            for n, file in enumerate(files)
        ]
        num_bytes = read_adapter(plain, family).num_bytes
        self._library = AdapterStore(family, AdapterFiles(folder, 2**40), num_kept * num_bytes)
        for ref, file in zip(self._refs, files, strict=True):
            self._library.weights(ref, lambda file=file: file)

    def __len__(self) -> int:
        return len(self._refs)

    def key(self, n: int) -> AdapterKey:
        """The key of brand n's adapter."""
        return AdapterKey(self._refs[n].brand_id, self._refs[n].sha256)

    def use(self, n: int) -> AdapterUse:
        """Brand n's adapter, loaded as for a request."""
        return AdapterUse(self.key(n), self._library.weights(self._refs[n], _nowhere_else))

    def close(self) -> None:
        """Close the adapter library."""
        self._library.close()


def _nowhere_else() -> bytes:
    raise AssertionError("the node's disk has every adapter")


def seconds_for(engine: Engine, asked: Iterable[Request]) -> float:
    """Processor seconds of all threads to draw the requests, so that other processes do not affect the result.

    Making the requests is included.
    """
    began, num = time.process_time(), 0
    names = [engine.add(request) for request in asked]
    while engine.has_work:
        num += sum(isinstance(event, FinishedImage) for event in engine.step())
    assert num == len(names), "a picture was lost"
    return time.process_time() - began


def loss(chosen: argparse.Namespace) -> dict[str, Any]:
    """1 - (throughput with a thousand brands / throughput with one), including the loading of adapters."""
    family = load_family("sd15", base_source("sd15", {}))
    engine = Engine(family, num_slots=chosen.slots, max_batch=chosen.rows, batch_sizes=(chosen.rows,))
    dice, serial, size = random.Random(0), count(), 2 * chosen.rows
    steps = chosen.steps or family.recommended.num_inference_steps
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(family, Path(folder) / "adapters", chosen.brands, chosen.rank, chosen.host)

        def block(brands: Sequence[int]) -> Iterator[Request]:
            for brand in brands:
                n, use = next(serial), shelf.use(brand)
                said = f"a red square {n}"
                yield engine_request(str(n), use.key.brand_id, said, n, num_inference_steps=steps, adapters=(use,))

        seconds: dict[str, list[float]] = {"one": [], "many": []}
        misses = 0
        for warm in range(-1, chosen.blocks):
            order = ("one", "many") if warm % 2 else ("many", "one")
            for side in order:
                brands = [0] * size if side == "one" else dice.sample(range(1, len(shelf)), size)
                missing = len({shelf.key(n) for n in brands} - set(engine.residency.resident))
                taken = seconds_for(engine, block(brands))
                if warm >= 0:
                    seconds[side].append(taken)
                    misses += missing if side == "many" else 0
        copy = copy_ms(engine, [shelf.use(n) for n in range(min(200, len(shelf)))])
        shelf.close()
    ratios = [one / many for one, many in zip(seconds["one"], seconds["many"], strict=True)]
    return {
        "loss_at_1000_brands": round(1 - statistics.median(ratios), 4),
        "loss_quartiles": [round(1 - q, 4) for q in reversed(statistics.quantiles(ratios, n=4))][::2],
        "miss_rate_of_many": round(misses / (size * chosen.blocks), 3),
        "pictures_per_processor_second_of_one": round(size / statistics.median(seconds["one"]), 3),
        "copy_ms": round(copy, 3),
        "steps": steps,
    }


def copy_ms(engine: Engine, each: Sequence[AdapterUse]) -> float:
    """Median milliseconds to replace a resident adapter by another one."""
    taken = []
    for use in each:
        began = time.process_time()
        lease = engine.residency.pin(use.key, use.weights)
        taken.append(time.process_time() - began)
        assert lease is not None
        engine.residency.unpin(lease)
    return 1e3 * statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--law", default="katz-a", choices=("katz-a", "katz-b"))
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--slots", type=int, default=100)
    parser.add_argument("--rows", type=int, default=8, help="pictures that a replica advances together")
    parser.add_argument("--load", type=float, default=0.8, help="of what all replicas can draw")
    parser.add_argument("--requests", type=int, default=40_000)
    parser.add_argument("--fetch-seconds", type=float, default=0.3, help="simulated, from the store")
    parser.add_argument("--host", type=int, default=400, help="adapters in a replica's memory")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--brands", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, help="of the real pictures; default: what the base recommends")
    parser.add_argument("--blocks", type=int, default=24, help="of each kind, for the loss; 0: leave it out")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    facts = {name: getattr(chosen, name) for name in ("law", "replicas", "slots", "rows", "load", "requests")}
    found = routed(traffic(chosen.law, chosen)) | (loss(chosen) if chosen.blocks else {})
    print(json.dumps({"benchmark": "residency", **facts, **found}, indent=None if chosen.json else 2))


if __name__ == "__main__":
    main()
