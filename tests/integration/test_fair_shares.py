"""Limits of one account: its number of brands, and shares by account in the engine and in the dispatcher."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import psycopg
import pytest

from onbrand.config import Limits
from onbrand.db.session import Database
from onbrand.errors import Conflict, Forbidden, OnbrandError, TooManyRequests
from onbrand.families.spec import with_family_defaults
from onbrand.services import brands, generation_parameters, generations, job_queue
from tests.conftest import Person
from tools.harness.in_process_platform import Platform, upload

RECOMMENDED = {"sd15": with_family_defaults("sd15", {"resolution": 64})}


async def make(db: Database, who: Person, brand_id: str, most: int) -> str:
    async with db.user_session(who.scope) as session:
        return (await brands.create_brand(session, brand_id, most=most)).id


async def test_an_account_has_so_many_brands_and_is_told_the_number(db, make_user) -> None:
    ada, bob = await make_user("ada"), await make_user("bob")
    for n in range(3):
        await make(db, ada, f"few-{ada.user_id[:8]}-{n}", 3)
    with pytest.raises(Conflict, match="an account may have 3 brands, and this one has"):
        await make(db, ada, f"few-{ada.user_id[:8]}-3", 3)
    await make(db, bob, f"few-{ada.user_id[:8]}-4", 3)


async def test_brands_made_at_the_same_time_pass_no_limit(db, make_user) -> None:
    ada = await make_user("ada")

    async def made(n: int) -> str:
        try:
            return await make(db, ada, f"race-{ada.user_id[:8]}-{n}", 4) and "made"
        except Conflict as problem:
            return problem.message

    found = Counter(await asyncio.gather(*(made(n) for n in range(16))))
    assert found["made"] == 4
    assert set(found) == {"made", "an account may have 4 brands, and this one has; use one of them"}


async def test_brands_that_somebody_else_made_do_not_count(db, make_user, make_brand) -> None:
    brand = await make_brand("shared")
    await make(db, brand.member, f"own-{brand.member.user_id[:8]}", 1)


async def test_twenty_hold_for_who_says_no_number(db, make_user) -> None:
    ada = await make_user("ada")
    async with db.user_session(ada.scope) as session:
        for n in range(20):
            await session.run(
                "insert into app.brands (id, name, user_id) values (%s, 'x', private.uid())",
                [f"d-{ada.user_id[:8]}-{n}"],
            )
    with pytest.raises(Conflict, match="as many brands as one may have"):
        async with db.user_session(ada.scope) as session:
            await session.run(
                "insert into app.brands (id, name, user_id) values (%s, 'x', private.uid())", [f"d-{ada.user_id[:8]}"]
            )


async def in_the_name_of(db: Database, eve: Person, whom: Person) -> None:
    async with db.user_session(eve.scope) as session:
        await session.run("select set_config('onbrand.brands_per_account', '1000', true)")  # nobody's word counts
        insert = "insert into app.brands (id, name, user_id) values (%s, 'x', %s)"
        await session.run(insert, [f"eve-{eve.user_id[:8]}", whom.user_id])


async def test_how_many_brands_another_account_has_is_not_told(db, make_user) -> None:
    """Making one in another's name is refused in the same words, whether that account is full or has none."""
    full, empty, eve = [await make_user(name) for name in ("full", "empty", "eve")]
    await make(db, full, f"full-{full.user_id[:8]}", 1)
    told = set()
    for whom in (full, empty):
        with pytest.raises(OnbrandError) as refusal:
            await in_the_name_of(db, eve, whom)
        told.add((type(refusal.value), refusal.value.message))
    assert told == {(Forbidden, "your role does not allow this")}


async def test_the_default_is_told_over_http(platform: Platform, make_user) -> None:
    ada = await make_user("ada")
    async with platform.client(ada) as client:
        ids = [f"http-{ada.user_id[:8]}-{n}" for n in range(Limits().brands_per_account + 1)]
        answers = [await client.post("/v1/brands", json={"id": each, "name": "One of many"}) for each in ids]
    assert [answer.status_code for answer in answers] == [201] * 20 + [409]
    assert "20 brands" in answers[-1].json()["detail"]


async def test_the_engine_is_told_whose_the_brand_is_whatever_a_client_says(platform: Platform, make_brand) -> None:
    brand = await make_brand()
    body = {"model_type": "sd15", "prompt": "a red circle"}
    headers = {"prefer": "wait=20", "x-account-id": "somebody-else", "account_id": "somebody-else"}
    async with platform.client(brand.member) as client:
        answer = await client.post(f"/v1/brands/{brand.id}/generations", json=body, headers=headers)
        more = body | {"account_id": brand.member.user_id}
        refused = await client.post(f"/v1/brands/{brand.id}/generations", json=more)
    assert (answer.status_code, refused.status_code) == (201, 422)
    request = next(each for each in platform.generator.seen if each.generation_id == answer.json()["id"])
    assert request.account_id == brand.admin.user_id


async def test_the_dispatcher_is_told_whose_the_brand_is(platform: Platform, db, make_brand, pictures) -> None:
    brand = await make_brand()
    async with platform.client(brand.member) as client:
        asset = await upload(client, brand.id, pictures(1))
        body = {"name": "a job", "model_type": "sd15", "training_asset_ids": [asset["id"]]}
        job_id = (await client.post(f"/v1/brands/{brand.id}/training-jobs", json=body)).json()["id"]
    async with db.dispatch_session() as session:
        entry = next(entry for entry in await job_queue.queue(session) if entry.job_id == job_id)
    assert (entry.account, entry.user_id) == (brand.admin.user_id, brand.member.user_id)


async def has_no_streams(platform: Platform) -> bool:
    """Wait until no stream is open."""
    for _ in range(200):
        if not len(platform.app.state.onbrand.streams):
            return True
        await asyncio.sleep(0.05)
    return False


async def test_event_streams_beyond_the_number_are_refused_and_end_with_their_readers(
    platform: Platform, make_brand
) -> None:
    """Over a real connection: what is counted is what a reader holds open."""
    brand = await make_brand()
    async with platform.client(brand.member) as client:
        body = {"model_type": "sd15", "prompt": "[hang]"}
        path = (await client.post(f"/v1/brands/{brand.id}/generations", json=body)).headers["location"]
    headers = {"authorization": f"Bearer {platform.token(brand.member)}"}
    most = platform.settings.limits.streams_per_caller
    async with httpx.AsyncClient(base_url=platform.url, headers=headers, trust_env=False) as client:
        held = [await client.send(client.build_request("GET", f"{path}/events"), stream=True) for _ in range(most + 1)]
        assert [answer.status_code for answer in held] == [200] * most + [429]
        assert held[-1].headers["retry-after"] == "5"
        for answer in held:
            await answer.aclose()
        assert await has_no_streams(platform)
        assert (await client.post(f"{path}/cancel")).status_code == 200


@pytest.mark.parametrize(
    ("url", "role"),
    [
        ("web_url", "anon"),
        ("web_url", "authenticated"),
        ("system_url", "brand_system"),
        ("system_url", "onbrand_dispatcher"),
    ],
)
@pytest.mark.parametrize("statement", ["select * from identity.attempts", "delete from identity.attempts"])
def test_attempts_are_reached_by_functions_only(database, url: str, role: str, statement: str) -> None:
    with psycopg.connect(getattr(database, url)) as connection:
        connection.execute(f"set role {role}")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


async def test_pictures_that_wait_are_bounded_by_account_too(db, make_user, make_brand) -> None:
    """Brands of one account share a number, whoever asks; another account's brand has its own."""
    ada, other = await make_user("ada"), await make_brand("other")
    names = [await make(db, ada, f"full-{ada.user_id[:8]}-{n}", 5) for n in range(3)]
    limits = Limits(waiting_pictures=4, account_waiting_pictures=6)

    async def ask(who: Person, brand_id: str, num_images: int) -> None:
        async with db.user_session(who.scope.in_brand(brand_id)) as session:
            new = generation_parameters.NewGeneration(prompt="a picture", model_type="sd15", num_images=num_images)
            await generations.create_generation(session, brand_id, who.user_id, new, RECOMMENDED, limits)

    await ask(ada, names[0], 4)
    await ask(ada, names[1], 2)
    with pytest.raises(TooManyRequests, match="at most 6 pictures of all brands of one account") as refused:
        await ask(ada, names[2], 1)
    assert refused.value.fields["retry_after"] > 0
    await ask(other.admin, other.id, 4)


async def test_the_callers_own_word_lifts_no_limit(db, make_user) -> None:
    ada = await make_user("ada")
    for n in range(2):
        await make(db, ada, f"word-{ada.user_id[:8]}-{n}", 2)
    with pytest.raises(Conflict, match="as many brands"):  # noqa: PT012
        async with db.user_session(ada.scope) as session, session.claiming(brands_per_account=2):
            await session.run("select set_config('onbrand.brands_per_account', '1000', true)")
            insert = "insert into app.brands (id, name, user_id) values (%s, 'x', private.uid())"
            await session.run(insert, [f"word-{ada.user_id[:8]}-2"])


async def test_nobody_hears_how_many_brands_another_has(db, make_user) -> None:
    ada, bob = await make_user("ada"), await make_user("bob")
    await make(db, ada, f"heard-{ada.user_id[:8]}", 1)
    insert = "insert into app.brands (id, name, user_id) values (%s, 'x', %s)"
    with pytest.raises(OnbrandError) as told:
        async with db.user_session(bob.scope) as session, session.claiming(brands_per_account=1):
            await session.run(insert, [f"heard-{bob.user_id[:8]}", ada.user_id])
    assert isinstance(told.value, Forbidden)
