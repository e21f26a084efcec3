"""Behind pgbouncer in transaction mode each transaction may get another connection; none gets another's identity."""

from __future__ import annotations

import anyio
from psycopg.conninfo import conninfo_to_dict

from onbrand.db.session import Database
from onbrand.services import brands
from tests.conftest import BrandOfPeople

NUM_SESSIONS = 160


async def test_a_hundred_and_sixty_sessions_at_a_time_do_what_they_do_without(pgbouncer, secrets, make_brand) -> None:
    some: list[BrandOfPeople] = [await make_brand() for _ in range(4)]
    db = await Database.open(pgbouncer.web_url, pgbouncer.system_url, claims_key=secrets.claims, pool=(2, 40))
    seen: list[bool] = []

    async def look(brand: BrandOfPeople) -> None:
        for person in (brand.member, brand.admin):
            async with db.user_session(person.scope) as session:
                found = await brands.get_brand(session, brand.id)
                members = await brands.list_members(session, brand.id)
                here = await session.all("select distinct brand_id from app.brand_users")
            seen.append(found.id == brand.id and [row["brand_id"] for row in here] == [brand.id] and bool(members))

    async with anyio.create_task_group() as group:
        for number in range(NUM_SESSIONS):
            group.start_soon(look, some[number % len(some)])
    await db.close()
    assert seen == [True] * (2 * NUM_SESSIONS)


async def test_times_are_utc_behind_a_pooler(pgbouncer, secrets) -> None:
    db = await Database.open(pgbouncer.web_url, claims_key=secrets.claims)
    async with db.user_session(None) as session:
        assert (await session.one("show timezone"))["TimeZone"] == "UTC"
    await db.close()


def test_the_pooler_is_where_the_tests_think(pgbouncer) -> None:
    assert conninfo_to_dict(pgbouncer.web_url)["port"] == "6432"
