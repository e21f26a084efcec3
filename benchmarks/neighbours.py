"""Noisy neighbour: the effect of one hostile caller on an ordinary caller.

`python -m benchmarks.neighbours --json` starts a whole platform (`onbrand up`, the tiny sd15) and prints one JSON
object for each attack of `benchmarks/lib/attacks.py`, one after another. The ordinary caller reads its brand ten times
a second, without waiting for earlier responses, and requests a picture every two seconds; first alone, then during the
attack.

- `read`, `picture`: `alone_p50`, `alone_p99`, `p50`, `p99` in seconds, and `ratio` of the two p99. Pictures are few,
  so their p99 is the maximum.
- `ratio`: the larger of both; target: at most 3.
- `refused`: failed requests of the ordinary caller: 4xx, 5xx, broken connections, no response within 60 s. Target: 0,
  as it stays within all its limits.
- `healthy`: two seconds after the attack, `/healthz` and a read succeed within two seconds.
- `attacker`: counts of the hostile caller's responses by status.

The hostile caller uses 127.0.0.2, and an account with as many brands as it is allowed, up to 40. `--short` takes at
most five minutes. The exit status is 1 unless the ordinary caller stays within the targets in all attacks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lib.attacks import ATTACKS, Orders, noisy_png, ordered
from benchmarks.lib.traffic import percentile
from tools.harness.platform_process import Running

READ_EVERY, PICTURE_EVERY = 0.1, 2.0
PATIENCE_SECONDS, HEALTHY_SECONDS = 60.0, 2.0
RATIO_MAX = 3.0
NUM_BRANDS = 40
HOSTILE = "hostile"
"""Prefix of the hostile account's brands."""
_PASSWORD = "a long enough password"
_ENVIRONMENT = {"ONBRAND_TRAIN_JOBS": "0", "RAY_worker_niceness": "0"}
"""No training runs, as the event streams need a waiting job. Ray workers run at normal priority."""


@dataclass
class Heard:
    """Response times of the ordinary caller in seconds, and its failed requests."""

    read: list[float] = field(default_factory=list)
    picture: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass
class Ordinary:
    """The ordinary caller, with one brand."""

    http: httpx.AsyncClient
    brand_id: str

    async def lives(self, seconds: float) -> Heard:
        """Send reads and picture requests for `seconds`, then wait for all responses."""
        heard = Heard()
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._every(PICTURE_EVERY, end, heard.picture, heard, self.draw))
            tasks.create_task(self._every(READ_EVERY, end, heard.read, heard, self.read))
        return heard

    async def _every(self, pause: float, end: float, took: list[float], heard: Heard, ask: Any) -> None:
        """Send requests at fixed times, independent of the responses."""
        async with asyncio.TaskGroup() as tasks:
            due = time.monotonic()
            while due < end:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tasks.create_task(self._timed(ask, took, heard))
                due += pause

    async def _timed(self, ask: Any, took: list[float], heard: Heard) -> None:
        began = time.monotonic()
        try:
            answer = await ask()
            if not answer.is_success:
                heard.refused.append(f"{answer.status_code}")
        except httpx.HTTPError as problem:
            heard.refused.append(type(problem).__name__)
        took.append(time.monotonic() - began)

    async def read(self) -> httpx.Response:
        """Read the brand."""
        return await self.http.get(f"/v1/brands/{self.brand_id}")

    async def draw(self) -> httpx.Response:
        """Request one picture and wait for it; the status is 504 unless it was completed."""
        body = {"model_type": "sd15", "prompt": "a green square", "num_images": 1}
        answer = await self.http.post(
            f"/v1/brands/{self.brand_id}/generations", json=body, headers={"prefer": "wait=60"}
        )
        if answer.is_success and answer.json()["status"] != "completed":
            answer.status_code = 504
        return answer


@asynccontextmanager
async def somebody(url: str, name: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a new account, logged in."""
    account = {"email": f"{name}@example.com", "password": _PASSWORD}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False, limits=limits) as http:
        (await http.post("/v1/users", json=account)).raise_for_status()
        token = (await http.post("/v1/tokens", json=account)).raise_for_status().json()["access_token"]
        http.headers["authorization"] = f"Bearer {token}"
        yield http


async def with_a_brand(http: httpx.AsyncClient, name: str) -> Ordinary:
    """The ordinary caller, with a new brand and its first picture drawn."""
    (await http.post("/v1/brands", json={"id": name, "name": name.title()})).raise_for_status()
    caller = Ordinary(http, name)
    (await caller.draw()).raise_for_status()
    return caller


async def orders_of(http: httpx.AsyncClient, seconds: float) -> Orders:
    """Create the hostile caller's brands (as many as allowed), pictures and a waiting training job."""
    brands = []
    for number in range(NUM_BRANDS):
        answer = await http.post("/v1/brands", json={"id": f"{HOSTILE}-{number}", "name": "Hostile"})
        if answer.status_code == 409:
            break
        brands.append(answer.raise_for_status().json()["id"])
    at = f"/v1/brands/{brands[0]}"
    files = [("files", (f"picture-{n}.png", noisy_png(768), "image/png")) for n in range(8)]
    captions = {"captions": json.dumps(["photo of [brand] logo"] * len(files)), "object": "logo"}
    assets = (await http.post(f"{at}/assets", files=files, data=captions)).raise_for_status().json()["data"]
    ids = [asset["id"] for asset in assets]
    job = {"name": "waits", "model_type": "sd15", "training_asset_ids": ids}
    job_id = (await http.post(f"{at}/training-jobs", json=job)).raise_for_status().json()["id"]
    token = http.headers["authorization"].removeprefix("Bearer ")
    return Orders(str(http.base_url), seconds, token, "hostile@example.com", brands, job_id, ids)


async def under(name: str, orders: Orders, caller: Ordinary, alone_seconds: float) -> dict[str, Any]:
    """The results of one attack."""
    alone = await caller.lives(alone_seconds)
    attacker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.lib.attacks",
        name,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    attacking = asyncio.create_task(attacker.communicate(ordered(orders)))
    beside = await caller.lives(orders.seconds)
    answers, _ = await attacking
    await asyncio.sleep(HEALTHY_SECONDS)
    return {
        "attack": name,
        **compared(alone, beside),
        "healthy": await is_healthy(caller),
        "attacker": json.loads(answers or b"{}"),
    }


def compared(alone: Heard, beside: Heard) -> dict[str, Any]:
    """The ordinary caller's response times alone and during the attack, their ratios, and failed requests."""
    kinds = {}
    for kind in ("read", "picture"):
        before, now = getattr(alone, kind), getattr(beside, kind)
        kinds[kind] = {
            "alone_p50": round(statistics.median(before), 4),
            "alone_p99": round(percentile(before, 0.99), 4),
            "p50": round(statistics.median(now), 4),
            "p99": round(percentile(now, 0.99), 4),
            "ratio": round(percentile(now, 0.99) / percentile(before, 0.99), 2),
        }
    refused = [*alone.refused, *beside.refused]
    return {
        **kinds,
        "ratio": max(kind["ratio"] for kind in kinds.values()),
        "refused": len(refused),
        "refusals": sorted(set(refused)),
    }


async def is_healthy(caller: Ordinary) -> bool:
    """True if `/healthz` and a read succeed within `HEALTHY_SECONDS`."""
    try:
        async with asyncio.timeout(HEALTHY_SECONDS):
            answers = [await caller.http.get("/healthz"), await caller.read()]
    except (TimeoutError, httpx.HTTPError):
        return False
    return all(answer.status_code == 200 for answer in answers)


def is_borne(figures: dict[str, Any]) -> bool:
    """True if an attack's results meet all targets."""
    return bool(figures["ratio"] <= RATIO_MAX and figures["refused"] == 0 and figures["healthy"])


async def measure(url: str, names: Sequence[str], alone_seconds: float, seconds: float) -> AsyncIterator[Any]:
    """The results of each attack, as it ends."""
    async with somebody(url, "ordinary") as friend, somebody(url, "hostile") as hostile:
        caller = await with_a_brand(friend, "ordinary")
        orders = await orders_of(hostile, seconds)
        await caller.lives(2 * PICTURE_EVERY)  # warm-up
        for name in names:
            yield {"brands": len(orders.brands), **await under(name, orders, caller, alone_seconds)}


async def run(names: Sequence[str], short: bool, indent: int | None) -> bool:
    """Print the results of each attack; True if all meet the targets."""
    alone_seconds, seconds = (6.0, 8.0) if short else (20.0, 30.0)
    all_are_borne = True
    with tempfile.TemporaryDirectory(prefix="onbrand-neighbours-", ignore_cleanup_errors=True) as folder:
        running = Running(Path(folder) / "data", more=_ENVIRONMENT)
        running.start()
        try:
            async for figures in measure(running.url, names, alone_seconds, seconds):
                print(json.dumps(figures | {"is_borne": is_borne(figures)}, indent=indent), flush=True)
                all_are_borne = all_are_borne and is_borne(figures)
        finally:
            running.send(signal.SIGTERM)
    return all_are_borne


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attack", action="append", choices=tuple(ATTACKS), help="only this one; may be repeated")
    parser.add_argument("--short", action="store_true", help="at most five minutes; rougher")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each attack")
    chosen = parser.parse_args()
    names = chosen.attack or list(ATTACKS)
    sys.exit(0 if asyncio.run(run(names, chosen.short, None if chosen.json else 1)) else 1)


if __name__ == "__main__":
    main()
