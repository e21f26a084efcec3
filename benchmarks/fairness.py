"""Fairness: the effect of one flooding brand on others, and the balance of service between brands that wait.

`python -m benchmarks.fairness --json` prints one JSON object. Two parts, on the real engine:

- Nine brands send requests as Poisson processes, with and without a tenth brand that sends 50 times their total. Both
  worlds have the same arrivals of the nine and run in turns, step by step. Results of `--runs` such pairs are pooled.
- Ten brands with different weights and two shapes, all with more requests than can be served.

`max_service_gap_steps` is the largest lead in service of one brand over another, over both parts, measured from the
moment when both have unserved rows. Service is rows times work over weight, counted from the engine's events; the unit
is a batch step of the leading brand. `benchmarks/lib/traffic.py` defines time.

All passes have one fixed size, as compiled graphs have. With `--batch-sizes doubling` a pass with fewer rows costs
less, on a CPU in proportion to its rows. Without the flood the nine then have the whole machine, which is more than a
fair share under any scheduler.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

import torch

from benchmarks.lib.traffic import (
    BATCH_SIZES,
    MAX_BATCH,
    Arrival,
    Brands,
    World,
    base,
    capacity,
    percentile,
    poisson,
    run_together,
)
from onbrand.engine.adapters import AdapterUse
from onbrand.engine.batch import EngineJob
from onbrand.engine.engine import Engine
from onbrand.engine.request import Event, Progress, Request
from tools.harness.engine_requests import engine_request

NUM_VICTIMS = 9
FLOOD = NUM_VICTIMS
FLOOD_FACTOR = 50
STEPS = (3, 4, 5, 6)
WEIGHTS = (1.0, 2.0, 0.5, 1.0, 4.0, 1.0, 1.0, 2.0, 0.5, 1.0)


def one_picture(name: str, use: AdapterUse, steps: int, **more: Any) -> Request:
    """A request for one small picture without guidance."""
    numbers = {"height": 64, "width": 64, "guidance_scale": 1.0, "true_cfg_scale": 1.0, **more}
    return engine_request(
        name, use.key.brand_id, "a red square", 0, num_inference_steps=steps, adapters=(use,), **numbers
    )


class Ledger:
    """Service of each brand, and the largest lead of one over another while both have unserved rows."""

    def __init__(self) -> None:
        self.gap_steps = 0.0
        self._served: Counter[str] = Counter()
        self._since: dict[tuple[str, str], float] = {}
        self._batch_step: dict[str, float] = {}
        self._could: dict[str, tuple[EngineJob, int]] = {}
        self._done: Counter[str] = Counter()

    def before(self, engine: Engine) -> None:
        """Before a step: record the jobs that could take part."""
        self._could = {job.request.id: (job, job.num_to_step) for job in engine._jobs.values() if job.num_to_step}

    def after(self, events: Iterable[Event]) -> None:
        """After a step: count the service of the jobs that took part, and update the gap."""
        before, rows = self._served.copy(), Counter[str]()
        for event in events:
            if isinstance(event, Progress):
                rows[event.request_id] = event.done - self._done[event.request_id]
                self._done[event.request_id] = event.done
        for name, num in rows.items():
            job = self._could[name][0]
            self._served[job.brand_id] += num * job.step_charge
            largest = max(self._batch_step.get(job.brand_id, 0.0), MAX_BATCH * job.step_charge)
            self._batch_step[job.brand_id] = largest
        self._compare({job.brand_id for name, (job, num) in self._could.items() if num > rows[name]}, before)

    def _compare(self, left: set[str], before: Counter[str]) -> None:
        pairs = {(a, b) for a in left for b in left if a != b}
        self._since = {pair: start for pair, start in self._since.items() if pair in pairs}
        for a, b in pairs:
            ahead = self._served[a] - self._served[b] - self._since.setdefault((a, b), before[a] - before[b])
            if ahead > 0:
                self.gap_steps = max(self.gap_steps, ahead / self._batch_step[a])


def world(brands: Brands, rate: float, num: int, seed: int, batch_sizes: tuple[int, ...], flooded: bool) -> World:
    """A world with requests of the nine brands, and the flood if `flooded`."""
    engine = Engine(base(brands.family_name), max_batch=MAX_BATCH, batch_sizes=batch_sizes)
    uses = [brands.use(engine.family, n) for n in range(NUM_VICTIMS + 1)]
    arrivals = _stream(random.Random(seed), uses[:FLOOD], rate, num, "victim")
    if flooded:
        until, dice = arrivals[-1].at, random.Random(seed + 1)
        flood = _stream(dice, uses[FLOOD:], FLOOD_FACTOR * rate, int(FLOOD_FACTOR * rate * until), "flood")
        arrivals = sorted([*arrivals, *flood], key=lambda arrival: arrival.at)
    return World(engine, arrivals, watch=Ledger())


def _stream(dice: random.Random, uses: list[AdapterUse], rate: float, num: int, name: str) -> list[Arrival]:
    requests = (one_picture(f"{name}-{n}", dice.choice(uses), dice.choice(STEPS)) for n in range(num))
    return list(poisson(dice, rate, requests))


def under_flood(
    brands: Brands, rate: float, num: int, seeds: Sequence[int], batch_sizes: tuple[int, ...]
) -> tuple[dict[str, Any], float]:
    """Latencies of the nine with and without the flood, over all seeds, and the largest gap."""
    waited: dict[str, list[float]] = {"solo": [], "flooded": []}
    num_steps: Counter[str] = Counter()
    flood = {"drawn": 0, "refused": 0}
    gap = 0.0
    for seed in seeds:
        worlds = {name: world(brands, rate, num, seed, batch_sizes, name == "flooded") for name in waited}
        run_together(
            list(worlds.values()),
            until=lambda worlds=worlds: all(_victims_told(each) == num for each in worlds.values()),
        )
        for name, each in worlds.items():
            latencies = each.latencies(lambda request: request.id.startswith("victim"))
            assert len(latencies) == num, f"{num - len(latencies)} of the nine were refused"
            waited[name] += latencies
            num_steps[name] += each.num_steps
        flooded = worlds["flooded"]
        flood["drawn"] += len(flooded.told) - num
        flood["refused"] += flooded.num_refused
        gap = max(gap, flooded.watch.gap_steps)
    facts: dict[str, Any] = {
        name: {
            "p50_seconds": round(statistics.median(latencies), 4),
            "p99_seconds": round(percentile(latencies, 0.99), 4),
            "steps": num_steps[name],
        }
        for name, latencies in waited.items()
    }
    return {**facts, "flood": flood}, gap


def _victims_told(each: World) -> int:
    return sum(name.startswith("victim") for name in each.told)


def all_wait(brands: Brands, num_steps: int) -> float:
    """The largest gap if every brand always has waiting requests, with different weights, shapes and steps."""
    engine = Engine(base(brands.family_name), max_batch=MAX_BATCH)
    uses = [brands.use(engine.family, n) for n in range(NUM_VICTIMS + 1)]
    dice, names = random.Random(0), count()
    ledger = Ledger()
    each_world = World(engine, [], watch=ledger)
    while each_world.num_steps < num_steps:
        for n, (use, weight) in enumerate(zip(uses, WEIGHTS, strict=True)):
            while sum(job.brand_id == use.key.brand_id for job in engine._jobs.values()) < 12:
                side = 64 if n % 2 else 96
                engine.add(one_picture(f"{next(names)}", use, dice.choice(STEPS), weight=weight, width=side))
        each_world.step()
    return ledger.gap_steps


def measure(
    family_name: str, num: int, load: float, seeds: Sequence[int], batch_sizes: tuple[int, ...] = (MAX_BATCH,)
) -> dict[str, Any]:
    """All results, with one run per seed."""
    brands = Brands.new(family_name, NUM_VICTIMS + 1)
    for num_sampled in (8, 64):  # the first sample is a warm-up
        engine = Engine(base(family_name), max_batch=MAX_BATCH, batch_sizes=batch_sizes)
        uses = [brands.use(engine.family, n) for n in range(NUM_VICTIMS)]
        sample = _stream(random.Random(-1), uses, 1.0, num_sampled, "sample")
        most = capacity(engine, [arrival.request for arrival in sample])
    facts, gap = under_flood(brands, load * most, num, seeds, batch_sizes)
    gaps = {"under_flood": round(gap, 3), "all_wait": round(all_wait(brands, num // 2), 3)}
    return {
        "victim_p99_over_solo": round(facts["flooded"]["p99_seconds"] / facts["solo"]["p99_seconds"], 3),
        "victim_p50_over_solo": round(facts["flooded"]["p50_seconds"] / facts["solo"]["p50_seconds"], 3),
        "max_service_gap_steps": max(gaps.values()),
        "service_gap_steps": gaps,
        "capacity_per_second": round(most, 3),
        **facts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="sd15", choices=("sd15", "sdxl", "flux"))
    parser.add_argument("--requests", type=int, default=300, help="of the nine together, in each run")
    parser.add_argument("--load", type=float, default=0.4, help="of the nine together, as a share of the capacity")
    parser.add_argument("--runs", type=int, default=3, help="pairs of worlds, each with arrivals of its own")
    parser.add_argument("--batch-sizes", default="fixed", choices=tuple(BATCH_SIZES), help="sizes of forward passes")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    facts = {"family": chosen.family, "requests": chosen.requests, "load": chosen.load, "max_batch": MAX_BATCH}
    facts |= {"flood_factor": FLOOD_FACTOR}
    facts |= {"runs": chosen.runs, "batch_sizes": chosen.batch_sizes}
    figures = measure(chosen.family, chosen.requests, chosen.load, range(chosen.runs), BATCH_SIZES[chosen.batch_sizes])
    print(json.dumps({**facts, **figures}, indent=None if chosen.json else 2))


if __name__ == "__main__":
    main()
