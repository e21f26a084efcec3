"""The matrix over HTTP: every row for every persona. A refused request changes no row."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Route

from onbrand.services import generation_parameters, generation_worker, generations, training_worker
from tests.conftest import MakeBrand, MakeUser
from tests.isolation.check_counter import CheckCounter
from tests.isolation.fixtures import Draw, Fixtures, build_fixtures
from tools.harness.in_process_platform import Platform, upload, weights

HERE = Path(__file__).parent
TABLES = [yaml.safe_load((HERE / name).read_text()) for name in ("matrix.yaml", "http.yaml")]
PEOPLE = [row for table in TABLES for row in table["people"] if row["http"]]
SYSTEM = [row for table in TABLES for row in table["system"]]
PERSONAS = (
    "removed", "other_member", "other_admin", "bound", "other_key", "ticket", "anonymous",
    "key_without", "cookie", "member2", "key", "admin", "member",
)  # fmt: skip
STRANGERS = ("removed", "other_member", "other_admin", "bound", "other_key")
TICKETS = ("other_job", "other_kind", "other_brand", "person", "own")
ANSWERS = {401: "unauthenticated", 403: "deny_role", 404: "not_found", 409: "last_admin"}


def name_of(row: dict[str, Any]) -> str:
    return f"{row['resource']} {row['verb']}"


def answer_of(answer: httpx.Response) -> str:
    return "allow" if answer.is_success else ANSWERS.get(answer.status_code, f"{answer.status_code} {answer.text}")


MakeFixtures = Callable[[], Awaitable[Fixtures]]


@pytest.fixture(scope="module")
def make_fixtures(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, pictures: Draw) -> MakeFixtures:
    """`await make_fixtures()`: new fixtures, which a test may change."""
    return lambda: build_fixtures(platform, make_brand, make_user, pictures)


@pytest.fixture(scope="module")
async def shared_fixtures(make_fixtures: MakeFixtures) -> Fixtures:
    """Fixtures for tests that only read, or whose changes are all refused."""
    return await make_fixtures()


def filled(template: str, things: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: things[found[1]], template)


def content_of(fixtures: Fixtures, body: Any, things: dict[str, str]) -> dict[str, Any]:
    """The content of a request: JSON, or a form if the row has a file."""
    if body is None:
        return {}
    if "files" in body:
        return {"files": [("files", ("a.png", fixtures.picture(), "image/png"))]}
    if body.get("file") == "a document":
        return {"files": [("file", (f"{uuid.uuid4()}.md", b"# A document\n", "text/markdown"))]}
    if "file" in body:
        picture = ("a.png", fixtures.picture(), "image/png")
        file = picture if "picture" in body["file"] else ("a", weights(), "application/octet-stream")
        rest = {k: filled(json.dumps(v), things) if k == "facts" else str(v) for k, v in body.items() if k != "file"}
        return {"files": [("file", file)], "data": rest}
    return {"json": json.loads(filled(json.dumps(body), things))} if _has_names(body) else {"json": body}


def is_looking(row: dict[str, Any]) -> bool:
    return str(row["http"]).startswith("GET ")


def names_a_thing(row: dict[str, Any]) -> bool:
    return re.search(r"\{(?!brand\}|newcomer)\w+\}", json.dumps([row["http"], row.get("body")])) is not None


def _has_names(body: Any) -> bool:
    return re.search(r"\{\w+\}", json.dumps(body)) is not None


async def send(
    fixtures: Fixtures, client: httpx.AsyncClient, row: dict[str, Any], things: dict[str, str]
) -> httpx.Response:
    method, path = row["http"].split(" ", 1)
    return await client.request(method, filled(path, things), **content_of(fixtures, row.get("body"), things))


def told(answer: httpx.Response) -> tuple[int, str, list[tuple[str, str]]]:
    """Everything that a response reveals, without its request id."""
    request_id = answer.headers["x-request-id"]
    headers = [(name, value) for name, value in answer.headers.items() if name != "x-request-id"]
    return answer.status_code, answer.text.replace(request_id, ""), headers


@pytest.mark.parametrize("row", [row for row in PEOPLE if is_looking(row)], ids=name_of)
async def test_people_may_see_what_the_matrix_says(
    shared_fixtures: Fixtures, owner: psycopg.Connection, check_counter: CheckCounter, row: dict[str, Any]
) -> None:
    answers = await _answers(shared_fixtures, row, owner, PERSONAS)
    check_counter.compare("http", answers, {persona: row[persona] for persona in PERSONAS})


@pytest.mark.parametrize("row", [row for row in PEOPLE if not is_looking(row)], ids=name_of)
async def test_people_may_do_what_the_matrix_says(
    make_fixtures: MakeFixtures, owner: psycopg.Connection, check_counter: CheckCounter, row: dict[str, Any]
) -> None:
    answers: dict[str, str] = {}
    for personas in _sharing_fixtures(row):
        answers |= await _answers(await make_fixtures(), row, owner, personas)
    check_counter.compare("http", answers, {persona: row[persona] for persona in PERSONAS})


async def _answers(
    fixtures: Fixtures, row: dict[str, Any], owner: psycopg.Connection, personas: Sequence[str]
) -> dict[str, str]:
    """The response of each persona. Fails if a refused request changed a row."""
    answers: dict[str, str] = {}
    async with AsyncExitStack() as opened:
        clients = [await opened.enter_async_context(fixtures.client(each, row["needs"])) for each in personas]
        things = await _things_for(fixtures, row)
        before = fixtures.rows(owner)
        for persona, client in zip(personas, clients, strict=True):
            answer = await send(fixtures, client, row, things)
            answers[persona] = answer_of(answer)
            after = fixtures.rows(owner)
            assert answer.is_success or before == after, f"{persona} was refused, but something changed"
            before = after
    return answers


def _sharing_fixtures(row: dict[str, Any]) -> list[list[str]]:
    """Groups of personas that share fixtures, in order. A call that uses up its object needs new ones."""
    if not row.get("uses_up"):
        return [list(PERSONAS)]
    refused = [persona for persona in PERSONAS if row[persona] != "allow"]
    may = [persona for persona in PERSONAS if row[persona] == "allow"]
    return [[*refused, may[0]], *([persona] for persona in may[1:])]


@pytest.mark.parametrize("row", PEOPLE, ids=name_of)
async def test_what_is_anothers_is_answered_as_what_never_was(shared_fixtures: Fixtures, row: dict[str, Any]) -> None:
    fixtures = shared_fixtures
    never = {name: str(uuid.uuid4()) for name in fixtures.things} | {"newcomer_email": "nobody@example.com"}
    for persona in STRANGERS:
        async with fixtures.client(persona) as client:
            anothers = await send(fixtures, client, row, fixtures.things)
            nobodys = await send(fixtures, client, row, never | {"brand": f"never-{uuid.uuid4().hex[:8]}"})
        assert told(anothers) == told(nobodys), persona


@pytest.mark.parametrize("row", [row for row in PEOPLE if names_a_thing(row)], ids=name_of)
async def test_anothers_id_under_the_own_brand_is_answered_as_one_that_never_was(
    shared_fixtures: Fixtures, row: dict[str, Any]
) -> None:
    fixtures = shared_fixtures
    own = {"brand": fixtures.globex.id}
    never = {name: str(uuid.uuid4()) for name in fixtures.things}
    async with fixtures.client("other_admin") as client:
        first = await send(fixtures, client, row, fixtures.things | own)
        second = await send(fixtures, client, row, never | own)
    assert first.status_code == 404
    assert told(first) == told(second)


@pytest.mark.parametrize("row", SYSTEM, ids=name_of)
async def test_tickets_open_what_the_matrix_says(
    make_fixtures: MakeFixtures, owner: psycopg.Connection, check_counter: CheckCounter, row: dict[str, Any]
) -> None:
    fixtures = await make_fixtures()
    await _prepare(fixtures, row)
    names_thing = "{" in row["http"]
    if row["resource"] == "generation" and names_thing:
        fixtures.things["generation"] = await _draw_with_the_model(fixtures)
    answers, before = {}, fixtures.rows(owner)
    for persona in TICKETS:
        async with fixtures.worker(persona, row["resource"], names_thing) as client:
            answer = await send(fixtures, client, row, fixtures.things)
        answers[persona] = answer_of(answer)
        after = fixtures.rows(owner)
        assert answer.is_success or before == after, f"{persona} was refused, but something changed"
        before = after
    check_counter.compare("http", answers, {persona: row[persona] for persona in TICKETS})


async def _things_for(fixtures: Fixtures, row: dict[str, Any]) -> dict[str, str]:
    """ACME's things; a picture that is to be deleted is one that no job uses, a job that is to be stopped has begun."""
    if "begun" in row:
        ticket = fixtures.acme.ticket(fixtures.things["job"])
        async with fixtures.platform.db.system_session(ticket) as session:
            await training_worker.report(session, ticket, 1)
    if (row["resource"], row["verb"]) != ("training data", "delete"):
        return fixtures.things
    async with fixtures.client("member") as client:
        return fixtures.things | {"asset": (await upload(client, fixtures.acme.id, fixtures.picture()))["id"]}


async def _prepare(fixtures: Fixtures, row: dict[str, Any]) -> None:
    """Create what a row requires."""
    if "ask_to_cancel" in row:
        async with fixtures.client("member") as client:
            await client.post(f"/v1/brands/{fixtures.acme.id}/training-jobs/{fixtures.things['job']}/cancel")
    if "imports" in row:
        async with fixtures.client("member") as client:
            form = {"files": {"file": ("a", weights())}, "data": {"model_type": "sd15"}}
            answer = await client.post(f"/v1/brands/{fixtures.acme.id}/models:import", **form)
        fixtures.things["job"] = answer.json()["id"]
    if "continues" in row:
        body = {"name": "a job", "model_type": "sd15", "training_asset_ids": [fixtures.things["asset"]]}
        body |= {"training_config": {"continue_from": fixtures.things["model"]}}
        async with fixtures.client("member") as client:
            answer = await client.post(f"/v1/brands/{fixtures.acme.id}/training-jobs", json=body)
        fixtures.things["job"] = answer.json()["id"]


async def _draw_with_the_model(fixtures: Fixtures) -> str:
    """A generation that draws with the model: only the ticket of such a one may read the weights."""
    platform, acme = fixtures.platform, fixtures.acme
    new = generation_parameters.NewGeneration(prompt="p", model=fixtures.things["model"])
    async with platform.db.user_session(acme.member.scope) as session:
        bases, limits = generations.recommended_of(platform.settings), platform.settings.limits
        made = await generations.create_generation(session, acme.id, acme.member.user_id, new, bases, limits)
    ticket = acme.ticket(made.id, "generation")
    async with platform.db.system_session(ticket) as session:
        await generation_worker.start_generation(session, ticket)
    return made.id


def normal(route: str) -> str:
    """A route with names left out, so that two ways to write it are one; `sd15-lora-v1` in a row stands for a model."""
    return re.sub(r"\{[^}]*\}", "{}", re.sub(r"/sd15[^/]*", "/{}", route)).replace("/v1/models/{}/{}", "/v1/models/{}")


def test_every_route_has_a_row_or_a_reason(platform: Platform) -> None:
    said = {normal(row["http"]) for row in PEOPLE + SYSTEM + TABLES[1]["exempt"]}
    unsaid = routes_of(platform.app.routes) | routes_of(platform.system_app.routes)
    unsaid -= said
    assert not unsaid, f"add a row to matrix.yaml or http.yaml for: {sorted(unsaid)}"


def test_the_sweep_notices_a_route_without_a_row() -> None:
    router = APIRouter(prefix="/v1/brands/{brand_id}")
    router.add_api_route("/secrets/{secret_id:path}", lambda: None, methods=["PUT"], include_in_schema=False)
    app = FastAPI(openapi_url=None)
    app.include_router(router)
    assert "PUT /v1/brands/{}/secrets/{}" in routes_of(app.routes)


def test_the_sweep_sees_every_route_that_the_description_names(platform: Platform) -> None:
    for app in (platform.app, platform.system_app):
        described = {
            f"{method.upper()} {normal(path)}" for path, methods in app.openapi()["paths"].items() for method in methods
        }
        assert described <= routes_of(app.routes)


def test_every_exemption_is_of_a_route_that_exists(platform: Platform) -> None:
    there = routes_of(platform.app.routes) | routes_of(platform.system_app.routes)
    assert {normal(row["http"]) for row in TABLES[1]["exempt"]} <= there


def routes_of(routes: Sequence[BaseRoute]) -> set[str]:
    """Method and address of every route, of included routers too."""
    found: set[str] = set()
    for route in routes:
        if isinstance(route, Route):
            hidden_twin = {"HEAD"} if "GET" in (route.methods or ()) else set()
            found |= {f"{method} {normal(route.path)}" for method in (route.methods or set()) - hidden_twin}
        else:
            inner = getattr(route, "original_router", None)
            assert inner is not None, f"the sweep does not know how to look into {type(route).__name__}"
            found |= routes_of(inner.routes)
    return found
