"""Timing side channel: response times for another brand's objects against those for objects that never existed.

`python -m benchmarks.not_found_timing --json` calls every route with an id for both, 500 times each, alternating in
random order. `worst` is the largest ratio of the two medians of any route (target: <= 1.1). It calls the app in this
process, without a socket, as network time would hide a difference. All routes are interleaved, so that a slow period
affects all of them. tests/isolation/test_http_not_found.py checks that the response bodies are equal.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import httpx
from fastapi import FastAPI

from benchmarks.lib.many_brands import ManyBrands, many_brands
from onbrand.db.session import Database
from tools.harness.openapi_operations import Operation, operations

MINE, THEIRS = 7, 8
NO_BRAND = ("/v1/files/{bucket}/{name}",)
WARM_UP = 5
BODIES: dict[str, Any] = {
    "POST /v1/brands/{brand_id}/generations": {"prompt": "a red circle", "model_type": "sd15"},
}
"""Request bodies for routes whose schema does not suffice to generate a valid one."""


@dataclass(frozen=True)
class Pair:
    """A route with two paths: to another brand's object, and to one that never existed."""

    operation: Operation
    what: str
    theirs: str
    nobodys: str


def pairs(platform: ManyBrands, described: list[Operation]) -> Iterator[Pair]:
    """The pairs of each route: under the caller's brand, under the other brand, and without a brand."""
    theirs, mine = platform.things(THEIRS), platform.brand(MINE)
    never = {name: str(uuid.uuid4()) for name in theirs} | {"brand_id": "brand-none"}
    for operation in described:
        if not operation.names or operation.path in NO_BRAND:
            continue
        if missing := set(operation.names) - set(theirs):
            raise ValueError(f"say in benchmarks/lib/many_brands.py what {', '.join(sorted(missing))} of a brand is")
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


@dataclass(frozen=True)
class Call:
    """A prepared request, and the response time of each call in seconds."""

    said: str
    scope: dict[str, Any] = field(repr=False)
    body: bytes = field(repr=False)
    seconds: list[float] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, pair: Pair, path: str, headers: dict[str, str]) -> Call:
        """The call of a pair's route with one of its paths."""
        content = pair.operation.content(BODIES.get(str(pair.operation)))
        headers = headers | content.pop("headers", {})
        request = httpx.Request(pair.operation.method, f"http://benchmark{path}", headers=headers, **content)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
            "method": request.method, "path": unquote(request.url.path), "raw_path": request.url.raw_path,
            "query_string": b"", "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "server": ("benchmark", 80), "client": ("127.0.0.1", 1),
        }  # fmt: skip
        return cls(f"{pair.operation} ({pair.what})", scope, request.read())

    async def ask(self, app: FastAPI) -> None:
        """Send the request and record the response time. Raises RuntimeError unless the status is 404."""
        heard: list[Any] = []
        to_come = [{"type": "http.request", "body": self.body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if not to_come:
                await asyncio.Event().wait()  # the client does not disconnect
            return to_come.pop()

        async def send(message: Any) -> None:
            heard.append(message)

        scope = {**self.scope, "headers": list(self.scope["headers"]), "state": {}}
        began = time.perf_counter()
        await app(scope, receive, send)
        self.seconds.append(time.perf_counter() - began)
        if heard[0]["status"] != 404:
            raise RuntimeError(f"{self.said}: {heard[0]['status']} {heard[1].get('body', b'')[:300]!r}")

    @property
    def milliseconds(self) -> float:
        """The median response time without the first calls, in which the database plans."""
        return statistics.median(self.seconds[WARM_UP:]) * 1000


async def measure(app: FastAPI, asked: list[tuple[Pair, Call, Call]], tries: int) -> list[dict[str, Any]]:
    """Call all pairs in random order; returns the medians of each pair."""
    dice = random.Random(1)
    gc.freeze()
    for _ in range(tries + WARM_UP):
        for _, theirs, nobodys in asked:
            for call in dice.sample((theirs, nobodys), 2):
                await call.ask(app)
    return [_described(*each) for each in asked]


def _described(pair: Pair, theirs: Call, nobodys: Call) -> dict[str, Any]:
    took = (theirs.milliseconds, nobodys.milliseconds)
    return {
        "route": str(pair.operation),
        "of": pair.what,
        "theirs_ms": round(took[0], 3),
        "nobodys_ms": round(took[1], 3),
        "ratio": round(max(took) / min(took), 3),
    }


async def run(platform: ManyBrands, tries: int, only: str) -> dict[str, Any]:
    """The results of the benchmark."""
    db = await Database.open(platform.database.web_url, claims_key=platform.secrets.claims)
    app = platform.app(db)
    headers = {"authorization": f"Bearer {platform.token(platform.scope('admin', MINE))}"}
    asked = [
        (pair, Call.of(pair, pair.theirs, headers), Call.of(pair, pair.nobodys, headers))
        for pair in pairs(platform, operations(app.openapi()))
        if only in str(pair.operation)
    ]
    found = await measure(app, asked, tries)
    await db.close()
    found.sort(key=lambda each: -each["ratio"])
    return {
        "benchmark": "not_found_timing",
        "tries": tries,
        "num_routes": len({each["route"] for each in found}),
        "worst": found[0]["ratio"],
        "worst_route": found[0]["route"],
        "routes": found,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=20_000)
    options.add_argument("--brands", type=int, default=100)
    options.add_argument("--tries", type=int, default=500)
    options.add_argument("--only", default="", help="routes that have this in their method and path")
    options.add_argument("--json", action="store_true", help="one line of JSON")
    chosen = options.parse_args()
    with many_brands(chosen.rows, chosen.brands) as platform:
        result = asyncio.run(run(platform, chosen.tries, chosen.only))
    print(json.dumps(result, indent=None if chosen.json else 2))


if __name__ == "__main__":
    main()
