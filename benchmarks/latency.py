"""Step-level batching (requests join and leave at any step) against request-level batching, on the same engine.

`python -m benchmarks.latency --json` prints one JSON object. Requests of several brands with mixed numbers of steps
arrive as a Poisson process at 80 % of the engine's capacity with step-level batching. A second run uses 80 % of the
capacity with request-level batching (`p99_at_request_levels_load`), which is lower: the first load may exceed it, and
its latencies then only depend on the length of the run.

Request-level batching admits a full batch, and the next one after all of its requests are finished. It may also mix
adapters and numbers of steps in a batch, and each finished request is returned at once. Both get the same arrivals and
run in turns, step by step. `benchmarks/lib/traffic.py` defines time.

All passes have one fixed size, as compiled graphs have, so a finished row is replaced by a dummy. With
`--batch-sizes doubling` a batch shrinks as rows finish, and on a CPU the cost of a pass is proportional to its rows:
then a half-empty batch loses little.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from typing import Any

import torch

from benchmarks.lib.traffic import (
    BATCH_SIZES,
    MAX_BATCH,
    Brands,
    World,
    base,
    capacity,
    percentile,
    poisson,
    run_together,
)
from onbrand.engine.engine import Engine
from onbrand.engine.request import Request
from onbrand.families.family import Family
from tools.harness.engine_requests import engine_request

STEPS = (4, 8, 20)
NUM_BRANDS = 8


def mixed_requests(family: Family, brands: Brands, num: int, seed: int) -> list[Request]:
    """Requests for one picture each, with a random brand and number of steps, and the same prompt."""
    dice = random.Random(seed)
    uses = [brands.use(family, n) for n in range(NUM_BRANDS)]
    requests = []
    for n in range(num):
        use = dice.choice(uses)
        steps = dice.choice(STEPS)
        requests.append(
            engine_request(
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


def compare(brands: Brands, num: int, rate: float, seed: int, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    """Results of both kinds of batching for the same arrivals."""
    worlds = {}
    for name, num_at_once in (("step_level", None), ("request_level", MAX_BATCH)):
        family = base(brands.family_name)
        arrivals = list(poisson(random.Random(seed), rate, mixed_requests(family, brands, num, seed)))
        engine = Engine(
            family, max_batch=MAX_BATCH, batch_sizes=batch_sizes, max_waiting=num, max_waiting_per_brand=num
        )
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


def measure(family_name: str, num: int, load: float, seed: int, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    """All results of the benchmark."""
    brands = Brands.new(family_name, NUM_BRANDS)
    most = {}
    for name, num_at_once in (("first", None), ("step_level", None), ("request_level", MAX_BATCH)):
        engine = Engine(base(family_name), max_batch=MAX_BATCH, batch_sizes=batch_sizes)
        num_sampled = 8 if name == "first" else 48  # the first sample is a warm-up
        most[name] = capacity(engine, mixed_requests(engine.family, brands, num_sampled, seed + 1), num_at_once)
    ours = compare(brands, num, load * most["step_level"], seed, batch_sizes)
    theirs = compare(brands, num, load * most["request_level"], seed, batch_sizes)
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
    parser.add_argument("--batch-sizes", default="fixed", choices=tuple(BATCH_SIZES), help="sizes of forward passes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    facts = {"family": chosen.family, "requests": chosen.requests, "load": chosen.load, "max_batch": MAX_BATCH}
    facts |= {"steps": STEPS, "brands": NUM_BRANDS, "batch_sizes": chosen.batch_sizes}
    figures = measure(chosen.family, chosen.requests, chosen.load, chosen.seed, BATCH_SIZES[chosen.batch_sizes])
    print(json.dumps({**facts, **figures}, indent=None if chosen.json else 2))


if __name__ == "__main__":
    main()
