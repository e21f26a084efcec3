"""The way from an HTTP request to a stored picture, against the engine alone and a plain Ray Serve application.

`python -m benchmarks.end_to_end --family sd15 --json` draws the same requests (one picture each) in three ways:

- `engine`: an engine in this process, in its thread, with the options of a replica;
- `platform`: `onbrand up`, over HTTP with an API key and `Prefer: wait`, until the picture is stored;
- `plain_serve`: a plain `@serve.deployment` with a diffusers pipeline behind FastAPI, no wall and no store.

They are asked by so many clients at once (`concurrency`), each of which sends its next request when the last one is
done. `base`: all requests draw with the base; `brands`: they go round the brands, each with an adapter of its own.
Engine and platform take turns. Keys, for `brands` unless they say otherwise:

- `over_engine_c8`, `over_engine_c32`: pictures per second of the platform over those of the engine; bar .75 on two
  cores (`--side 512`: .93 at 8); `base_over_engine_...` for the base;
- `single_over_engine`: the median time of a request alone, over the engine's; bar 1.25;
- `over_plain_serve_c8`: pictures per second over those of plain Serve; bar 2;
- `core_seconds_per_picture`: processor time of the platform by the role of its processes, at concurrency 8;
  `overhead_core_seconds`: their sum without that of the engine alone; bar .10;
- `transactions_per_picture`: the most of any concurrency, as PostgreSQL counts them, without those of an idle
  platform; bar 8;
- `idle_transactions_per_s`: while nothing is asked; bar 1;
- `p99_over_p50_c32`: of the platform's response times; bar 2;
- `step_gap_over_engine_c32`: mean time of the engine's thread from the end of a step to the begin of the next one,
  over that of the engine alone; bar 1.15. `step_gap_ms`: both.

The clients run in this process: their processor time (`client_core_seconds`) is on the same cores. On a CPU a replica's
engine runs at a lower priority than this one's. The p99 of `--short` is nearly the maximum.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import psycopg
import torch

from benchmarks.lib.processor_time import seconds_by_role
from benchmarks.lib.traffic import percentile
from benchmarks.lib.workload import prompt, random_adapter
from onbrand.config import Settings
from onbrand.db.embedded import read_urls
from onbrand.db.server import DATA, running_pid
from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.compilation import keep_memory
from onbrand.engine.engine import Engine
from onbrand.engine.request import Completed, Failed, Request
from onbrand.families.lora import read_adapter
from onbrand.serving.engine_thread import EngineThread
from tools.harness.colour_adapters import Paint
from tools.harness.engine_requests import engine_request
from tools.harness.load_client import LoadClient, Manners, secrets_of
from tools.harness.platform_process import REPOSITORY, Running, command_line
from tools.harness.tiny_families import base_of, family_of

RANK, MAX_BATCH = 8, 8
SETTLED_SECONDS = 11.0
"""PostgreSQL counts a backend's last transactions up to 10 seconds after it became idle."""
_ENVIRONMENT = {"ONBRAND_TRAIN_JOBS": "0"}


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: `num` requests by `concurrency` clients, with the base (`num_brands` 0) or adapters."""

    concurrency: int
    num: int
    num_brands: int

    @property
    def name(self) -> str:
        """Of its results."""
        return f"{'brands' if self.num_brands else 'base'}_c{self.concurrency}"


@dataclass
class Timed:
    """The times of a load's requests in seconds, and of all of it."""

    seconds: float
    each: list[float]
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        """Pictures per second."""
        return len(self.each) / self.seconds

    def as_json(self) -> dict[str, Any]:
        """The figures to print."""
        return {
            "per_second": round(self.per_second, 3),
            "p50": round(statistics.median(self.each), 3),
            "p99": round(percentile(self.each, 0.99), 3),
        }


async def ask(load: Load, draw: Callable[[int], Awaitable[None]]) -> Timed:
    """Call `draw` with 0 to `num` - 1 from `concurrency` clients, each when its last call is done."""
    numbers, each = iter(range(load.num)), []

    async def client() -> None:
        for number in numbers:
            began = time.monotonic()
            await draw(number)
            each.append(time.monotonic() - began)

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(load.concurrency)))
    return Timed(time.monotonic() - began, each)


@dataclass(frozen=True)
class Wishes:
    """The pictures that are asked for."""

    family: str
    side: int
    steps: int
    guidance_scale: float
    files: list[bytes]

    def numbers(self, number: int) -> dict[str, Any]:
        """The parameters of request `number`."""
        return {
            "prompt": prompt(number % 56),
            "seed": number,
            "width": self.side,
            "height": self.side,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
        }


class AloneEngine:
    """The engine in this process."""

    def __init__(self, wishes: Wishes) -> None:
        torch.set_num_threads(1)
        keep_memory()
        family = family_of(wishes.family)
        self._wishes = wishes
        self._uses = [
            AdapterUse(AdapterKey(f"b{n}", str(n)), read_adapter(data, family)) for n, data in enumerate(wishes.files)
        ]
        self._engine = EngineThread(Engine(family, max_batch=MAX_BATCH, even_passes=True))
        self._num = 0

    async def measure(self, load: Load) -> Timed:
        """Draw the load."""
        before, processor = replace(self._engine.pace), time.process_time()
        timed = await ask(load, lambda number: self._draw(number, load.num_brands))
        timed.more = {
            "core_seconds": (time.process_time() - processor) / load.num,
            "gap": gap_between(asdict(before), asdict(self._engine.pace)),
        }
        return timed

    async def _draw(self, number: int, num_brands: int) -> None:
        self._num += 1
        use = (self._uses[number % num_brands],) if num_brands else ()
        brand_id = use[0].key.brand_id if use else "b0"
        request: Request = engine_request(
            str(self._num),
            brand_id,
            adapters=use,
            negative_prompt="",
            true_cfg_scale=1.0,
            **self._wishes.numbers(number),
        )
        async for event in self._engine.draw(request):
            assert not isinstance(event, Failed), event
            if isinstance(event, Completed):
                return

    def close(self) -> None:
        """End its thread."""
        self._engine.close()


def gap_between(before: dict[str, float], after: dict[str, float]) -> float:
    """Mean seconds from the end of a step to the begin of the next one, between two readings of a pace."""
    return (after["gap_seconds"] - before["gap_seconds"]) / max(1, after["num_gaps"] - before["num_gaps"])


class WholePlatform:
    """A running platform with a brand for each adapter."""

    def __init__(self, running: Running, wishes: Wishes) -> None:
        self._running, self._wishes = running, wishes
        self._brands: list[tuple[str, str, str]] = []
        """Brand, API key and model."""
        self._http: aiohttp.ClientSession
        self.idle = 0.0
        """Transactions per second while nothing is asked."""

    async def prepare(self) -> None:
        """Make the brands with their keys and models; draw one picture of each."""
        family, secrets = family_of(self._wishes.family), secrets_of(self._running.data_dir)
        for data in self._wishes.files:
            client = await LoadClient.join(self._running.url, Manners())
            paint = Paint((0, 0, 0), RANK, data)
            model = await client.publish(paint, self._running.internal_url, secrets, family.revision)
            body = {"name": "benchmark", "scopes": ["generate", "read"]}
            key = (await client.call("POST", "/keys", 201, json=body)).json()["key"]
            await client.http.aclose()
            self._brands.append((client.brand_id, key, model))
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        for number in range(len(self._brands)):
            await self._draw(number, len(self._brands))
        await self._draw(0, 0)

    async def measure(self, load: Load) -> Timed:
        """Draw the load; also counts transactions and processor time."""
        pids = self._pids()
        transactions, began, pace = self.num_transactions(), time.monotonic(), self.pace()
        before, own = seconds_by_role(pids), time.process_time()
        timed = await ask(load, lambda number: self._draw(number, load.num_brands))
        spent = seconds_by_role({*pids, *self._pids()})
        spent.subtract(before)
        own = time.process_time() - own
        gap = gap_between(pace, self.pace())
        await asyncio.sleep(SETTLED_SECONDS)
        idle = self.idle * (time.monotonic() - began)
        timed.more = {
            "core_seconds": {role: seconds / load.num for role, seconds in spent.items()},
            "client": own / load.num,
            "transactions": (self.num_transactions() - transactions - idle) / load.num,
            "gap": gap,
        }
        return timed

    async def _draw(self, number: int, num_brands: int) -> None:
        brand_id, key, model = self._brands[number % num_brands if num_brands else 0]
        body = self._wishes.numbers(number) | ({"model": model} if num_brands else {"model_type": self._wishes.family})
        headers = {"authorization": f"Bearer {key}", "prefer": "wait=60"}
        url = f"{self._running.url}/v1/brands/{brand_id}/generations"
        async with self._http.post(url, json=body, headers=headers) as answer:
            generation = await answer.json()
            assert answer.status == 201, generation
            assert generation["status"] == "completed", generation

    def num_transactions(self) -> int:
        """Transactions that PostgreSQL has counted in the platform's database."""
        with psycopg.connect(read_urls(Settings(data_dir=self._running.data_dir)).owner_url) as connection:
            row = connection.execute(
                "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
            ).fetchone()
        assert row is not None
        return int(row[0])

    def pace(self) -> dict[str, float]:
        """The pace of the engine's replica so far."""
        raylet = next(pid for pid in self._running.processes() if "raylet/raylet" in command_line(pid))
        address = next(
            part.partition("=")[2] for part in command_line(raylet).split() if part.startswith("--gcs-address=")
        )
        own = dict(
            line.split("=", 1) for line in Path(f"/proc/{raylet}/environ").read_text().split("\0") if "=" in line
        )
        told = subprocess.run(
            [sys.executable, "-m", "benchmarks.lib.engine_pace", address, self._wishes.family],
            env=own | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'platform'}", "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return dict(json.loads(told.stdout.splitlines()[-1]))

    async def measure_idle(self, seconds: float) -> None:
        """Count transactions while nothing is asked."""
        await asyncio.sleep(SETTLED_SECONDS)
        before = self.num_transactions()
        await asyncio.sleep(seconds)
        self.idle = (self.num_transactions() - before) / seconds

    def _pids(self) -> set[int]:
        """All processes of the platform."""
        server = running_pid(self._running.data_dir / DATA)
        assert server is not None
        backends = psutil.Process(server).children(recursive=True)
        return {*self._running.processes(), server, *(each.pid for each in backends)}

    async def close(self) -> None:
        """Close its connections."""
        await self._http.close()


class PlainServe:
    """The plain Ray Serve application, in a process of its own while this context is open."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes
        self._undo = contextlib.ExitStack()
        self._url = ""

    def __enter__(self) -> PlainServe:
        folder = self._undo.enter_context(tempfile.TemporaryDirectory())
        for n, data in enumerate(self._wishes.files):
            (Path(folder) / f"b{n}.safetensors").write_bytes(data)
        given = self._wishes.family, str(base_of(self._wishes.family)), folder
        command = [sys.executable, "-m", "benchmarks.lib.plain_serve", *given]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._undo.callback(process.communicate, timeout=60)
        assert process.stdout is not None
        try:
            self._url = next(json.loads(line)["url"] for line in process.stdout if line.startswith("{"))
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    async def measure(self, load: Load) -> Timed:
        """Draw the load, after one picture of each adapter."""
        async with aiohttp.ClientSession(self._url, connector=aiohttp.TCPConnector(limit=0)) as http:
            for number in range(load.num_brands):
                await self._draw(http, number, load.num_brands)
            return await ask(load, lambda number: self._draw(http, number, load.num_brands))

    async def _draw(self, http: aiohttp.ClientSession, number: int, num_brands: int) -> None:
        numbers = self._wishes.numbers(number)
        body = {name: numbers[name] for name in ("prompt", "seed", "guidance_scale")}
        body |= {"adapter": f"b{number % num_brands}" if num_brands else ""}
        body |= {"side": self._wishes.side, "steps": self._wishes.steps}
        async with http.post("/draw", json=body) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()


async def measure(running: Running, wishes: Wishes, loads: list[Load], idle_seconds: float) -> dict[str, Any]:
    """All figures of engine and platform."""
    engine, platform = AloneEngine(wishes), WholePlatform(running, wishes)
    await platform.prepare()
    await platform.measure_idle(idle_seconds)
    await engine.measure(Load(8, 16, len(wishes.files)))
    ours: dict[str, Timed] = {}
    alone: dict[str, Timed] = {}
    for load in loads:
        alone[load.name] = await engine.measure(load)
        ours[load.name] = await platform.measure(load)
    await platform.close()
    engine.close()
    return compared(ours, alone) | {"idle_transactions_per_s": round(platform.idle, 2)}


def compared(ours: dict[str, Timed], alone: dict[str, Timed]) -> dict[str, Any]:
    """The platform's figures over the engine's."""
    ratio = {name: round(ours[name].per_second / alone[name].per_second, 3) for name in ours}
    found: dict[str, Any] = {}
    for name, value in ratio.items():
        kind, _, concurrency = name.partition("_")
        if concurrency != "c1":
            found[f"{'' if kind == 'brands' else 'base_'}over_engine_{concurrency}"] = value
    one, eight, many = ours["brands_c1"], ours["brands_c8"], ours["brands_c32"]
    found["single_over_engine"] = round(statistics.median(one.each) / statistics.median(alone["brands_c1"].each), 3)
    spent: Counter[str] = Counter(eight.more["core_seconds"])
    own = alone["brands_c8"].more["core_seconds"]
    gaps = {"engine": alone["brands_c32"].more["gap"], "platform": many.more["gap"]}
    return found | {
        "core_seconds_per_picture": {role: round(seconds, 4) for role, seconds in spent.most_common()},
        "engine_core_seconds": round(own, 4),
        "overhead_core_seconds": round(sum(spent.values()) - own, 4),
        "client_core_seconds": round(eight.more["client"], 4),
        "transactions_per_picture": round(max(each.more["transactions"] for each in ours.values()), 2),
        "transactions": {name: round(each.more["transactions"], 2) for name, each in ours.items()},
        "p99_over_p50_c32": round(percentile(many.each, 0.99) / statistics.median(many.each), 2),
        "step_gap_over_engine_c32": round(gaps["platform"] / gaps["engine"], 2),
        "step_gap_ms": {name: round(1000 * gap, 2) for name, gap in gaps.items()},
        "platform": {name: each.as_json() for name, each in ours.items()},
        "engine": {name: each.as_json() for name, each in alone.items()},
    }


def loads_of(num: int, num_brands: int, concurrencies: list[int], with_base: bool) -> list[Load]:
    """The loads to measure: fewer requests at concurrency 1."""
    kinds = [num_brands, *([0] if with_base else [])]
    return [Load(c, num if c > 1 else max(8, num // 4), kind) for kind in kinds for c in concurrencies]


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Start everything, measure, end everything."""
    family = family_of(chosen.family)
    files = [random_adapter(family, RANK, seed, "strong") for seed in range(chosen.brands)]
    guidance = family.recommended.guidance_scale
    wishes = Wishes(chosen.family, chosen.side, chosen.steps, guidance, files)
    num, idle = (chosen.requests or 32, 10.0) if chosen.short else (chosen.requests or 128, 60.0)
    loads = loads_of(num, chosen.brands, [1, 8, 32], with_base=not chosen.short)
    with PlainServe(wishes) as peer:
        plain = asyncio.run(peer.measure(Load(8, num // 2, len(files))))
    with tempfile.TemporaryDirectory(prefix="onbrand-end-to-end-", ignore_cleanup_errors=True) as folder:
        running = Running(Path(folder) / "data", more=_ENVIRONMENT)
        began = time.monotonic()
        try:
            running.start()
            start_seconds = time.monotonic() - began
            figures = asyncio.run(measure(running, wishes, loads, idle))
        finally:
            if running.process is not None:
                running.send(signal.SIGTERM)
    figures["start_seconds"] = round(start_seconds, 1)
    figures["over_plain_serve_c8"] = round(figures["platform"]["brands_c8"]["per_second"] / plain.per_second, 3)
    figures["plain_serve"] = plain.as_json()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", default="sd15", choices=("sd15",))
    parser.add_argument("--side", type=int, default=64, help="of the pictures, in pixels (default 64)")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps (default 8)")
    parser.add_argument("--brands", type=int, default=8, help="(default 8)")
    parser.add_argument("--requests", type=int, help="of each load; fewer for large images (default 128, short 32)")
    parser.add_argument("--short", action="store_true", help="under three minutes; rougher, and without the base")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    chosen = parser.parse_args()
    facts = {"family": chosen.family, "side": chosen.side, "steps": chosen.steps, "brands": chosen.brands}
    print(json.dumps(facts | run(chosen), indent=None if chosen.json else 1))


if __name__ == "__main__":
    main()
