"""Tickets without access: forged, expired, of an ended job, of a removed member.

The matrix lists which ticket reaches what. This file tries invalid tickets on every internal route of the matrix, and
checks that no row changes.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import jwt
import psycopg
import pytest

from onbrand.brand import TICKET_SECONDS_MAX, Ticket
from onbrand.db.session import Database
from onbrand.errors import Conflict, Forbidden, NotFound, TicketRefused
from onbrand.services import brands, generation_worker, training_worker
from onbrand.storage.store import ObjectStore
from tests.conftest import MakeBrand, MakeUser, join
from tests.isolation.fixtures import Draw, Fixtures, build_fixtures
from tests.isolation.test_http_matrix import SYSTEM, name_of, send
from tools.harness.in_process_platform import Platform, weights

KEY = "k" * 64
BRAND, JOB, MEMBER = "acme", str(uuid.uuid4()), str(uuid.uuid4())


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a valid ticket, with changes; None removes a claim."""
    now = int(time.time())
    good = {
        "iss": "onbrand-tickets",
        "sub": MEMBER,
        "brand_id": BRAND,
        "job_id": JOB,
        "kind": "training",
        "iat": now,
        "exp": now + 600,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def signed(key: str = KEY, algorithm: str = "HS256", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm)


def retold(token: str, **changes: Any) -> str:
    """The token with other claims and its old signature."""
    head, body, signature = token.split(".")
    said = json.loads(base64.urlsafe_b64decode(body + "=="))
    other = base64.urlsafe_b64encode(json.dumps(said | changes).encode()).rstrip(b"=").decode()
    return f"{head}.{other}.{signature}"


def unsigned() -> str:
    return jwt.encode(claims(), None, algorithm="none")


def at(seconds: int) -> int:
    """The time this many seconds from now."""
    return int(time.time()) + seconds


BAD: dict[str, Callable[[], str]] = {
    "signed with another key": lambda: signed("x" * 64),
    "not signed": unsigned,
    "its signature cut off": lambda: signed().rpartition(".")[0] + ".",
    "another algorithm with the right key": lambda: signed(algorithm="HS512"),
    "another brand under the old signature": lambda: retold(signed(), brand_id="globex"),
    "another job under the old signature": lambda: retold(signed(), job_id=str(uuid.uuid4())),
    "a later end under the old signature": lambda: retold(signed(), exp=at(900)),
    "expired": lambda: signed(iat=at(-700), exp=at(-100)),
    "expired this second": lambda: signed(exp=at(0)),
    "living too long": lambda: signed(exp=at(TICKET_SECONDS_MAX + 60)),
    "signed in the future": lambda: signed(iat=at(500), exp=at(600)),
    "ending before it begins": lambda: signed(iat=at(0), exp=at(-1)),
    "of another issuer": lambda: signed(iss="onbrand"),
    "of an unknown kind": lambda: signed(kind="admin"),
    "of a job that is none": lambda: signed(job_id="*"),
    "of a brand that is none": lambda: signed(brand_id="../acme"),
    "of a member who is none": lambda: signed(sub="anybody"),
    "of a list of jobs": lambda: signed(job_id=[JOB]),
    **{f"without {name}": (lambda name=name: signed(**{name: None})) for name in claims()},  # type: ignore[misc]
    "nothing at all": lambda: "",
    "not a token": lambda: "a.b.c",
}


def test_the_ticket_that_the_bad_ones_are_made_of_is_good() -> None:
    """The test of the tests below."""
    assert Ticket.verify(signed(), KEY).job_id == JOB
    issued = Ticket.issue(BRAND, JOB, MEMBER, "training", 600)
    assert Ticket.verify(issued.sign(KEY), KEY) == issued


@pytest.mark.parametrize("make", BAD.values(), ids=list(BAD))
def test_a_bad_ticket_is_refused_with_the_same_words(make: Callable[[], str]) -> None:
    with pytest.raises(TicketRefused, match="forged, expired or incomplete"):
        Ticket.verify(make(), KEY)


def test_no_ticket_is_issued_for_longer_than_one_may_live() -> None:
    with pytest.raises(TicketRefused):
        Ticket.verify(Ticket.issue(BRAND, JOB, MEMBER, "training", TICKET_SECONDS_MAX + 60).sign(KEY), KEY)


def test_a_ticket_says_nothing_of_itself_in_a_refusal() -> None:
    token = signed("x" * 64)
    with pytest.raises(TicketRefused) as refused:
        Ticket.verify(token, KEY)
    assert refused.value.__cause__ is None
    assert not any(part in str(refused.value) for part in (*token.split("."), BRAND, JOB))


@pytest.fixture(scope="module")
async def fixtures(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, pictures: Draw) -> Fixtures:
    """Fixtures for tests in which everything is refused. `job` and `generation` have not ended."""
    return await build_fixtures(platform, make_brand, make_user, pictures)


@pytest.fixture(scope="module")
async def ended(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, pictures: Draw) -> Fixtures:
    """Fixtures whose `job` and `generation` have failed; the generation has a model, and the pictures exist."""
    fixtures = await build_fixtures(platform, make_brand, make_user, pictures)
    for kind, of_kind in (("training", training_worker.fail), ("generation", generation_worker.fail_generation)):
        ticket = fixtures.acme.ticket(fixtures.things["job" if kind == "training" else "generation"], kind)
        async with platform.db.system_session(ticket) as session:
            await of_kind(session, ticket, "test", "a test")
    return fixtures


@pytest.fixture(scope="module")
async def deserted(platform: Platform, make_brand: MakeBrand, make_user: MakeUser, pictures: Draw) -> Fixtures:
    """Fixtures whose member, on whose behalf everything runs, was removed during the runs."""
    fixtures = await build_fixtures(platform, make_brand, make_user, pictures)
    async with platform.db.user_session(fixtures.acme.admin.scope) as session:
        await brands.remove_member(session, fixtures.acme.id, fixtures.acme.member.user_id)
    return fixtures


async def tried(fixtures: Fixtures, row: dict[str, Any], token: str) -> httpx.Response:
    transport = httpx.ASGITransport(fixtures.platform.system_app)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        return await send(fixtures, client, row, fixtures.things)


def ticket_for(fixtures: Fixtures, row: dict[str, Any]) -> Ticket:
    """A genuine ticket for the job or generation of the fixtures, whichever the route is about."""
    kind = row["resource"]
    return fixtures.acme.ticket(fixtures.things["job" if kind == "training" else "generation"], kind)


FORGERIES: dict[str, Callable[[Ticket, str], str]] = {
    "forged": lambda ticket, key: ticket.sign("x" * 64),
    "expired": lambda ticket, key: Ticket(
        ticket.brand_id, ticket.job_id, ticket.on_behalf_of, ticket.kind, int(time.time()) - 1
    ).sign(key),
    "living too long": lambda ticket, key: ticket.renewed(TICKET_SECONDS_MAX + 60).sign(key),
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=list(FORGERIES))
@pytest.mark.parametrize("row", SYSTEM, ids=name_of)
async def test_no_internal_route_takes_a_bad_ticket(
    fixtures: Fixtures, owner: psycopg.Connection, row: dict[str, Any], forgery: Callable[[Ticket, str], str]
) -> None:
    before = fixtures.rows(owner)
    answer = await tried(fixtures, row, forgery(ticket_for(fixtures, row), fixtures.platform.secrets.tickets))
    assert (answer.status_code, answer.json()["code"]) == (401, "ticket_refused")
    assert fixtures.rows(owner) == before


def ends_as_it_ended(row: dict[str, Any]) -> bool:
    """Reporting the same end again is no error, as a response may be lost, and changes nothing."""
    return bool(row["verb"] == "fail")


@pytest.mark.parametrize("row", SYSTEM, ids=name_of)
async def test_after_the_end_a_ticket_opens_nothing(
    ended: Fixtures, owner: psycopg.Connection, row: dict[str, Any]
) -> None:
    before = ended.rows(owner)
    answer = await tried(ended, row, ticket_for(ended, row).sign(ended.platform.secrets.tickets))
    assert answer.status_code == 204 if ends_as_it_ended(row) else answer.status_code in (404, 409), answer.text
    assert ended.rows(owner) == before


async def test_a_ticket_of_an_ended_job_is_not_renewed(ended: Fixtures) -> None:
    for kind, thing in (("training", "job"), ("generation", "generation")):
        async with ended.platform.system(ended.acme.ticket(ended.things[thing], kind)) as worker:
            with pytest.raises(Conflict):
                await worker.renew()


@pytest.mark.parametrize("row", SYSTEM, ids=name_of)
async def test_a_removed_members_tickets_open_nothing(
    deserted: Fixtures, owner: psycopg.Connection, row: dict[str, Any]
) -> None:
    before = deserted.rows(owner)
    answer = await tried(deserted, row, ticket_for(deserted, row).sign(deserted.platform.secrets.tickets))
    assert answer.status_code == 404, answer.text
    assert deserted.rows(owner) == before


@pytest.fixture
async def alone(db: Database, deserted: Fixtures) -> AsyncIterator[Any]:
    """A session with a ticket of the removed member."""
    async with db.system_session(deserted.acme.ticket(deserted.things["job"])) as session:
        yield session


@pytest.mark.parametrize(
    "table",
    ["app.brands", "app.lora_training_jobs", "app.job_assets", "app.brand_assets", "app.asset_captions", "app.models",
     "app.job_events", "storage.objects"],
)  # fmt: skip
async def test_a_removed_members_ticket_sees_no_row(alone: Any, table: str) -> None:
    assert await alone.all(f"select 1 from {table}") == []


@pytest.mark.parametrize(
    "statement",
    ["select private.next_number(%(brand)s, 'model:sd15', 1)", "select private.record(%(brand)s, 'job.fail', '{}')",
     "insert into app.job_events (brand_id, job_id, seq, kind, data) values (%(brand)s, %(job)s, 99, 'progress', '{}')",
     "insert into storage.objects (bucket_id, name, user_id, content_type, bytes)"
     " values ('models', %(brand)s || '/sd15-lora-v9.safetensors', %(member)s, 'x', 1)"],
)  # fmt: skip
async def test_a_removed_members_ticket_writes_nothing(db: Database, deserted: Fixtures, statement: str) -> None:
    known = {
        "brand": deserted.acme.id,
        "job": deserted.things["job"],
        "member": deserted.acme.member.user_id,
    }
    with pytest.raises((Forbidden, NotFound)):
        async with db.system_session(deserted.acme.ticket(deserted.things["job"])) as session:
            await session.run(statement, known)


async def test_who_comes_back_finds_their_tickets_good_again(
    platform: Platform, make_brand: MakeBrand, make_user: MakeUser, pictures: Draw
) -> None:
    """Membership is looked up live, in both directions."""
    fixtures = await build_fixtures(platform, make_brand, make_user, pictures)
    member, ticket = fixtures.acme.member, fixtures.acme.ticket(fixtures.things["job"])
    async with platform.db.user_session(fixtures.acme.admin.scope) as session:
        await brands.remove_member(session, fixtures.acme.id, member.user_id)
    async with platform.system(ticket) as worker:
        with pytest.raises(NotFound):
            await worker.spec()
        await join(platform.db, fixtures.acme.id, fixtures.acme.admin, member)
        assert (await worker.spec()).job_id == ticket.job_id


async def test_an_answer_that_got_lost_is_given_again(
    platform: Platform, make_brand: MakeBrand, pictures: Draw, store: ObjectStore
) -> None:
    """The end of a job may be reported twice: the second call returns the result of the first."""
    brand = await make_brand("twice")
    job_id, model = await platform.train(brand, pictures(5))
    async with platform.system(brand.ticket(job_id)) as worker:
        facts = {"rank": 4, "trigger_word": f"{brand.id} mark", "base_revision": "0" * 64}
        assert (await worker.publish(weights(brand.id), facts)).id == model.id
        with pytest.raises(Conflict):
            await worker.publish(weights("other bytes"), facts)
        with pytest.raises(Conflict):
            await worker.fail("late", "a late failure")


async def test_only_the_dispatcher_ends_what_removed_members_left(database: Any) -> None:
    for url, role in ((database.web_url, "authenticated"), (database.system_url, "brand_system")):
        with psycopg.connect(url) as connection:
            connection.execute("select set_config('role', %s, true)", [role])
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("select * from private.end_orphaned()")
