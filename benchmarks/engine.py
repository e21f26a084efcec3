"""Mixed-brand batches against one brand's batch, and against four other ways to draw the same requests.

`python -m benchmarks.engine --family sd15 --brands 8 --json` prints one JSON object. Ratios come from one run, whose
parts take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import PEERS, WITH_PROCESSES, Peer
from benchmarks.recompiles import brand_switches
from benchmarks.workload import Workload, random_adapter, workload
from onbrand.engine.engine import Engine
from onbrand.engine.kernels import keep_memory
from onbrand.engine.request import Picture, Request
from onbrand.families.bases import base_source
from onbrand.families.family import load_family

__all__ = ["measure", "random_adapter", "through_engine", "workload"]


def through_engine(engine: Engine, requests: list[Request]) -> list[torch.Tensor]:
    """The pictures, in the order of the requests."""
    for request in requests:
        engine.add(request)
    drawn = {}
    while engine.has_work:
        drawn |= {event.request_id: event.image_CHW for event in engine.step() if isinstance(event, Picture)}
    return [drawn[request.id] for request in requests]


def seconds_of(parts: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least seconds of each part, which take turns: what a part needs; the rest is the machine's other work."""
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for part in parts.values():
        part()
    for _ in range(repeats):
        for name, part in parts.items():
            began = time.perf_counter()
            part()
            taken[name].append(time.perf_counter() - began)
    return {name: min(values) for name, values in taken.items()}


def measure(work: Workload, peers: Sequence[str], repeats: int) -> dict[str, Any]:
    """Ratios, the largest difference to any peer's picture, and seconds of all parts.

    Peers with processes of their own come last, each against a mixed batch beside it: Ray takes part of a processor
    also while it waits, which would be taken from all others.
    """
    num = len(work.requests)
    one_brand = [
        replace(request, id=str(n), brand_id="b0", adapters=work.requests[0].adapters)
        for n, request in enumerate(work.requests)
    ]
    base = [replace(request, adapters=()) for request in work.requests]
    engine = Engine(work.family, max_batch=num, num_slots=num)
    ours = through_engine(engine, work.requests)
    mixed = {"mixed": lambda: through_engine(engine, work.requests)}
    variants = {"single": lambda: through_engine(engine, one_brand), "base": lambda: through_engine(engine, base)}
    beside = [name for name in peers if name in WITH_PROCESSES]
    seconds: dict[str, float] = {}
    over: dict[str, float] = {}
    errors = []
    for names in [[name for name in peers if name not in beside], *([name] for name in beside)]:
        with ExitStack() as stack:
            here = {name: PEERS[name](work) for name in names}
            for peer in here.values():
                stack.callback(peer.close)
            errors += [_difference(ours, peer.draw()) for peer in here.values()]
            found = seconds_of({**mixed, **({} if seconds else variants), **_draws(here)}, repeats)
        over |= {f"over_{name}": round(found[name] / found["mixed"], 3) for name in here}
        seconds = found | seconds
    return {
        "mixed_over_single": round(seconds["single"] / seconds["mixed"], 3),
        **over,
        "max_error": max(errors, default=None),
        "mixed_over_base": round(seconds["base"] / seconds["mixed"], 3),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def _draws(peers: dict[str, Peer]) -> dict[str, Callable[[], object]]:
    return {name: peer.draw for name, peer in peers.items()}


def _difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="sd15", choices=("sd15", "sdxl", "flux"))
    parser.add_argument("--brands", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, help="default: what the base recommends")
    parser.add_argument("--targets", default="all", choices=("attention", "strong", "all"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of engine and peers; default: as many as cores"
    )
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="default: all")
    parser.add_argument(
        "--switches", type=int, default=10_000, help="rows that change brands in the count of recompiles"
    )
    parser.add_argument("--base", help="a folder with a base; default: the tiny flavour that ships with Onbrand")
    parser.add_argument("--real-shapes", action="store_true", help="full-size denoisers with random weights, on a GPU")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    chosen = parser.parse_args()
    if chosen.real_shapes:
        from benchmarks.real_shapes import main as real_shapes

        real_shapes(chosen.family, chosen.brands, chosen.rank, chosen.repeats)
        return
    print(json.dumps(on_cpu(chosen), indent=None if chosen.json else 2))


def on_cpu(chosen: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run with a small base."""
    torch.set_num_threads(chosen.threads)
    keep_memory()
    base = Path(chosen.base or base_source(chosen.family, {}))
    family = load_family(chosen.family, base)
    work = workload(family, base, chosen.brands, chosen.rank, chosen.steps, chosen.targets)
    facts: dict[str, Any] = {"family": chosen.family, "brands": chosen.brands, "rank": chosen.rank}
    facts |= {"steps": work.requests[0].num_inference_steps, "targets": chosen.targets}
    facts |= {"threads": chosen.threads, "torch": torch.__version__}
    figures = measure(work, chosen.peers, chosen.repeats)
    switches = brand_switches(family, chosen.switches)
    return {**facts, "device": platform.processor() or platform.machine(), **figures, **switches}


if __name__ == "__main__":
    main()
