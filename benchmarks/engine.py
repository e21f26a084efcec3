"""Mixed-brand batches against one brand's batch and against diffusers' `set_adapters` per request.

`python -m benchmarks.engine --family sd15 --brands 8 --json` prints one JSON object. Ratios come from one run, whose
parts take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.engine import Engine
from onbrand.engine.request import Picture, Request
from onbrand.families.bases import base_source
from onbrand.families.family import Family, load_family, load_pipeline
from onbrand.families.lora import attach, detach, extract, read_adapter, serialize


@dataclass(frozen=True)
class Workload:
    """One picture of each brand: its adapter's file, and its request."""

    family: Family
    base: Path
    files: list[bytes]
    requests: list[Request]


def random_adapter(family: Family, rank: int, seed: int, preset: str) -> bytes:
    """The file of a LoRA with random weights on the targets of `preset`."""
    targets = family.spec.targets[preset]
    attach(family.denoiser, rank, targets, seed)
    state = extract(family.denoiser)
    detach(family.denoiser)
    generator = torch.Generator().manual_seed(seed)
    for name, value in state.items():
        if ".lora_B." in name:
            state[name] = torch.randn(value.shape, generator=generator) * 0.02
    return serialize(family, state, rank, targets, {})


def workload(family: Family, base: Path, num_brands: int, rank: int, steps: int, preset: str) -> Workload:
    files = [random_adapter(family, rank, seed, preset) for seed in range(num_brands)]
    uses = [AdapterUse(AdapterKey(f"b{n}", str(n)), read_adapter(data, family)) for n, data in enumerate(files)]
    side = family.recommended.resolution if (family.recommended.resolution or 512) <= 64 else 64
    numbers: dict[str, Any] = {"height": side, "width": side, "num_inference_steps": steps, "negative_prompt": "blurry"}
    numbers |= {"guidance_scale": 3.5, "true_cfg_scale": 2.0}
    requests = [
        Request(str(n), use.key.brand_id, "a red square on blue", n, adapters=(use,), **numbers)
        for n, use in enumerate(uses)
    ]
    return Workload(family, base, files, requests)


def through_engine(engine: Engine, requests: list[Request]) -> list[torch.Tensor]:
    """The pictures, in the order of the requests."""
    for request in requests:
        engine.add(request)
    drawn = {}
    while engine.has_work:
        drawn |= {event.request_id: event.image_CHW for event in engine.step() if isinstance(event, Picture)}
    return [drawn[request.id] for request in requests]


def set_adapters_pipeline(work: Workload) -> Any:
    """diffusers with every brand's adapter loaded."""
    pipeline = load_pipeline(work.family.spec.name, work.base)
    with tempfile.TemporaryDirectory() as folder:
        for n, data in enumerate(work.files):
            (Path(folder) / f"{n}.safetensors").write_bytes(data)
            pipeline.load_lora_weights(folder, weight_name=f"{n}.safetensors", adapter_name=f"b{n}")
    return pipeline


def through_set_adapters(pipeline: Any, work: Workload) -> list[torch.Tensor]:
    """The pictures, one request after the other."""
    return [_alone(pipeline, work, n, request) for n, request in enumerate(work.requests)]


def _alone(pipeline: Any, work: Workload, n: int, request: Request) -> torch.Tensor:
    pipeline.set_adapters(f"b{n}")
    extra: dict[str, Any] = {}
    if work.family.spec.name == "flux":
        length = work.family.recommended.max_sequence_length
        extra = {"true_cfg_scale": request.true_cfg_scale, "max_sequence_length": length}
    images = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        height=request.height,
        width=request.width,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
        **extra,
    ).images
    return torch.from_numpy(images[0]).permute(2, 0, 1)


def seconds_of(parts: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each part; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for part in parts.values():
        part()
    for _ in range(repeats):
        for name, part in parts.items():
            began = time.perf_counter()
            part()
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def measure(work: Workload, repeats: int) -> dict[str, Any]:
    """All figures of one run."""
    num = len(work.requests)
    one_brand = [replace(work.requests[0], id=str(n), seed=n) for n in range(num)]
    engine = Engine(work.family, max_batch=num, num_slots=num)
    peer = set_adapters_pipeline(work)
    expected, drawn = through_set_adapters(peer, work), through_engine(engine, work.requests)
    error = max(float((ours - theirs).abs().max()) for ours, theirs in zip(drawn, expected, strict=True))
    seconds = seconds_of(
        {
            "mixed": lambda: through_engine(engine, work.requests),
            "single": lambda: through_engine(engine, one_brand),
            "set_adapters": lambda: through_set_adapters(peer, work),
        },
        repeats,
    )
    return {
        "mixed_over_single": round(seconds["single"] / seconds["mixed"], 3),
        "over_set_adapters": round(seconds["set_adapters"] / seconds["mixed"], 3),
        "max_error": error,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="sd15", choices=("sd15", "sdxl", "flux"))
    parser.add_argument("--brands", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--targets", default="all", choices=("attention", "strong", "all"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--base", help="a folder with a base; default: the tiny flavour that ships with Onbrand")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    base = Path(chosen.base or base_source(chosen.family, {}))
    family = load_family(chosen.family, base)
    work = workload(family, base, chosen.brands, chosen.rank, chosen.steps, chosen.targets)
    facts = {"family": chosen.family, "brands": chosen.brands, "rank": chosen.rank, "steps": chosen.steps}
    facts |= {"targets": chosen.targets, "device": platform.processor() or platform.machine()}
    print(json.dumps({**facts, **measure(work, chosen.repeats)}, indent=None if chosen.json else 2))


if __name__ == "__main__":
    main()
