"""Twenty brands at once on three connections: no brand gets a row, a picture or an event of another brand.

`ONBRAND_TEST_LOAD_REQUESTS=10000` sets the number of requests; the default is smaller. `ONBRAND_TEST_LOAD_SEED` sets
the random seed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from onbrand.brand import Scope
from onbrand.config import Settings
from onbrand.db.logins import DatabaseUrls
from onbrand.db.session import Database, Session
from onbrand.secrets_file import Secrets
from tests.conftest import MakeBrand
from tests.isolation.many_brands import ACTIONS, Eyes, MarkingGenerator, Visitor, mark, mingle, painted, settle
from tools.harness.in_process_platform import Platform, serving

NUM_REQUESTS = int(os.environ.get("ONBRAND_TEST_LOAD_REQUESTS", "1200"))
SEED = int(os.environ.get("ONBRAND_TEST_LOAD_SEED", "1"))
NUM_BRANDS, CONCURRENCY, POOL = 20, 50, (1, 3)


class MixedUpDatabase(Database):
    """A database with the fault that the test must find: sometimes a session has its predecessor's identity."""

    before: Scope | None = None
    num_opened = 0

    @asynccontextmanager
    async def user_session(self, scope: Scope | None) -> AsyncIterator[Session]:
        self.num_opened += 1
        mixed_up = self.before if self.before is not None and self.num_opened % 7 == 0 else scope
        self.before = scope or self.before
        async with super().user_session(mixed_up) as session:
            yield session


@asynccontextmanager
async def visitors_of(platform: Platform, make_brand: MakeBrand, num: int, eyes: Eyes) -> AsyncIterator[list[Visitor]]:
    limits = httpx.Limits(max_connections=CONCURRENCY, keepalive_expiry=1)  # the server keeps them for five seconds
    async with AsyncExitStack() as clients:
        visitors = []
        for number in range(num):
            brand = await make_brand("mark")
            headers = {"authorization": f"Bearer {platform.token(brand.member)}"}
            client = httpx.AsyncClient(base_url=platform.url, headers=headers, limits=limits, timeout=120)
            visitors.append(Visitor(number, brand, await clients.enter_async_context(client), eyes))
        yield visitors


@pytest.mark.timeout(1800)
async def test_twenty_brands_on_three_connections_see_nothing_of_each_other(
    settings: Settings,
    secrets: Secrets,
    database: DatabaseUrls,
    make_brand: MakeBrand,
    capsys: pytest.CaptureFixture[str],
) -> None:
    db = await Database.open(database.web_url, database.system_url, claims_key=secrets.claims, pool=POOL)
    eyes = Eyes()
    async with serving(settings, secrets, db, MarkingGenerator) as platform:
        async with visitors_of(platform, make_brand, NUM_BRANDS, eyes) as visitors:
            await settle(platform, visitors)
            done = await mingle(visitors, NUM_REQUESTS, CONCURRENCY, SEED)
    await db.close()
    with capsys.disabled():
        num = done["requests"]
        print(f"\n{num} requests of {NUM_BRANDS} brands, {eyes.num_ids} ids looked at: {len(eyes.leaks)} leaks")
    assert eyes.leaks == []
    assert done["requests"] >= NUM_REQUESTS
    assert not {action.__name__ for action, _ in ACTIONS} - set(done)
    assert eyes.num_ids > NUM_REQUESTS


async def test_a_session_of_somebody_else_is_noticed(
    settings: Settings, secrets: Secrets, database: DatabaseUrls, make_brand: MakeBrand
) -> None:
    """The test of the test: behind doors that mix people up, somebody soon sees another brand, or not their own."""
    sound = await Database.open(database.web_url, database.system_url, claims_key=secrets.claims, pool=POOL)
    async with serving(settings, secrets, sound, MarkingGenerator) as platform:
        async with visitors_of(platform, make_brand, 3, Eyes()) as visitors:
            await settle(platform, visitors)
            mixed_up = await MixedUpDatabase.open(
                database.web_url, database.system_url, claims_key=secrets.claims, pool=POOL
            )
            async with serving(settings, secrets, mixed_up, MarkingGenerator) as broken:
                for visitor in visitors:
                    visitor.client.base_url = httpx.URL(broken.url)
                with pytest.raises(ExceptionGroup) as caught:
                    await mingle(visitors, 500, 5, 1)
                assert all(isinstance(each, AssertionError) for each in caught.value.exceptions)
            await mixed_up.close()
    await sound.close()


@pytest.mark.parametrize("leak", ["a mark", "an id", "a picture", "a seed", "none"])
def test_the_eyes_notice(leak: str) -> None:
    eyes = Eyes()
    eyes.own(7, "11111111-1111-4111-8111-111111111111")
    eyes.own(8, "22222222-2222-4222-8222-222222222222")
    seen: dict[str, Any] = {
        "a mark": lambda: eyes.look(7, "GET /", f"... {mark(8)} ..."),
        "an id": lambda: eyes.look(7, "GET /", '{"id": "22222222-2222-4222-8222-222222222222"}'),
        "a picture": lambda: eyes.look_at_picture(7, "GET /", painted(8, 1)),
        "a seed": lambda: eyes.look_at_seed(7, "GET /", 8_000_001),
    }
    for name, look in seen.items():
        if name == leak:
            look()
    eyes.look(7, "GET /", f'{mark(7)} {{"id": "11111111-1111-4111-8111-111111111111"}}')
    eyes.look_at_picture(7, "GET /", painted(7, 1))
    eyes.look_at_seed(7, "GET /", 7_000_010)
    assert len(eyes.leaks) == (leak != "none")
