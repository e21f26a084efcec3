"""One hostile caller, one ordinary caller: what the second notices of the first.

`python -m benchmarks.neighbours --json` starts a whole platform (`onbrand up`, the tiny sd15) and prints one JSON
object for each attack of `benchmarks/attacks.py`, one after another. The ordinary caller reads its brand ten times a
second, whether the last read was answered or not, and asks for a picture now and then; first alone, then beside the
attack.

- `read`, `picture`: `alone_p50`, `alone_p99`, `p50`, `p99` in seconds, and `ratio`, of the two p99. Pictures are few,
  so their p99 is the slowest.
- `ratio`: the larger of the two; at most 3 is wanted.
- `refused`: answers to the ordinary caller that were none: 4xx, 5xx, a broken connection, nothing within 60 s. 0 is
  wanted, for it is within all its limits.
- `healthy`: two seconds after the attack `/healthz` and a read are answered within two seconds.
- `attacker`: how often the hostile caller was answered how.

The hostile caller comes from 127.0.0.2 and has an account with as many brands as it may have, of 40 that it asks for.
`--short` takes at most five minutes. The exit status is 1 unless every attack is borne.
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

from benchmarks.attacks import ATTACKS, Orders, noisy_png, ordered
from benchmarks.traffic import percentile
from tests.acceptance.running import Running

READ_EVERY, PICTURE_EVERY = 0.1, 2.0
PATIENCE_SECONDS, HEALTHY_SECONDS = 60.0, 2.0
RATIO_MAX = 3.0
NUM_BRANDS = 40
HOSTILE = "hostile"
"""How its brands begin."""
_PASSWORD = "a long enough password"
_ENVIRONMENT = {"ONBRAND_TRAIN_JOBS": "0", "RAY_worker_niceness": "0"}
"""No training runs: a job that waits is what event streams watch. Ray gives no way to what else runs here."""


@dataclass
class Heard:
    """How long the ordinary caller waited, and what was no answer."""

    read: list[float] = field(default_factory=list)
    picture: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass
class Ordinary:
    """Somebody with one brand."""

    http: httpx.AsyncClient
    brand_id: str

    async def lives(self, seconds: float) -> Heard:
        """Reads and pictures for so long, and until each was answered."""
        heard = Heard()
        end = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._every(PICTURE_EVERY, end, heard.picture, heard, self.draw))
            tasks.create_task(self._every(READ_EVERY, end, heard.read, heard, self.read))
        return heard

    async def _every(self, pause: float, end: float, took: list[float], heard: Heard, ask: Any) -> None:
        """Ask at fixed times, so that a platform that stands still is asked as often."""
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
        return await self.http.get(f"/v1/brands/{self.brand_id}")

    async def draw(self) -> httpx.Response:
        """One picture; its answer is the generation at its end."""
        body = {"model_type": "sd15", "prompt": "a green square", "num_images": 1}
        answer = await self.http.post(
            f"/v1/brands/{self.brand_id}/generations", json=body, headers={"prefer": "wait=60"}
        )
        if answer.is_success and answer.json()["status"] != "completed":
            answer.status_code = 504
        return answer


@asynccontextmanager
async def somebody(url: str, name: str) -> AsyncIterator[httpx.AsyncClient]:
    """A new account, logged in."""
    account = {"email": f"{name}@example.com", "password": _PASSWORD}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False, limits=limits) as http:
        (await http.post("/v1/users", json=account)).raise_for_status()
        token = (await http.post("/v1/tokens", json=account)).raise_for_status().json()["access_token"]
        http.headers["authorization"] = f"Bearer {token}"
        yield http


async def with_a_brand(http: httpx.AsyncClient, name: str) -> Ordinary:
    """The ordinary caller, who has drawn a picture already."""
    (await http.post("/v1/brands", json={"id": name, "name": name.title()})).raise_for_status()
    caller = Ordinary(http, name)
    (await caller.draw()).raise_for_status()
    return caller


async def orders_of(http: httpx.AsyncClient, seconds: float) -> Orders:
    """What the hostile caller has: as many brands as it gets, pictures, a training job that waits."""
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
    """The figures of one attack."""
    alone = await caller.lives(alone_seconds)
    attacker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.attacks",
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
    """What the ordinary caller waited alone and beside the attack, and their ratio."""
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
    """Whether the platform answers soon."""
    try:
        async with asyncio.timeout(HEALTHY_SECONDS):
            answers = [await caller.http.get("/healthz"), await caller.read()]
    except (TimeoutError, httpx.HTTPError):
        return False
    return all(answer.status_code == 200 for answer in answers)


def is_borne(figures: dict[str, Any]) -> bool:
    """Whether the ordinary caller may live beside this."""
    return bool(figures["ratio"] <= RATIO_MAX and figures["refused"] == 0 and figures["healthy"])


async def measure(url: str, names: Sequence[str], alone_seconds: float, seconds: float) -> AsyncIterator[Any]:
    """The figures of each attack, as it ends."""
    async with somebody(url, "ordinary") as friend, somebody(url, "hostile") as hostile:
        caller = await with_a_brand(friend, "ordinary")
        orders = await orders_of(hostile, seconds)
        await caller.lives(2 * PICTURE_EVERY)  # the first of everything is slow
        for name in names:
            yield {"brands": len(orders.brands), **await under(name, orders, caller, alone_seconds)}


async def run(names: Sequence[str], short: bool, indent: int | None) -> bool:
    """Print the figures of each attack; whether all are borne."""
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
