"""Mixed-brand batches against single-brand batches, and against four other ways to draw the same requests.

`python -m benchmarks.engine --family sd15 --brands 8 --json` prints one JSON object. The variants run in turns. A ratio
is the median over turns, so that changes in the machine's speed affect all variants of a turn equally. `quartiles`
shows the spread of the turns; `seconds` is the minimum of each variant.

`--real-shapes`, on a CUDA GPU: the same with a full-size base with random weights (`lib/random_base.py`) in bfloat16,
compiled. Prints one object for each picture size and number of steps, and one for brand switches.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any, NamedTuple

import torch

from benchmarks.lib.architectures import ARCHITECTURES
from benchmarks.lib.peers import PEERS, WITH_PROCESSES, Peer
from benchmarks.lib.random_base import random_base
from benchmarks.lib.workload import Workload, random_adapter, workload
from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.compilation import keep_memory
from onbrand.engine.engine import Engine
from onbrand.engine.request import FinishedImage, Request
from onbrand.families.bases import base_source
from onbrand.families.family import Family
from onbrand.families.loading import load_family
from onbrand.families.lora import AdapterWeights, read_adapter
from tools.harness.brand_switches import RANKS, brand_switches

_STEPS = (4, 28)
"""A low and a high number of steps, used with `--real-shapes`."""


def through_engine(engine: Engine, requests: list[Request]) -> list[torch.Tensor]:
    """The pictures, in the order of the requests."""
    for request in requests:
        engine.add(request)
    drawn = {}
    while engine.has_work:
        drawn |= {event.request_id: event.image_CHW for event in engine.step() if isinstance(event, FinishedImage)}
    return [drawn[request.id] for request in requests]


def seconds_of(parts: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """The seconds of each variant in each turn, after a warm-up turn."""
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for part in parts.values():
        part()
    for _ in range(repeats):
        for name, part in parts.items():
            began = time.perf_counter()
            part()
            taken[name].append(time.perf_counter() - began)
    return taken


class Ratio(NamedTuple):
    """A ratio of times: its median over turns, and the first and third quartile."""

    median: float
    quartiles: tuple[float, float]


def over(mixed: Sequence[float], other: Sequence[float]) -> Ratio:
    """Time of another variant over the time of a mixed batch in the same turn."""
    first, median, third = quantiles([b / a for a, b in zip(mixed, other, strict=True)], n=4, method="inclusive")
    return Ratio(round(median, 3), (round(first, 3), round(third, 3)))


def of_ranks(family: Family, ranks: Sequence[int], preset: str) -> list[AdapterUse]:
    """One adapter per rank, each of its own brand."""
    read = [read_adapter(random_adapter(family, rank, rank, preset), family) for rank in ranks]
    return [AdapterUse(AdapterKey(f"rank-{weights.rank}", str(weights.rank)), weights) for weights in read]


def switched_adapters(family: Family, preset: str) -> list[AdapterWeights]:
    """The adapters that take turns in `brand_switches`."""
    return [read_adapter(random_adapter(family, rank, rank, preset), family) for rank in RANKS]


def measure(
    work: Workload, engine: Engine, peers: Sequence[str], repeats: int, ranked: Sequence[AdapterUse] = ()
) -> dict[str, Any]:
    """Ratios, the largest difference to any peer's picture, and the minimum seconds of all variants.

    Peers with their own processes run last, each in turns with a mixed batch only: an idle Ray also uses the processor,
    which would slow the other variants.

    Args:
        repeats: turns, at least 2.
        ranked: adapters of different ranks; a batch with all of them is compared with batches of each alone.
    """
    one_brand = [
        replace(request, id=str(n), brand_id="b0", adapters=work.requests[0].adapters)
        for n, request in enumerate(work.requests)
    ]
    base = [replace(request, adapters=()) for request in work.requests]
    ours = through_engine(engine, work.requests)
    mixed = {"mixed": lambda: through_engine(engine, work.requests)}
    variants = {"single": lambda: through_engine(engine, one_brand), "base": lambda: through_engine(engine, base)}
    for use in ranked:
        variants[f"rank {use.weights.rank}"] = partial(through_engine, engine, _with(work.requests, [use]))
    if ranked:
        variants["ranks"] = partial(through_engine, engine, _with(work.requests, ranked))
    beside = [name for name in peers if name in WITH_PROCESSES]
    seconds: dict[str, float] = {}
    ratios: dict[str, Ratio] = {}
    errors = []
    for names in [[name for name in peers if name not in beside], *([name] for name in beside)]:
        with ExitStack() as stack:
            here = {name: PEERS[name](work) for name in names}
            for peer in here.values():
                stack.callback(peer.close)
            errors += [_difference(ours, peer.draw()) for peer in here.values()]
            found = seconds_of({**mixed, **({} if seconds else variants), **_draws(here)}, repeats)
        keys = {name: f"over_{name}" for name in here} | {name: f"mixed_over_{name}" for name in ("single", "base")}
        ratios |= {key: over(found["mixed"], found[name]) for name, key in keys.items() if name in found}
        if "ranks" in found:
            of_rows = islice(cycle(ranked), len(work.requests))  # each rank as often as it has rows
            alone = [found[f"rank {use.weights.rank}"] for use in of_rows]
            ratios["mixed_ranks_over_single"] = over(found["ranks"], [fmean(turn) for turn in zip(*alone, strict=True)])
        seconds = {name: round(min(values), 3) for name, values in found.items()} | seconds
    return {
        **{name: ratio.median for name, ratio in ratios.items()},
        "max_error": max(errors, default=None),
        "quartiles": {name: ratio.quartiles for name, ratio in ratios.items()},
        "seconds": seconds,
    }


def _with(requests: Sequence[Request], uses: Sequence[AdapterUse]) -> list[Request]:
    """The requests with these adapters, assigned in rotation."""
    return [
        replace(request, id=str(n), brand_id=use.key.brand_id, adapters=(use,))
        for n, (request, use) in enumerate(zip(requests, cycle(uses), strict=False))
    ]


def _draws(peers: dict[str, Peer]) -> dict[str, Callable[[], object]]:
    return {name: peer.draw for name, peer in peers.items()}


def _difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="sd15", choices=("sd15", "sdxl", "flux"))
    parser.add_argument("--brands", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument(
        "--ranks", type=int, nargs="*", default=[4, 16, 64], help="of a batch of different ranks; not on a GPU"
    )
    parser.add_argument("--steps", type=int, help="default: what the base recommends")
    parser.add_argument(
        "--targets", choices=("attention", "strong", "all"), help="default: all; with --real-shapes attention"
    )
    parser.add_argument("--repeats", type=int, help="turns, at least 2; default: 11; with --real-shapes 5")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of engine and peers; default: as many as cores"
    )
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="default: all")
    parser.add_argument(
        "--switches", type=int, default=10_000, help="rows that change brands in the count of recompiles"
    )
    parser.add_argument("--base", help="a folder with a base; default: the tiny flavour that ships with Onbrand")
    parser.add_argument("--real-shapes", action="store_true", help="full-size bases with random weights, on a GPU")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    chosen = parser.parse_args()
    chosen.repeats = max(2, chosen.repeats or (5 if chosen.real_shapes else 11))
    chosen.targets = chosen.targets or ("attention" if chosen.real_shapes else "all")
    lines = at_real_shapes(chosen) if chosen.real_shapes else on_cpu(chosen)
    for line in lines:
        print(json.dumps(line, indent=None if chosen.json else 2), flush=True)


def on_cpu(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One object with all results for a small base on a CPU."""
    torch.set_num_threads(chosen.threads)
    keep_memory()
    base = Path(chosen.base or base_source(chosen.family, {}))
    family = load_family(chosen.family, base)
    work = workload(family, base, chosen.brands, chosen.rank, chosen.steps, chosen.targets)
    facts: dict[str, Any] = {"family": chosen.family, "brands": chosen.brands, "rank": chosen.rank}
    facts |= {"steps": work.requests[0].parameters.num_inference_steps, "targets": chosen.targets}
    facts |= {"threads": chosen.threads, "torch": torch.__version__}
    engine = Engine(family, max_batch=chosen.brands, num_slots=chosen.brands + len(chosen.ranks))
    ranked = of_ranks(family, chosen.ranks, chosen.targets)
    figures = measure(work, engine, chosen.peers, chosen.repeats, ranked)
    switches = brand_switches(family, switched_adapters(family, "all"), chosen.switches)
    yield {**facts, "device": platform.processor() or platform.machine(), **figures, **switches}


def at_real_shapes(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Results for the family's full-size shapes with random weights, in bfloat16. Exits without a CUDA GPU."""
    if not torch.cuda.is_available():
        sys.exit(
            "--real-shapes draws with full-size models and needs a CUDA GPU; this machine has none. Leave it out for "
            "the tiny flavours on a CPU"
        )
    with tempfile.TemporaryDirectory() as folder:
        base = random_base(chosen.family, Path(folder) / "base", device="cuda", dtype=torch.bfloat16)
        family = load_family(chosen.family, base, dtype=torch.bfloat16, device="cuda")
        yield from of_shapes(chosen, family, base, ARCHITECTURES[chosen.family].sides)


def of_shapes(
    chosen: argparse.Namespace, family: Family, base: Path, sides: Sequence[int], is_compiled: bool = True
) -> Iterator[dict[str, Any]]:
    """One object for each picture side and number of steps, and one for brand switches."""
    facts = {"family": chosen.family, "brands": chosen.brands, "rank": chosen.rank, "targets": chosen.targets}
    facts |= {"dtype": str(family.dtype), "torch": torch.__version__, "device": _name(family.device)}
    engine = Engine(family, max_batch=chosen.brands, num_slots=chosen.brands, compile=is_compiled)
    for side in sides:
        for steps in [chosen.steps] if chosen.steps else _STEPS:
            work = workload(family, base, chosen.brands, chosen.rank, steps, chosen.targets, side)
            yield {**facts, "side": side, "steps": steps, **measure(work, engine, chosen.peers, chosen.repeats)}
    adapters = switched_adapters(family, chosen.targets)
    yield facts | brand_switches(family, adapters, chosen.switches, num_rows=2 * chosen.brands)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
