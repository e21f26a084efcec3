"""Cost of row-level security (the "wall") for reads: every query of the services with it and without it.

`python -m benchmarks.rls --json` fills a database with 200,000 rows in each large table, of 500 brands, calls all GET
routes of the app (and some changes that read before they write), and times each query that they sent:

- `wall_over_plain`: for the worst query, the time of a whole read (a transaction, as services read) with row-level
  security, over the same with a role that bypasses it;
- `statement_over_plain`: the largest ratio for the statement alone, within an open transaction.

Both run in turns, so that a busy machine slows both. A time is the first decile, as noise only adds to it. A ratio is
the median over five consecutive parts of the run, so that a slow period affects one of them only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import psycopg
from fastapi import FastAPI

from benchmarks.lib.many_brands import ManyBrands, known_id, many_brands
from onbrand.brand import Scope
from onbrand.db import session as session_module
from onbrand.db.logins import login_name
from onbrand.db.session import Database, Identity, Session
from tools.harness.openapi_operations import PICTURE, operations

PLAIN = "onbrand_plain"
ROLES = ("member", "admin", "agency", "key", "page")
NOT_READS = ("/v1/files/{bucket}/{name}", "/healthz", "/v1/session")
"""Routes that read no rows of a brand: signed links, health, and the cookie's session."""
_NO_READS = re.compile(
    r"\bfor update\b|private\.(record|next_number|stored_bytes)|pg_advisory|\b(insert|update|delete)\b", re.IGNORECASE
)
"""Statements that write, and functions that only work for a member: there is no such read without the wall."""
_NUMBER = 7
WARM_UP = 12
"""Calls that are not counted: a statement is prepared after 5 calls, and gets its generic plan after 5 more."""
PARTS = 5
OWN_ROWS = ("app.brand_users", "app.api_keys")
"""Tables of which a member sees only their own rows, so that the wall returns fewer."""


@dataclass(frozen=True)
class Read:
    """A query that a service sent, with its route and caller."""

    asked_by: str
    role: str
    scope: Scope
    statement: str
    params: Any = field(repr=False)


class _Heard(Session):
    """A session that records its statements."""

    def __init__(self, session: Session, note: Any) -> None:
        self.__dict__ = session.__dict__
        self._note = note

    async def _execute(self, statement: str, params: Any) -> Any:
        self._note(statement, params)
        return await super()._execute(statement, params)


class ListeningDoors(Database):
    """Doors that record every read."""

    reads: dict[tuple[str, str], Read]
    asked_by: tuple[str, str]

    @asynccontextmanager
    async def user_session(self, scope: Scope | None) -> AsyncIterator[Session]:
        async with super().user_session(scope) as session:
            yield _Heard(session, partial(self._note, scope))

    def _note(self, scope: Scope, statement: str, params: Any) -> None:
        route, role = self.asked_by
        if not _NO_READS.search(statement) and "from" in statement.lower():
            self.reads.setdefault((role, statement), Read(route, role, scope, " ".join(statement.split()), params))


class PlainDoors(Database):
    """Doors that use a role without row-level security, and are otherwise the same."""

    @asynccontextmanager
    async def user_session(self, scope: Scope | None) -> AsyncIterator[Session]:
        claims = scope.claims() if scope else {}
        async with session_module._transaction(self._web, "web", Identity(PLAIN, claims, self._signer)) as session:
            yield session


def make_plain_role(owner_url: str) -> None:
    """Create a role that may read everything in this temporary database, for comparison."""
    with psycopg.connect(owner_url) as connection:
        connection.execute(f"create role {PLAIN} nologin bypassrls")
        connection.execute(f"grant {PLAIN} to {login_name('web', connection.info.dbname)}")
        for schema in ("app", "private", "storage", "audit", "identity"):
            connection.execute(f"grant usage on schema {schema} to {PLAIN}")
            connection.execute(f"grant select on all tables in schema {schema} to {PLAIN}")
            connection.execute(f"grant execute on all functions in schema {schema} to {PLAIN}")


async def reads_of(platform: ManyBrands, roles: tuple[str, ...]) -> list[Read]:
    """All queries that the app's GET routes send, for each kind of caller, and those of some changes by a member."""
    db = await ListeningDoors.open(platform.database.web_url, claims_key=platform.secrets.claims)
    db.reads = {}
    app = platform.app(db)
    things = platform.things(_NUMBER)
    for role in roles:
        scope = platform.scope(role, _NUMBER)
        db.asked_by = ("", role)
        transport = httpx.ASGITransport(_known_as(scope, app))
        async with httpx.AsyncClient(transport=transport, base_url="http://benchmark") as client:
            for operation in operations(app.openapi()):
                if operation.method == "GET" and operation.path not in NOT_READS:
                    db.asked_by = (str(operation), role)
                    await _answered(client, platform, "GET", operation.at(_named(things, operation.names)), role)
            if role == "member":
                await _look_before_writing(client, db, platform)
    await db.close()
    return list(db.reads.values())


def _known_as(scope: Scope, app: FastAPI) -> Callable[..., Awaitable[None]]:
    """The app with this caller already authenticated, so that queries for credentials are not measured."""
    from onbrand.api.http import early_authentication

    async def called(request: dict[str, Any], receive: Any, send: Any) -> None:
        await app({**request, early_authentication.CALLER: scope}, receive, send)

    return called


def _named(things: dict[str, str], names: tuple[str, ...]) -> dict[str, str]:
    if missing := set(names) - set(things):
        raise ValueError(f"say in benchmarks/lib/many_brands.py what {', '.join(sorted(missing))} of a brand is")
    return things


async def _answered(
    client: httpx.AsyncClient, platform: ManyBrands, method: str, path: str, role: str, **parts: Any
) -> Any:
    """Call a route and return the response; of a list, also request the second page with 100 entries."""
    if path.startswith("/v1/models/"):
        path = f"/v1/models/{platform.brand(_NUMBER)}/sd15-lora-v1" if role != "key" else "/v1/models/sd15-lora-v1"
    answer = await client.request(method, path, **parts)
    hidden = role == "agency" and answer.status_code == 404  # the brand's key and upload belong to another member
    refused_by_right = hidden or (role != "admin" and answer.status_code == 403)
    if not (answer.is_success or refused_by_right):
        raise RuntimeError(f"{method} {path} as {role}: {answer.status_code} {answer.text[:300]}")
    told = answer.json() if "json" in answer.headers.get("content-type", "") else {}
    if isinstance(told, dict) and told.get("next_cursor"):
        await client.get(f"{path}?limit=100&cursor={told['next_cursor']}")
    return told


async def _look_before_writing(client: httpx.AsyncClient, db: ListeningDoors, platform: ManyBrands) -> None:
    at = f"/v1/brands/{platform.brand(_NUMBER)}"
    assets = [known_id("asset", _NUMBER - 1 + n * platform.num_brands) for n in range(20)]
    job = {"name": "a job", "model_type": "sd15", "training_asset_ids": assets}
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", f"{at}/training-jobs", {"json": job}),
        ("POST", f"{at}/assets", {"files": {"files": ("a.png", PICTURE, "image/png")}}),
        ("PATCH", f"{at}/assets/{assets[0]}", {"json": {"caption": "another"}}),
    ]
    for method, path, parts in calls:
        db.asked_by = (f"{method} {path}", "member")
        await _answered(client, platform, method, path, "member", **parts)


async def measure(platform: ManyBrands, reads: list[Read], tries: int) -> list[dict[str, Any]]:
    """Times of each read with and without the wall. All reads run in rounds, so that a slow period affects all."""
    walled = await Database.open(platform.database.web_url, claims_key=platform.secrets.claims, pool=(1, 1))
    plain = await PlainDoors.open(platform.database.web_url, claims_key=platform.secrets.claims, pool=(1, 1))
    taken = [Taken() for _ in reads]
    for each in range(tries + WARM_UP):
        order = [("wall", walled), ("plain", plain)]
        for read, times in zip(reads, taken, strict=True):
            for name, db in order if each % 2 else order[::-1]:
                times.add(name, await _timed(db, read))
    await walled.close()
    await plain.close()
    return [_described(read, times) for read, times in zip(reads, taken, strict=True)]


@dataclass
class Taken:
    """Seconds of a read, for `wall` and `plain`: of the whole transaction, and of the bare statement."""

    whole: dict[str, list[float]] = field(default_factory=lambda: {"wall": [], "plain": []})
    bare: dict[str, list[float]] = field(default_factory=lambda: {"wall": [], "plain": []})
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, measured: tuple[float, float, int]) -> None:
        """Add one measurement: whole, bare, number of rows."""
        self.whole[name].append(measured[0])
        self.bare[name].append(measured[1])
        self.rows[name] = measured[2]

    def micros(self, times: dict[str, list[float]]) -> tuple[float, float]:
        """The first decile in microseconds, for wall and plain."""
        return _quickest(times["wall"][WARM_UP:]) * 1e6, _quickest(times["plain"][WARM_UP:]) * 1e6

    def ratio(self, times: dict[str, list[float]]) -> float:
        """Wall over plain: the median of the ratios of the parts."""
        pairs = zip(_parts(times["wall"][WARM_UP:]), _parts(times["plain"][WARM_UP:]), strict=True)
        return statistics.median(_quickest(wall) / _quickest(plain) for wall, plain in pairs)


def _parts(times: list[float]) -> list[list[float]]:
    size = len(times) // PARTS
    return [times[each * size : (each + 1) * size] for each in range(PARTS)]


def _quickest(times: list[float]) -> float:
    return statistics.quantiles(times, n=10)[0]


async def _timed(db: Database, read: Read) -> tuple[float, float, int]:
    began = time.perf_counter()
    async with db.user_session(read.scope) as session:
        asked = time.perf_counter()
        rows = await session.all(read.statement, read.params)
        answered = time.perf_counter()
    return time.perf_counter() - began, answered - asked, len(rows)


def _described(read: Read, taken: Taken) -> dict[str, Any]:
    own_only = any(table in read.statement for table in OWN_ROWS)
    if taken.rows["wall"] != taken.rows["plain"] and not own_only:
        raise RuntimeError(f"the wall changes what {read.asked_by} reads: {taken.rows}")
    (wall, plain), (bare_wall, bare_plain) = taken.micros(taken.whole), taken.micros(taken.bare)
    return {
        "route": read.asked_by,
        "as": read.role,
        "query": read.statement,
        "rows": taken.rows["wall"],
        "wall_us": round(wall),
        "plain_us": round(plain),
        "wall_over_plain": round(taken.ratio(taken.whole), 3),
        "statement_over_plain": round(taken.ratio(taken.bare), 3),
        "statement_adds_us": round(bare_wall - bare_plain),
    }


async def run(platform: ManyBrands, roles: tuple[str, ...], tries: int) -> dict[str, Any]:
    """The results of the benchmark."""
    make_plain_role(platform.database.owner_url)
    found = await measure(platform, await reads_of(platform, roles), tries)
    found.sort(key=lambda each: -each["wall_over_plain"])
    return {
        "benchmark": "rls",
        "rows": platform.num_rows,
        "brands": platform.num_brands,
        "num_queries": len(found),
        "wall_over_plain": found[0]["wall_over_plain"],
        "worst": found[0]["query"],
        "statement_over_plain": max(each["statement_over_plain"] for each in found),
        "queries": found,
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--brands", type=int, default=500)
    options.add_argument("--tries", type=int, default=250, help=f"of each query, at least {2 * PARTS}")
    options.add_argument("--roles", nargs="+", default=ROLES, choices=ROLES)
    options.add_argument("--json", action="store_true", help="one line of JSON")
    chosen = options.parse_args()
    with many_brands(chosen.rows, chosen.brands) as platform:
        result = asyncio.run(run(platform, tuple(chosen.roles), chosen.tries))
    print(json.dumps(result, indent=None if chosen.json else 2))


if __name__ == "__main__":
    main()
