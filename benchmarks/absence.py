"""Whether the time of an answer tells another brand's thing from one that never was.

`python -m benchmarks.absence --json` asks every route that has an id for both, 500 times each, over HTTP on loopback,
the two in turn and in random order: `worst` is the largest ratio of the two medians of any route (wanted: <= 1.1).
That the answers are the same bytes is proved by tests/isolation/test_http_absence.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from benchmarks.crowd import Crowd, crowd
from benchmarks.described import Operation, operations
from onbrand.db.session import Doors

MINE, THEIRS = 7, 8
NO_BRAND = ("/v1/files/{bucket}/{name}",)
BODIES: dict[str, Any] = {
    "POST /v1/brands/{brand_id}/generations": {"prompt": "a red circle", "model_type": "sd15"},
}
"""Bodies that no schema describes well enough to get beyond the check of the input."""


@dataclass(frozen=True)
class Pair:
    """A route asked for what is another brand's, and for what never was."""

    operation: Operation
    what: str
    theirs: str
    nobodys: str


def pairs(platform: Crowd, described: list[Operation]) -> Iterator[Pair]:
    """Under the own brand's address, under the other's, and without a brand."""
    theirs, mine = platform.things(THEIRS), platform.brand(MINE)
    never = {name: str(uuid.uuid4()) for name in theirs} | {"brand_id": "brand-none"}
    for operation in described:
        if not operation.names or operation.path in NO_BRAND:
            continue
        if missing := set(operation.names) - set(theirs):
            raise ValueError(f"say in benchmarks/crowd.py what {', '.join(sorted(missing))} of a brand is")
        if "brand_id" in operation.names:
            yield Pair(operation, "another's brand", operation.at(theirs), operation.at(never))
        if set(operation.names) > {"brand_id"}:
            own = {"brand_id": mine}
            yield Pair(operation, "another's thing", operation.at(theirs | own), operation.at(never | own))
        elif operation.path.startswith("/v1/models/"):
            named = {"model": f"{platform.brand(THEIRS)}/sd15-lora-v1"}
            yield Pair(
                operation, "another's model", operation.at(named), operation.at({"model": "brand-none/sd15-lora-v1"})
            )
        elif "brand_id" not in operation.names:
            yield Pair(operation, "another's thing", operation.at(theirs), operation.at(never))


async def measure(client: httpx.AsyncClient, pair: Pair, tries: int, dice: random.Random) -> dict[str, Any]:
    """The medians of both."""
    taken: dict[str, list[float]] = {pair.theirs: [], pair.nobodys: []}
    content = pair.operation.content(BODIES.get(str(pair.operation)))
    for each in range(tries + 5):
        for path in dice.sample(list(taken), 2):
            began = time.perf_counter()
            answer = await client.request(pair.operation.method, path, **content)
            seconds = time.perf_counter() - began
            if answer.status_code != 404:
                raise RuntimeError(f"{pair.operation} ({pair.what}): {answer.status_code} {answer.text[:300]}")
            if each >= 5:
                taken[path].append(seconds)
    theirs, nobodys = (statistics.median(values) * 1000 for values in taken.values())
    return {
        "route": str(pair.operation),
        "of": pair.what,
        "theirs_ms": round(theirs, 3),
        "nobodys_ms": round(nobodys, 3),
        "ratio": round(max(theirs, nobodys) / min(theirs, nobodys), 3),
    }


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The app on a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off"))
        running = asyncio.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await running


async def run(platform: Crowd, tries: int, only: str) -> dict[str, Any]:
    """All figures."""
    doors = await Doors.open(platform.database.web_url)
    app = platform.app(doors)
    headers = {"authorization": f"Bearer {platform.token(platform.scope('admin', MINE))}"}
    chosen = [each for each in pairs(platform, operations(app.openapi())) if only in str(each.operation)]
    async with served(app) as url, httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        found = [await measure(client, pair, tries, random.Random(1)) for pair in chosen]
    await doors.close()
    found.sort(key=lambda each: -each["ratio"])
    return {
        "benchmark": "absence",
        "tries": tries,
        "num_routes": len({each["route"] for each in found}),
        "worst": found[0]["ratio"],
        "worst_route": found[0]["route"],
        "routes": found,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--brands", type=int, default=500)
    options.add_argument("--tries", type=int, default=500)
    options.add_argument("--only", default="", help="routes that have this in their method and path")
    options.add_argument("--json", action="store_true", help="one line of JSON")
    chosen = options.parse_args()
    with crowd(chosen.rows, chosen.brands) as platform:
        result = asyncio.run(run(platform, chosen.tries, chosen.only))
    print(json.dumps(result, indent=None if chosen.json else 2))


if __name__ == "__main__":
    main()
