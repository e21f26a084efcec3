"""Every change over HTTP writes exactly one audit event with its actor, every link one, and refusals and reads none.

The rows are those of the matrix, so new routes are included. docs/audit.md must list what the code records.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import MakeBrand, MakeUser
from tests.isolation.fixtures import Draw, Fixtures, build_fixtures
from tests.isolation.test_http_matrix import PEOPLE, SYSTEM, MakeFixtures, _prepare, _things_for, name_of, send
from tools.harness.in_process_platform import Platform

ROOT = Path(__file__).parents[2]
ACTION = re.compile(r"(?:brand|member|invitation|key|asset|document|upload|job|generation|image|model)\.[a-z_]+")
LINKS = re.compile(r"/(?:content|download)$")
QUIET = {
    "POST /v1/training/report": "progress is an event of the job",
    "POST /v1/generation/report": "progress is an event of the generation",
    "POST /v1/generation/start": "the generation of the fixtures runs already: asking again changes nothing",
    "POST /v1/training/credentials": "session credentials are renewed with the ticket",
    "POST /v1/ticket:renew": "gives the ticket's own rights again",
}
"""Calls that change nothing worth a line, and why."""


@pytest.fixture(scope="module")
def make_fixtures(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, pictures: Draw) -> MakeFixtures:
    """`await make_fixtures()`: new fixtures, which a test may change."""
    return lambda: build_fixtures(platform, make_brand, make_user, pictures)


@pytest.fixture(scope="module")
async def shared_fixtures(make_fixtures: MakeFixtures) -> Fixtures:
    """Fixtures for calls that only read."""
    return await make_fixtures()


@pytest.fixture
async def new_fixtures(make_fixtures: MakeFixtures) -> Fixtures:
    return await make_fixtures()


def lines(owner: psycopg.Connection, brand_id: str, after: int = 0) -> list[tuple[int, str, str, Any]]:
    """(seq, actor, action, user) of the brand's record after a line."""
    owner.rollback()
    return owner.execute(
        "select seq, actor, action, user_id::text from audit.events where brand_id = %s and seq > %s order by seq",
        [brand_id, after],
    ).fetchall()


def last(owner: psycopg.Connection, brand_id: str) -> int:
    found = lines(owner, brand_id)
    return found[-1][0] if found else 0


def by_people(written: list[tuple[int, str, str, Any]]) -> list[tuple[int, str, str, Any]]:
    """Lines of users and keys, without those of links in an answer (OpenAI's face answers a drawing with links)."""
    return [line for line in written if line[1] != "system" and not line[2].endswith(".link")]


def changes(row: dict[str, Any]) -> bool:
    return not str(row["http"]).startswith(("GET ", "HEAD "))


def who_may(row: dict[str, Any]) -> str | None:
    return next((persona for persona in ("member", "admin") if row[persona] == "allow"), None)


MUTATING = [row for row in PEOPLE if changes(row) and who_may(row)]
READING = [row for row in PEOPLE if not changes(row) and who_may(row)]


@pytest.mark.parametrize("row", MUTATING, ids=name_of)
async def test_a_change_leaves_one_line_by_who_made_it_and_a_key_is_named(
    make_fixtures: MakeFixtures, owner: psycopg.Connection, row: dict[str, Any]
) -> None:
    fixtures, persona = await make_fixtures(), str(who_may(row))
    person = fixtures.acme.admin if persona == "admin" else fixtures.acme.member
    assert await changed(fixtures, owner, row, persona) == [("user", person.user_id)]
    if row.get("key") == "allow":
        fixtures = await make_fixtures() if row.get("uses_up") else fixtures
        assert await changed(fixtures, owner, row, "key") == [("key", fixtures.acme.admin.user_id)]


async def changed(
    fixtures: Fixtures, owner: psycopg.Connection, row: dict[str, Any], persona: str
) -> list[tuple[str, str]]:
    """Has the persona make the row's change; the (actor, user) of each line that people left by it."""
    things = await _things_for(fixtures, row)
    async with fixtures.client(persona, row["needs"]) as client:
        before = last(owner, fixtures.acme.id)
        answer = await send(fixtures, client, row, things)
    assert answer.is_success, answer.text
    return [(actor, user) for _, actor, _, user in by_people(lines(owner, fixtures.acme.id, before))]


@pytest.mark.parametrize("row", READING, ids=name_of)
async def test_reading_leaves_no_line_and_a_link_leaves_one(
    shared_fixtures: Fixtures, owner: psycopg.Connection, row: dict[str, Any]
) -> None:
    fixtures = shared_fixtures
    before = last(owner, fixtures.acme.id)
    async with fixtures.client(str(who_may(row))) as client:
        answer = await send(fixtures, client, row, fixtures.things)
    assert answer.is_success, answer.text
    written = [action for _, _, action, _ in lines(owner, fixtures.acme.id, before)]
    if LINKS.search(row["http"]):
        assert len(written) == 1, written
        assert written[0].endswith((".link", ".download"))
    else:
        assert [action for action in written if not action.endswith(".link")] == []
        assert len(written) == (1 if "signature=" in answer.text.lower() else 0), written


@pytest.mark.parametrize("row", [row for row in SYSTEM if "{" not in row["http"] and changes(row)], ids=name_of)
async def test_what_the_system_changes_leaves_one_line_that_names_its_job(
    new_fixtures: Fixtures, owner: psycopg.Connection, row: dict[str, Any]
) -> None:
    fixtures = new_fixtures
    await _prepare(fixtures, row)
    before = last(owner, fixtures.acme.id)
    async with fixtures.worker("own", row["resource"], False) as client:
        answer = await send(fixtures, client, row, fixtures.things)
    if row["own"] == "allow":
        assert answer.is_success, answer.text
    written = [(actor, user) for _, actor, _, user in lines(owner, fixtures.acme.id, before)]
    if row["http"] in QUIET:
        written = [line for line in written if line[0] != "system"] if "report" in row["http"] else written
        assert written == []
    else:
        assert written == [("system", fixtures.acme.member.user_id)]


@pytest.mark.parametrize("row", MUTATING, ids=name_of)
async def test_what_is_refused_leaves_no_line(
    shared_fixtures: Fixtures, owner: psycopg.Connection, row: dict[str, Any]
) -> None:
    fixtures = shared_fixtures
    before = last(owner, fixtures.acme.id)
    for persona in ("other_admin", "removed", "anonymous"):
        async with fixtures.client(persona) as client:
            assert not (await send(fixtures, client, row, fixtures.things)).is_success
    assert lines(owner, fixtures.acme.id, before) == []


async def test_no_text_that_people_wrote_is_in_the_record(new_fixtures: Fixtures, owner: psycopg.Connection) -> None:
    """Captions, prompts, job names and reasons contain canaries; so do objects that users of the fixtures make."""
    fixtures, acme = new_fixtures, new_fixtures.acme
    base = f"/v1/brands/{acme.id}"
    async with fixtures.client("admin") as client:
        await client.post(f"{base}/keys", json={"name": "canary-key", "scopes": ["read"]})
        await client.post(f"{base}/invitations", json={"email": "canary@example.com", "role": "member"})
    async with fixtures.client("member") as client:
        await client.patch(f"{base}/assets/{fixtures.things['asset']}", json={"caption": "canary-recaption of [brand]"})
        await client.patch(f"{base}/training-jobs/{fixtures.things['job']}", json={"name": "canary-name"})
        await client.post(f"{base}/generations", json={"prompt": "canary-asked [hang]", "model_type": "sd15"})
    told = owner.execute("select to_jsonb(e)::text from audit.events e where brand_id = %s", [acme.id]).fetchall()
    assert len(told) > 15
    assert "canary" not in json.dumps(told)


# the page about it


def recorded() -> set[str]:
    """Every action that the services, the routes, the operator and the database's own sweeps record."""
    found: set[str] = set()
    for folder in ("services", "api", "db"):
        for path in (ROOT / "platform/onbrand" / folder).glob("*.py"):
            constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
            found |= {text for text in constants if isinstance(text, str) and ACTION.fullmatch(text)}
    for path in (ROOT / "platform/onbrand/db/migrations").glob("*.sql"):
        found |= set(re.findall(rf"'({ACTION.pattern})'", path.read_text()))
    return found


def test_the_page_lists_what_is_recorded_and_nothing_else() -> None:
    page = (ROOT / "docs/audit.md").read_text()
    tables = "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([a-z_]+\.[a-z_]+)`", tables)) == recorded()


def test_every_quiet_call_has_a_row() -> None:
    assert set(QUIET) <= {row["http"] for row in SYSTEM} | {"POST /v1/ticket:renew", "POST /v1/training/credentials"}
