"""Database sessions: one transaction each, committed or rolled back as a whole, with the platform's own errors."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from onbrand.brand import Scope
from onbrand.db.error_translation import translated
from onbrand.db.session import Database
from onbrand.errors import ConfigurationError, Conflict, InvalidInput, NotFound, OnbrandError, Unavailable


async def test_a_session_commits_at_its_end(db, make_brand):
    brand = await make_brand()
    async with db.user_session(brand.admin.scope) as session:
        await session.run("update app.brand_users set role = 'admin' where user_id = %s", [brand.member.user_id])
    async with db.user_session(brand.member.scope) as session:
        row = await session.one("select role from app.brand_users where user_id = private.uid()")
    assert row == {"role": "admin"}


async def test_an_exception_takes_everything_back_in_reverse_order(db, make_brand):
    brand = await make_brand()
    undone: list[int] = []

    async def later() -> None:
        undone.append(2)

    with pytest.raises(RuntimeError, match="enough"):  # noqa: PT012
        async with db.user_session(brand.admin.scope) as session:
            await session.run("delete from app.brand_users where user_id = %s", [brand.member.user_id])
            session.on_rollback(lambda: undone.append(1))
            session.on_rollback(later)
            raise RuntimeError("enough")
    assert undone == [2, 1]
    async with db.user_session(brand.member.scope) as session:
        assert len(await session.all("select 1 from app.brand_users")) == 1


async def test_a_canceled_request_is_undone_too(db, make_brand):
    brand = await make_brand()
    undone = asyncio.Event()
    inside = asyncio.Event()

    async def request() -> None:
        async with db.user_session(brand.admin.scope) as session:
            session.on_rollback(undone.set)
            inside.set()
            await session.run("select pg_sleep(30)")

    task = asyncio.create_task(request())
    await asyncio.wait_for(inside.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undone.is_set()


async def test_undoing_happens_while_the_names_are_still_locked(db, make_brand, owner):
    brand = await make_brand()
    others_may: list[bool] = []

    def try_lock() -> None:
        others_may.append(owner.execute("select pg_try_advisory_xact_lock(4242)").fetchone()[0])

    with pytest.raises(RuntimeError):  # noqa: PT012
        async with db.user_session(brand.admin.scope) as session:
            await session.run("select pg_advisory_xact_lock(4242)")
            session.on_rollback(try_lock)
            raise RuntimeError
    assert others_may == [False]


async def test_with_the_connection_lost_nothing_is_undone(db, make_brand, owner):
    brand = await make_brand()
    undone: list[int] = []
    with pytest.raises(Unavailable):  # noqa: PT012
        async with db.user_session(brand.admin.scope) as session:
            session.on_rollback(lambda: undone.append(1))
            pid = (await session.one("select pg_backend_pid() as pid"))["pid"]
            owner.execute("select pg_terminate_backend(%s)", [pid])
            owner.commit()
            await session.one("select pg_sleep(5)")
    assert undone == []


async def test_nothing_is_undone_after_a_commit(db, make_brand):
    brand = await make_brand()
    undone: list[int] = []
    async with db.user_session(brand.admin.scope) as session:
        session.on_rollback(lambda: undone.append(1))
    assert undone == []


async def test_an_undo_that_fails_does_not_stop_the_others(db, make_brand):
    brand = await make_brand()
    undone: list[int] = []
    with pytest.raises(RuntimeError, match="enough"):  # noqa: PT012
        async with db.user_session(brand.admin.scope) as session:
            session.on_rollback(lambda: undone.append(1))
            session.on_rollback(lambda: undone.append(1 // 0))
            raise RuntimeError("enough")
    assert undone == [1]


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("select 1 / 0", InvalidInput),
        ("select 'x'::uuid", InvalidInput),
        ("select 1 from nowhere", OnbrandError),
        ("select 1 where false", NotFound),
        ("insert into app.brands (id, name, user_id) select id, 'x', private.uid() from app.brands", Conflict),
    ],
)
async def test_errors_are_ours(statement: str, error: type[OnbrandError], db, make_brand):
    brand = await make_brand()
    with pytest.raises(error) as refused:
        async with db.user_session(brand.admin.scope) as session:
            await session.one(statement)
    assert type(refused.value) is error
    assert "select" not in str(refused.value)


async def test_a_lost_connection_is_unavailable_and_the_next_request_works(db, make_brand, owner):
    brand = await make_brand()
    with pytest.raises(Unavailable):  # noqa: PT012
        async with db.user_session(brand.admin.scope) as session:
            pid = (await session.one("select pg_backend_pid() as pid"))["pid"]
            owner.execute("select pg_terminate_backend(%s)", [pid])
            owner.commit()
            await session.one("select pg_sleep(5)")
    async with db.user_session(brand.admin.scope) as session:
        await session.one("select 1")


async def test_a_database_that_is_not_there_is_unavailable(secrets):
    with pytest.raises(Unavailable, match="does not answer"):
        await Database.open(
            "host=/nowhere user=x dbname=x connect_timeout=1", claims_key=secrets.claims, pool=(1, 1), patience=1
        )


async def test_a_door_without_a_login_is_a_configuration_error(database, secrets):
    db = await Database.open(system_url=database.system_url, claims_key=secrets.claims, pool=(1, 1))
    with pytest.raises(ConfigurationError, match="no web login"):
        async with db.user_session(Scope("00000000-0000-4000-8000-000000000000")):
            pass
    await db.close()


async def test_two_processes_may_hold_doors_at_the_same_time(database, make_brand, secrets):
    brand = await make_brand()
    first = await Database.open(database.web_url, claims_key=secrets.claims, pool=(1, 1))
    second = await Database.open(database.web_url, claims_key=secrets.claims, pool=(1, 1))
    async with first.user_session(brand.admin.scope) as a, second.user_session(brand.member.scope) as b:
        assert await a.one("select private.uid() as me") != await b.one("select private.uid() as me")
    await first.close()
    await second.close()


def test_a_timeout_of_the_database_asks_to_try_again():
    problem = translated(psycopg.errors.QueryCanceled())
    assert isinstance(problem, Unavailable)
    assert problem.fields["retry_after"] == 1
