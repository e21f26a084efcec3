"""What the database announces reaches waiting tasks; what is lost is found by looking again."""

from __future__ import annotations

import asyncio
import time

import psycopg
import pytest

from onbrand.db.changes import QUEUE, Changes
from onbrand.db.session import Database
from onbrand.services import generation_worker
from onbrand.services.events import change_names

SOON = 3.0


async def hearing(changes: Changes) -> None:
    """Wait until it listens."""
    for _ in range(100):
        if changes.patience == 5.0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it does not listen")


async def test_an_event_of_a_generation_wakes_those_who_wait_for_it_and_nobody_else(
    db: Database, make_brand, create_generation
) -> None:
    brand = await make_brand()
    here, elsewhere = [await create_generation(brand) for _ in range(2)]
    async with db.user_session(brand.member.scope) as session:
        names = [(await change_names(session, each))[0] for each in (here, elsewhere)]
    with db.changes.waiter(names[0]) as waiter, db.changes.waiter(names[1]) as other:
        await hearing(db.changes)
        await waiter.wait(0.1)
        await other.wait(0.1)
        ticket = brand.ticket(here, "generation")
        async with db.system_session(ticket) as session:
            await generation_worker.start_generation(session, ticket)
        assert await waiter.wait(SOON)
        assert not await other.wait(0.2)


async def test_a_name_shows_no_id_and_only_signed_claims_get_one(db: Database, database, make_brand) -> None:
    brand = await make_brand()
    subject = "0f1e2d3c-0000-4000-8000-000000000001"
    async with db.user_session(brand.member.scope) as session:
        names = await change_names(session, subject)
    assert all(name.lstrip("-").isdigit() for name in names)
    with psycopg.connect(database.web_url) as stolen:
        stolen.execute("set role authenticated")
        row = stolen.execute("select private.change_name(%s::uuid), private.credentials_name()", [subject]).fetchone()
    assert row == (None, None)


async def test_what_is_announced_names_no_brand_no_id_and_no_kind(
    db: Database, database, make_brand, create_generation
) -> None:
    brand = await make_brand()
    async with await psycopg.AsyncConnection.connect(database.web_url, autocommit=True) as stolen:
        await stolen.execute("listen onbrand_changes")
        asked = await create_generation(brand)
        ticket = brand.ticket(asked, "generation")
        async with db.system_session(ticket) as session:
            await generation_worker.start_generation(session, ticket)
        heard = [each.payload async for each in stolen.notifies(timeout=1.0)]
    assert heard
    assert all(payload == QUEUE or payload.lstrip("-").isdigit() for payload in heard)
    assert not any(brand.id in payload or asked in payload for payload in heard)


async def test_it_listens_again_after_its_connection_broke(database, owner) -> None:
    changes = Changes(database.web_url)
    with changes.waiter("a name") as waiter:
        await hearing(changes)
        owner.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'onbrand changes'"
        )
        for _ in range(100):
            if changes.patience < 5:
                break
            await asyncio.sleep(0.05)
        assert changes.patience == 1.0, "until then, those who wait look more often"
        await waiter.wait(0.1)
        assert await waiter.wait(10), "something may have been missed"
        await hearing(changes)
    await changes.close()


async def test_without_a_database_a_wait_ends_by_itself() -> None:
    changes = Changes(None)
    with changes.waiter("a name") as waiter:
        began = time.monotonic()
        assert not await waiter.wait(0.2)
        assert time.monotonic() - began >= 0.2
        changes.tell("a name")
        assert await waiter.wait(SOON)
    changes.tell("a name")
    await changes.close()


@pytest.fixture
def create_generation(db: Database):
    from onbrand.config import Limits
    from onbrand.services import generation_parameters, generations
    from tools.harness.tiny_families import family_of

    async def create(brand) -> str:
        new = generation_parameters.NewGeneration(prompt="a square", model_type="sd15")
        async with db.user_session(brand.member.scope) as session:
            bases = {"sd15": family_of("sd15").recommended}
            row = await generations.create_generation(session, brand.id, brand.member.user_id, new, bases, Limits())
        return row.id

    return create
