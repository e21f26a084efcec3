"""The matrix over HTTP: every row for every persona, with what is refused leaving every row as it was."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fastapi import FastAPI
from fastapi.routing import APIRoute

from onbrand.db.logins import DatabaseUrls
from onbrand.services import generation
from tests.conftest import MakeBrand, MakeUser
from tests.ingress import Platform, weights
from tests.isolation import world as worlds
from tests.isolation.world import World

HERE = Path(__file__).parent
TABLES = [yaml.safe_load((HERE / name).read_text()) for name in ("matrix.yaml", "http.yaml")]
PEOPLE = [row for table in TABLES for row in table["people"] if row["http"]]
SYSTEM = [row for table in TABLES for row in table["system"]]
PERSONAS = ("removed", "other_member", "other_admin", "bound", "anonymous", "member2", "admin", "member")
TICKETS = ("other_job", "other_kind", "other_brand", "person", "own")
ANSWERS = {401: "unauthenticated", 403: "deny_role", 404: "not_found"}


def name_of(row: dict[str, Any]) -> str:
    return f"{row['resource']} {row['verb']}"


def answer_of(answer: httpx.Response) -> str:
    return "allow" if answer.is_success else ANSWERS.get(answer.status_code, f"{answer.status_code} {answer.text}")


@pytest.fixture
async def world(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, pictures: worlds.Draw) -> World:
    return await worlds.build(platform, make_brand, make_user, pictures)


def filled(template: str, things: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: things[found[1]], template)


def content_of(world: World, body: Any, things: dict[str, str]) -> dict[str, Any]:
    """The parts of a request: JSON, or a form where a file is said."""
    if body is None:
        return {}
    if "files" in body:
        return {"files": [("files", ("a.png", world.picture(), "image/png"))]}
    if "file" in body:
        picture = ("a.png", world.picture(), "image/png")
        file = picture if "picture" in body["file"] else ("a", weights(), "application/octet-stream")
        rest = {k: json.dumps(v) if k == "facts" else str(v) for k, v in body.items() if k != "file"}
        return {"files": [("file", file)], "data": rest}
    return {"json": json.loads(filled(json.dumps(body), things))} if _has_names(body) else {"json": body}


def _has_names(body: Any) -> bool:
    return re.search(r"\{\w+\}", json.dumps(body)) is not None


async def send(world: World, client: httpx.AsyncClient, row: dict[str, Any], things: dict[str, str]) -> httpx.Response:
    method, path = row["http"].split(" ", 1)
    return await client.request(method, filled(path, things), **content_of(world, row.get("body"), things))


def told(answer: httpx.Response) -> tuple[int, str, list[tuple[str, str]]]:
    """Everything an answer tells, but for its own id."""
    request_id = answer.headers["x-request-id"]
    headers = [(name, value) for name, value in answer.headers.items() if name != "x-request-id"]
    return answer.status_code, answer.text.replace(request_id, ""), headers


@pytest.mark.parametrize("row", PEOPLE, ids=name_of)
async def test_people_may_do_what_the_matrix_says(world: World, database: DatabaseUrls, row: dict[str, Any]) -> None:
    answers = {}
    for persona in PERSONAS:
        before = world.rows(database.owner_url)
        async with world.client(persona) as client:
            answer = await send(world, client, row, world.things)
        answers[persona] = answer_of(answer)
        if not answer.is_success:
            assert world.rows(database.owner_url) == before, f"{persona} was refused, but something changed"
    assert answers == {persona: row[persona] for persona in PERSONAS}


@pytest.mark.parametrize("row", PEOPLE, ids=name_of)
async def test_what_is_anothers_is_answered_as_what_never_was(world: World, row: dict[str, Any]) -> None:
    never = {name: str(uuid.uuid4()) for name in world.things} | {"newcomer_email": "nobody@example.com"}
    for persona in ("removed", "other_member", "other_admin", "bound"):
        async with world.client(persona) as client:
            anothers = await send(world, client, row, world.things)
            nobodys = await send(world, client, row, never | {"brand": f"never-{uuid.uuid4().hex[:8]}"})
        assert told(anothers) == told(nobodys), persona


@pytest.mark.parametrize(
    "row", [row for row in PEOPLE if _has_names({**row, "http": ""} | {"p": row["http"]})], ids=name_of
)
async def test_anothers_id_under_the_own_brand_is_answered_as_one_that_never_was(
    world: World, row: dict[str, Any]
) -> None:
    if not re.search(r"\{(?!brand|newcomer)\w+\}", json.dumps(row)):
        pytest.skip("the row names no thing")
    anothers = world.things | {"brand": world.globex.id, "newcomer_email": "nobody@example.com"}
    never = {name: str(uuid.uuid4()) for name in world.things} | {
        "brand": world.globex.id,
        "newcomer_email": "nobody@example.com",
    }
    async with world.client("other_admin") as client:
        first, second = await send(world, client, row, anothers), await send(world, client, row, never)
    assert first.status_code == 404
    assert told(first) == told(second)


@pytest.mark.parametrize("row", SYSTEM, ids=name_of)
async def test_tickets_open_what_the_matrix_says(world: World, database: DatabaseUrls, row: dict[str, Any]) -> None:
    await _prepare(world, row)
    has_thing = "{" in row["http"]
    answers = {}
    things = dict(world.things)
    if row["resource"] == "generation" and has_thing:
        things, own = await _with_an_adapter(world)
    for persona in TICKETS:
        before = world.rows(database.owner_url)
        async with world.worker(persona, row["resource"], has_thing) as client:
            if persona == "own" and has_thing and row["resource"] == "generation":
                client.headers["authorization"] = f"Bearer {own}"
            answer = await send(world, client, row, things)
        answers[persona] = answer_of(answer)
        if not answer.is_success:
            assert world.rows(database.owner_url) == before, f"{persona} was refused, but something changed"
    assert answers == {persona: row[persona] for persona in TICKETS}


async def _prepare(world: World, row: dict[str, Any]) -> None:
    """What a row needs beforehand."""
    if "ask_to_cancel" in row:
        async with world.client("member") as client:
            await client.post(f"/v1/brands/{world.acme.id}/training-jobs/{world.things['job']}/cancel")
    if "drawn" in row:
        ticket = world.acme.ticket(world.things["generation"], "generation")
        async with world.platform.doors.system_session(ticket) as session:
            await worlds.add_image(world, session, ticket, 1)


async def _with_an_adapter(world: World) -> tuple[dict[str, str], str]:
    """A generation that draws with the model, and its ticket: only such a one may read the weights."""
    from onbrand.services import images

    new = images.NewGeneration(prompt="p", model=world.things["model"])
    async with world.platform.doors.user_session(world.acme.member.scope) as session:
        made = await images.create_generation(
            session,
            world.acme.id,
            world.acme.member.user_id,
            new,
            images.recommended_of(world.platform.settings),
            world.platform.settings.limits,
        )
    ticket = world.acme.ticket(made.id, "generation")
    async with world.platform.doors.system_session(ticket) as session:
        await generation.start_generation(session, ticket)
    return world.things, ticket.sign(world.platform.secrets.tickets)


def normal(route: str) -> str:
    """A route with its names left out: two ways to write the same one are one."""
    return re.sub(r"\{[^}]*\}", "{}", route)


def test_every_route_has_a_row_or_a_reason(platform: Platform) -> None:
    said = {normal(row["http"]) for row in PEOPLE + SYSTEM} | {normal(row["http"]) for row in TABLES[1]["exempt"]}
    said |= {normal(re.sub(r"/(sd15\S*)$", "/{model}", row["http"])) for row in PEOPLE}
    said.add("GET /v1/models/{}") if any("/v1/models/{brand}/" in row["http"] for row in PEOPLE) else None
    unsaid = (routes_of(platform.app) | routes_of(platform.system_app)) - said
    assert not unsaid, f"add a row to matrix.yaml or http.yaml for: {sorted(unsaid)}"


def test_every_exemption_is_of_a_route_that_exists(platform: Platform) -> None:
    there = routes_of(platform.app) | routes_of(platform.system_app)
    stale = {normal(row["http"]) for row in TABLES[1]["exempt"]} - there
    assert not stale


def routes_of(app: FastAPI) -> set[str]:
    found = {"GET /openapi.json"}
    for route in app.routes:
        if isinstance(route, APIRoute):
            found |= {f"{method} {normal(route.path)}" for method in route.methods}
    return found
