"""Joining and leaving at any step against request-level batching, on the same engine.

`python -m benchmarks.latency --json` prints one JSON object. Requests of several brands with mixed numbers of steps
come as a Poisson process at 80 % of what the engine can do when all are there at once; a second time at 80 % of what
request-level batching can (`p99_at_request_levels_load`), which is less: the first load may be more than it can serve,
and how late its last ones are is then a question of how long one looks.

Request-level batching lets as many as fit into a batch in together, and the next when all of them are told; it is given
that rows of one batch may have different adapters and numbers of steps, and that who is through is told at once. The
same arrivals go to both, and the two take turns step by step; see `benchmarks/traffic.py` for what counts as time.

All passes have one fixed size, as compiled graphs have, so that a row that is through leaves a dummy in its place. With
`--classes doubling` a batch shrinks as its rows leave, and on a CPU a pass costs what its rows cost: then a batch that
runs empty loses little.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from typing import Any

import torch

from benchmarks.traffic import CLASSES, MAX_BATCH, Brands, World, base, capacity, percentile, poisson, run_together
from onbrand.engine.engine import Engine
from onbrand.engine.request import Request
from onbrand.families.family import Family

STEPS = (4, 8, 20)
NUM_BRANDS = 8


def mixed_requests(family: Family, brands: Brands, num: int, seed: int) -> list[Request]:
    """One picture each, of a brand, a prompt and a number of steps by chance."""
    dice = random.Random(seed)
    uses = [brands.use(family, n) for n in range(NUM_BRANDS)]
    requests = []
    for n in range(num):
        use = dice.choice(uses)
        steps = dice.choice(STEPS)
        requests.append(
            Request(
                f"{n}",
                use.key.brand_id,
                "a red square on blue",
                n,
                height=64,
                width=64,
                num_inference_steps=steps,
                guidance_scale=1.0,
                true_cfg_scale=1.0,
                adapters=(use,),
            )
        )
    return requests


def compare(brands: Brands, num: int, rate: float, seed: int, classes: tuple[int, ...]) -> dict[str, Any]:
    """The same arrivals through both."""
    worlds = {}
    for name, num_at_once in (("step_level", None), ("request_level", MAX_BATCH)):
        family = base(brands.family_name)
        arrivals = list(poisson(random.Random(seed), rate, mixed_requests(family, brands, num, seed)))
        engine = Engine(family, max_batch=MAX_BATCH, classes=classes, max_waiting=num, max_waiting_per_brand=num)
        worlds[name] = World(engine, arrivals, num_at_once)
    run_together(list(worlds.values()))
    facts: dict[str, Any] = {}
    for name, world in worlds.items():
        latencies = world.latencies()
        assert len(latencies) == num
        facts[name] = {
            "p50_seconds": round(statistics.median(latencies), 3),
            "p99_seconds": round(percentile(latencies, 0.99), 3),
            "per_second": round(num / max(world.told.values()), 3),
        }
    return facts


def measure(family_name: str, num: int, load: float, seed: int, classes: tuple[int, ...]) -> dict[str, Any]:
    """All figures of one run."""
    brands = Brands.new(family_name, NUM_BRANDS)
    most = {}
    for name, num_at_once in (("first", None), ("step_level", None), ("request_level", MAX_BATCH)):
        engine = Engine(base(family_name), max_batch=MAX_BATCH, classes=classes)
        num_sampled = 8 if name == "first" else 48  # the first steps of a process are slow, and not counted
        most[name] = capacity(engine, mixed_requests(engine.family, brands, num_sampled, seed + 1), num_at_once)
    ours = compare(brands, num, load * most["step_level"], seed, classes)
    theirs = compare(brands, num, load * most["request_level"], seed, classes)
    return {
        "p99_over_request_level": _ratio(ours, "p99_seconds"),
        "throughput_over_request_level": _ratio(ours, "per_second"),
        "p99_at_request_levels_load": _ratio(theirs, "p99_seconds"),
        "capacity_over_request_level": round(most["step_level"] / most["request_level"], 3),
        "capacity_per_second": round(most["step_level"], 3),
        "at_load": ours,
        "at_request_levels_load": theirs,
    }


def _ratio(facts: dict[str, Any], name: str) -> float:
    return round(facts["step_level"][name] / facts["request_level"][name], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="sd15", choices=("sd15", "sdxl", "flux"))
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--load", type=float, default=0.8, help="share of the measured capacity")
    parser.add_argument("--classes", default="fixed", choices=tuple(CLASSES), help="the sizes that batches come in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    facts = {"family": chosen.family, "requests": chosen.requests, "load": chosen.load, "max_batch": MAX_BATCH}
    facts |= {"steps": STEPS, "brands": NUM_BRANDS, "classes": chosen.classes}
    figures = measure(chosen.family, chosen.requests, chosen.load, chosen.seed, CLASSES[chosen.classes])
    print(json.dumps({**facts, **figures}, indent=None if chosen.json else 2))


if __name__ == "__main__":
    main()
