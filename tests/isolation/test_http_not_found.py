"""Every route with an id gives equal bytes for another brand's object and for one that never existed.

The routes come from the app's OpenAPI description, so new routes are included. `benchmarks.not_found_timing` measures
their times.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from psycopg import sql

from tests.conftest import MakeBrand, MakeUser
from tests.isolation.fixtures import Draw, Fixtures, build_fixtures
from tests.isolation.many_brands import furnish
from tools.harness.in_process_platform import Platform
from tools.harness.openapi_operations import Operation, operations

NO_BRAND = ("/v1/files/{bucket}/{name}",)
"""A signed link is its own right: who asks is not known there. Its two answers are compared by a test of its own."""
BODIES: dict[str, Any] = {
    "POST /v1/brands/{brand_id}/generations": {"prompt": "a red circle", "model_type": "sd15"},
}
"""Bodies that no schema describes well enough to get beyond the check of the input."""
_TABLES_WITH_IDS = """
select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
join pg_attribute b on b.attrelid = c.oid and b.attname = 'brand_id' and not b.attisdropped
join pg_attribute i on i.attrelid = c.oid and i.attname = 'id' and i.atttypid = 'uuid'::regtype
where c.relkind in ('r', 'p') order by 1"""


@dataclass(frozen=True)
class Try:
    """One thing of ACME, and what never was in its place: values of a path's names, and a body."""

    operation: Operation
    theirs: dict[str, str]
    nobodys: dict[str, str]
    bodies: tuple[Any, Any] = (None, None)


@pytest.fixture(scope="module")
async def fixtures(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, pictures: Draw) -> Fixtures:
    """With a session of ACME's member, too."""
    fixtures = await build_fixtures(platform, make_brand, make_user, pictures)
    async with fixtures.client("admin") as admin:
        await furnish(admin, fixtures.acme.id, "canary")
    async with fixtures.client("cookie"):
        return fixtures


@pytest.fixture(scope="module")
def described(platform: Platform) -> list[Operation]:
    return [each for each in operations(platform.app.openapi()) if each.names and each.path not in NO_BRAND]


@pytest.fixture
def ids(fixtures: Fixtures, owner: psycopg.Connection) -> dict[str, str]:
    """An id of ACME's from each table that has ids, by the table's name; and what else names a thing of theirs."""
    found = {"a user": fixtures.acme.member.user_id, "a model's name": "sd15-lora-v1"}
    for (table,) in owner.execute(_TABLES_WITH_IDS).fetchall():
        statement = sql.SQL("select id::text from {} where brand_id = %s limit 1").format(
            sql.Identifier(*table.split("."))
        )
        row = owner.execute(statement, [fixtures.acme.id]).fetchone()
        assert row is not None, f"tests/isolation/fixtures.py makes nothing that lies in {table}"
        found[table] = row[0]
    session = "select id::text from identity.sessions where user_id = %s limit 1"
    found["a session"] = owner.execute(session, [fixtures.acme.member.user_id]).fetchone()[0]  # type: ignore[index]
    return found


@asynccontextmanager
async def over_the_wire(fixtures: Fixtures, persona: str) -> AsyncIterator[httpx.AsyncClient]:
    async with fixtures.client(persona, "manage") as known:
        async with httpx.AsyncClient(base_url=fixtures.platform.url, headers=known.headers, timeout=60) as client:
            yield client


@pytest.fixture
async def outsider(fixtures: Fixtures) -> AsyncIterator[httpx.AsyncClient]:
    """An admin of GLOBEX: whatever is refused, it is not for want of a role."""
    async with over_the_wire(fixtures, "other_admin") as client:
        yield client


@pytest.fixture
async def key(fixtures: Fixtures) -> AsyncIterator[httpx.AsyncClient]:
    """A key of GLOBEX with every scope."""
    async with over_the_wire(fixtures, "other_key") as client:
        yield client


def told(answer: httpx.Response) -> tuple[Any, ...]:
    """Every byte of an answer, but for its own id and the clock."""
    own = answer.headers["x-request-id"].encode()
    headers = [pair for pair in answer.headers.raw if pair[0].lower() not in (b"date", b"x-request-id")]
    return answer.http_version, answer.status_code, answer.reason_phrase, headers, answer.content.replace(own, b"")


async def differences(
    client: httpx.AsyncClient, tries: Iterable[Try], refusals: frozenset[int] = frozenset({404})
) -> dict[str, str]:
    """The tries that tell one from the other, or that were answered otherwise than by one of `refusals`."""
    found = {}
    nobodys: dict[Any, httpx.Response] = {}
    for each in tries:
        operation, (body, never_body) = each.operation, each.bodies
        first = await client.request(operation.method, operation.at(each.theirs), **operation.content(body))
        same = (str(operation), str(each.nobodys), str(never_body))
        if same not in nobodys:
            nobodys[same] = await client.request(
                operation.method, operation.at(each.nobodys), **operation.content(never_body)
            )
        if first.status_code not in refusals or told(first) != told(nobodys[same]):
            found[f"{operation} {each.theirs}"] = f"{first.text} | {nobodys[same].text}"
    return found


_NEVER = str(uuid.uuid4())
_NEVER_BRAND = f"never-{uuid.uuid4().hex[:8]}"


def never(value: str) -> str:
    """A value of the same form that never existed: one for all, so that each route is asked for it once."""
    return "sd15-lora-v999" if value.startswith("sd15-") else _NEVER


def fitting(operation: Operation, ids: Mapping[str, str]) -> dict[str, str]:
    """Of these ids those that the path's names mean: `asset_id` one of app.brand_assets."""
    stems = {name.removesuffix("_id") for name in operation.names} - {"brand"}
    found = {table: thing for table, thing in ids.items() if any(stem in table for stem in stems)}
    assert found or not stems, f"fixtures.py, or the fixture `ids`, has no thing for {operation}"
    return found or dict(list(ids.items())[:1])


def under_their_brand(fixtures: Fixtures, operation: Operation, ids: Mapping[str, str]) -> Iterator[Try]:
    """ACME's things at ACME's address, and nobody's at nobody's."""
    body = BODIES.get(str(operation))
    for thing in fitting(operation, ids).values():
        theirs = dict.fromkeys(operation.names, thing) | {"brand_id": fixtures.acme.id}
        nobodys = {name: never(value) for name, value in theirs.items()}
        yield Try(operation, theirs, nobodys | {"brand_id": _NEVER_BRAND}, (body, body))


def under_the_own_brand(fixtures: Fixtures, operation: Operation, ids: Mapping[str, str]) -> Iterator[Try]:
    """Things of ACME's where one of GLOBEX is meant, and nobody's there."""
    body = BODIES.get(str(operation))
    for thing in ids.values():
        theirs = dict.fromkeys(operation.names, thing) | {"brand_id": fixtures.globex.id}
        nobodys = {name: never(value) for name, value in theirs.items()} | {"brand_id": fixtures.globex.id}
        yield Try(operation, theirs, nobodys, (body, body))


def in_bodies(fixtures: Fixtures, described: list[Operation], ids: Mapping[str, str]) -> Iterator[Try]:
    """ACME's ids in bodies of calls in the own brand, and of the face that names the brand in the body."""
    by_name = {str(operation): operation for operation in described}
    own = {"brand_id": fixtures.globex.id}
    for thing in ids.values():
        job = by_name["POST /v1/brands/{brand_id}/training-jobs"]
        bodies = [
            {"name": "j", "model_type": "sd15", "training_asset_ids": [each]} for each in (thing, str(uuid.uuid4()))
        ]
        yield Try(job, own, own, (bodies[0], bodies[1]))
        drawing = by_name["POST /v1/brands/{brand_id}/generations"]
        yield Try(drawing, own, own, ({"prompt": "p", "model": thing}, {"prompt": "p", "model": never(thing)}))
        face = Operation("POST", "/v1/images/generations", (), "application/json", {})
        pairs = [(fixtures.acme.id, _NEVER_BRAND), (fixtures.globex.id, fixtures.globex.id)]
        for theirs, nobodys in pairs:
            models = (f"{theirs}/{thing}", f"{nobodys}/{never(thing)}")
            yield Try(face, {}, {}, ({"prompt": "p", "model": models[0]}, {"prompt": "p", "model": models[1]}))


async def test_anothers_brand_is_answered_as_one_that_never_was(
    fixtures: Fixtures, described: list[Operation], ids: dict[str, str], outsider: httpx.AsyncClient
) -> None:
    tries = [
        each for operation in described if "brand_id" in operation.names
        for each in under_their_brand(fixtures, operation, ids)
    ]  # fmt: skip
    assert len(tries) > 40
    assert await differences(outsider, tries) == {}


async def test_anothers_thing_in_the_own_brand_is_answered_as_one_that_never_was(
    fixtures: Fixtures, described: list[Operation], ids: dict[str, str], outsider: httpx.AsyncClient
) -> None:
    """Any id of theirs in any place: a route that looks in the wrong table is found too."""
    tries = [
        each for operation in described if set(operation.names) > {"brand_id"}
        for each in under_the_own_brand(fixtures, operation, ids)
    ]  # fmt: skip
    assert len(tries) > 200
    assert await differences(outsider, tries) == {}


async def test_a_key_is_told_no_more(
    fixtures: Fixtures, described: list[Operation], ids: dict[str, str], key: httpx.AsyncClient
) -> None:
    """An operation that no key may do is refused before any look-up: 403, for existing objects and others."""
    tries = [
        each for operation in described if "brand_id" in operation.names
        for make, things in ((under_their_brand, ids), (under_the_own_brand, fitting(operation, ids)))
        if make is under_their_brand or len(operation.names) > 1
        for each in make(fixtures, operation, things)
    ]  # fmt: skip
    assert await differences(key, tries, frozenset({403, 404})) == {}


async def test_anothers_id_in_a_body_is_answered_as_one_that_never_was(
    fixtures: Fixtures, described: list[Operation], ids: dict[str, str], outsider: httpx.AsyncClient
) -> None:
    assert await differences(outsider, in_bodies(fixtures, described, ids)) == {}


async def test_routes_that_name_no_brand_answer_for_anothers_as_for_nobodys(
    fixtures: Fixtures, described: list[Operation], ids: dict[str, str], outsider: httpx.AsyncClient
) -> None:
    """`/v1/models/{brand}/{model}`, a user's sessions, and whatever comes after them."""
    brands = ((fixtures.acme.id, _NEVER_BRAND), (fixtures.globex.id, fixtures.globex.id))
    tries = []
    for operation in described:
        if "brand_id" in operation.names:
            continue
        for thing in ids.values():
            pairs = [(f"{theirs}/{thing}", f"{nobodys}/{never(thing)}") for theirs, nobodys in brands]
            for pair in [*pairs, (thing, never(thing))]:
                tries.append(Try(operation, *(dict.fromkeys(operation.names, value) for value in pair)))
    assert tries
    assert await differences(outsider, tries) == {}


async def test_a_link_without_a_right_does_not_tell_whether_there_is_a_file(fixtures: Fixtures) -> None:
    async with fixtures.client("member") as member:
        asset = (await member.get(f"/v1/brands/{fixtures.acme.id}/assets/{fixtures.things['asset']}")).json()
    async with httpx.AsyncClient(base_url=fixtures.platform.url) as nobody:
        for query in ("", "?expires=9999999999&signature=AAAA"):
            names = (
                asset["object_name"],
                f"{fixtures.acme.id}/logo-999.png",
                f"{_NEVER_BRAND}/logo-001.png",
            )
            answers = [await nobody.get(f"/v1/files/training-data/{name}{query}") for name in names]
            assert answers[0].status_code == 401
            assert told(answers[0]) == told(answers[1]) == told(answers[2])


async def test_the_comparison_notices_a_route_that_tells() -> None:
    """One byte in the text, one header, or another status: each is found."""
    app = FastAPI()

    @app.get("/v1/brands/{brand_id}/things/{thing_id}", status_code=404)
    async def thing(brand_id: str, thing_id: str) -> JSONResponse:
        theirs = thing_id == "theirs"
        headers = {"x-request-id": uuid.uuid4().hex} | ({"x-cache": "hit"} if brand_id == "header" and theirs else {})
        text = "gone" if brand_id == "text" and theirs else "none"
        return JSONResponse(text, 403 if brand_id == "status" and theirs else 404, headers)

    operation = Operation("GET", "/v1/brands/{brand_id}/things/{thing_id}", ("brand_id", "thing_id"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for leak in ("text", "header", "status", "none"):
            pair = [{"brand_id": leak, "thing_id": each} for each in ("theirs", "nobodys")]
            found = await differences(client, [Try(operation, *pair)])
            assert bool(found) == (leak != "none"), leak
