"""Limits of logging in: by frequency and address. Password hashing delays only other logins."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from onbrand.app import create_app
from onbrand.config import Limits
from onbrand.db.session import Database
from onbrand.errors import InvalidInput
from onbrand.services import passwords
from onbrand.services.login_limits import network_of
from tests.conftest import PASSWORD, Person
from tools.harness.in_process_platform import Platform

FEW = Limits(
    logins_per_address=6, logins_per_account=3, logins_before_delay=5, refused_login_seconds=0, sign_ups_per_address=2
)
HOME, AWAY = "192.0.2.7", "198.51.100.9"


@pytest.fixture
def replica(platform: Platform):
    """`replica(address)`: a client at an address, of an ingress process of its own on the one database."""

    def make(address: str, limits: Limits = FEW) -> httpx.AsyncClient:
        settings = platform.settings.model_copy(update={"limits": limits})
        app = create_app(settings, platform.secrets, platform.db, platform.store, platform.generator)
        transport = httpx.ASGITransport(app, client=(address, 1234))
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    return make


@pytest.fixture(autouse=True)
def no_attempts(database, owner) -> None:
    """Delete the attempts of other tests."""
    import psycopg

    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        connection.execute("delete from identity.attempts")


@pytest.fixture
async def ada(make_user) -> Person:
    return await make_user("ada")


async def tried(client: httpx.AsyncClient, email: str, password: str = "a wrong password") -> httpx.Response:
    return await client.post("/v1/tokens", json={"email": email, "password": password})


async def statuses(client: httpx.AsyncClient, email: str, num: int, password: str = "a wrong password") -> list[int]:
    return [(await tried(client, email, password)).status_code for _ in range(num)]


async def test_wrong_passwords_for_an_account_are_few_and_the_next_one_is_due_soon(replica, ada) -> None:
    async with replica(HOME) as client:
        assert await statuses(client, ada.email, 3) == [401] * 3
        refused = await tried(client, ada.email, PASSWORD)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert 1 <= int(refused.headers["retry-after"]) <= 20


async def test_it_does_not_depend_on_how_the_address_is_written_or_where_one_logs_in(replica, ada) -> None:
    async with replica(HOME) as client:
        assert await statuses(client, ada.email.upper(), 2) == [401] * 2
        body = {"email": ada.email, "password": "a wrong password"}
        assert [(await client.post("/v1/session", json=body)).status_code for _ in range(2)] == [401, 429]


async def test_all_replicas_count_together(replica, ada) -> None:
    async with replica(HOME) as one, replica(HOME) as other:
        assert await statuses(one, ada.email, 3) == [401] * 3
        assert await statuses(other, ada.email, 1) == [429]


async def test_an_attacker_elsewhere_keeps_nobody_out(replica, ada) -> None:
    """Not even with more attempts than make log-ins to the account slower."""
    for n in range(4):
        async with replica(f"203.0.113.{n}") as attacker:
            await statuses(attacker, ada.email, 4)
    async with replica(HOME) as client:
        assert await statuses(client, ada.email, 1, PASSWORD) == [201]


async def test_what_is_refused_puts_nothing_off(replica, ada, owner) -> None:
    async with replica(HOME) as client:
        await statuses(client, ada.email, 3)
        waits = [int((await tried(client, ada.email)).headers["retry-after"]) for _ in range(5)]
    assert waits == sorted(waits, reverse=True)


async def test_an_attacker_with_many_addresses_of_people_is_held_to_the_number_of_its_own(replica) -> None:
    async with replica(HOME) as client:
        found = [(await statuses(client, f"nobody-{n}@example.com", 1))[0] for n in range(8)]
    assert found == [401] * 6 + [429] * 2
    async with replica(AWAY) as client:
        assert await statuses(client, "nobody-7@example.com", 1) == [401]


async def test_an_address_without_an_account_gets_the_same_answers(replica, ada) -> None:
    def told(answer: httpx.Response) -> tuple[Any, ...]:
        said = answer.json()
        del said["request_id"]
        return answer.status_code, said

    found = {}
    for n, email in enumerate((ada.email, "nobody@example.com", "no address")):
        async with replica(f"203.0.113.{n}") as client:
            found[email] = [told(await tried(client, email)) for _ in range(5)]
    assert found[ada.email] == found["nobody@example.com"] == found["no address"]
    assert [status for status, _ in found[ada.email]] == [401] * 3 + [429] * 2


async def test_right_passwords_do_not_count_as_wrong_ones(replica, ada) -> None:
    async with replica(HOME) as client:
        assert await statuses(client, ada.email, 12, PASSWORD) == [201] * 12
        assert await statuses(client, ada.email, 4) == [401] * 3 + [429]


async def test_right_passwords_count_in_a_wider_number(replica, ada, make_user) -> None:
    limits = FEW.model_copy(update={"right_logins_per_account": 5})
    bob = await make_user("bob")
    async with replica(HOME, limits) as client:
        assert await statuses(client, ada.email, 6, PASSWORD) == [201] * 5 + [429]
        assert await statuses(client, bob.email, 1, PASSWORD) == [201]
    async with replica(AWAY, limits) as client:
        assert await statuses(client, ada.email, 1, PASSWORD) == [201]


async def test_one_address_has_few_places_among_those_who_wait(
    replica, ada, make_user, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many right passwords it sends at once, somebody elsewhere logs in."""
    mallory, began, go = await make_user("mallory"), threading.Event(), threading.Event()
    verify = passwords.verify

    def held(*args: str) -> bool:
        began.set()
        assert go.wait(20)
        return verify(*args)

    monkeypatch.setattr(passwords, "verify", held)
    limits = Limits(passwords_waiting=4, refused_login_seconds=0)
    async with replica(HOME, limits) as home:
        app = home._transport.app
        away = httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(AWAY, 1)), base_url="http://test")
        tasks = [asyncio.create_task(tried(home, mallory.email, PASSWORD)) for _ in range(10)]
        assert await asyncio.to_thread(began.wait, 20)
        async with asyncio.timeout(20), away:
            while sum(task.done() for task in tasks) < 7:  # noqa: ASYNC110 (one is checked and two wait)
                await asyncio.sleep(0.01)
            other = asyncio.create_task(tried(away, ada.email, PASSWORD))
            go.set()
            assert (await other).status_code == 201
        answers = Counter(answer.status_code for answer in await asyncio.gather(*tasks))
    assert answers == {201: 3, 429: 7}


async def test_many_at_once_are_counted_one_by_one(db: Database) -> None:
    keys = ["a" * 64, "b" * 64]

    async def take() -> bool:
        async with db.user_session(None) as session:
            row = await session.one("select private.take_attempt(%s, %s, %s) as wait", [keys, [9, 7], [3600, 3600]])
        return float(row["wait"]) == 0

    assert Counter(await asyncio.gather(*(take() for _ in range(40)))) == {True: 7, False: 33}


async def test_nobody_fills_a_bucket_for_years(db: Database) -> None:
    with pytest.raises(InvalidInput):
        async with db.user_session(None) as session:
            await session.run("select private.take_attempt(%s, %s, %s)", [["c" * 64], [1], [2_000_000_000]])
    async with db.user_session(None) as session:
        await session.run("select private.take_attempt(%s, %s, %s)", [["c" * 64], [1], [86_400]])
        row = await session.one("select private.take_attempt(%s, %s, %s) as wait", [["c" * 64], [1], [60]])
    assert 0 < row["wait"] <= 60


async def test_attempts_that_are_over_are_forgotten(db: Database, owner) -> None:
    for n in range(20):
        async with db.user_session(None) as session:
            await session.run("select private.take_attempt(%s, %s, %s)", [[f"{n:064x}"], [1_000_000], [1]])
    assert owner.execute("select count(*) from identity.attempts").fetchone()[0] < 5


async def test_new_accounts_are_few_an_hour(replica) -> None:
    async with replica(HOME) as client:
        found = [
            (await client.post("/v1/users", json={"email": f"new-{n}@example.com", "password": PASSWORD}))
            for n in range(3)
        ]
        assert [answer.status_code for answer in found] == [201, 201, 429]
        assert int(found[-1].headers["retry-after"]) > 60
        bad = await client.post("/v1/users", json={"email": "new@example.com", "password": "short"})
        assert bad.status_code == 422


@asynccontextmanager
async def with_one_connection(database, platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    """An ingress with one connection to the database."""
    db = await Database.open(database.web_url, claims_key=platform.secrets.claims, pool=(1, 1))
    try:
        app = create_app(platform.settings, platform.secrets, db, platform.store, platform.generator)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            yield client
    finally:
        await db.close()


@pytest.mark.parametrize(
    ("path", "work"), [("/v1/tokens", "verify"), ("/v1/session", "verify"), ("/v1/users", "hash_password")]
)
async def test_no_connection_waits_for_a_password(
    platform: Platform, database, ada, monkeypatch: pytest.MonkeyPatch, path: str, work: str
) -> None:
    began, go = threading.Event(), threading.Event()
    done = getattr(passwords, work)

    def held(*args: str) -> Any:
        began.set()
        assert go.wait(20)
        return done(*args)

    monkeypatch.setattr(passwords, work, held)
    body = {"email": "new-person@example.com" if path == "/v1/users" else ada.email, "password": PASSWORD}
    async with with_one_connection(database, platform) as client:
        logging_in = asyncio.create_task(client.post(path, json=body))
        assert await asyncio.to_thread(began.wait, 20)
        headers = {"authorization": f"Bearer {platform.token(ada)}"}
        assert (await asyncio.wait_for(client.get("/v1/me", headers=headers), 10)).status_code == 200
        assert not logging_in.done()
        go.set()
        assert (await logging_in).status_code == 201


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("a proxy's word", "a proxy's word"),
    ],
)
def test_a_client_is_an_address_or_the_half_of_an_ipv6_one_that_a_provider_gives(address: str, network: str) -> None:
    assert network_of(address) == network
