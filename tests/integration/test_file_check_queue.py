"""Many files of one brand do not delay another brand's checks; a full queue of a brand gives 429."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from onbrand.config import Limits
from onbrand.fair_turns import QueueOwner
from onbrand.sandbox.checker import Checker
from tests.conftest import BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform, upload

Draw = Callable[..., bytes]


class ManyFiles:
    """Checks of a brand that run until `leave`."""

    def __init__(self, checker: Checker) -> None:
        self._checker, self._left = checker, threading.Event()
        self._tasks: list[asyncio.Task[bool]] = []

    async def come(self, brand: BrandOfPeople, num: int) -> None:
        theirs = self._checker.on_behalf_of(QueueOwner(brand.id, brand.admin.user_id))
        self._tasks += [asyncio.create_task(theirs.run(self._left.wait, 60)) for _ in range(num)]
        for _ in range(10):
            await asyncio.sleep(0)

    async def leave(self) -> None:
        self._left.set()
        assert all(await asyncio.gather(*self._tasks))


@pytest.fixture
async def many_files(platform: Platform) -> AsyncIterator[ManyFiles]:
    """The platform's checker takes two waiting files a brand."""
    before = platform.app.state.checker
    platform.app.state.checker = Checker(Limits(waiting_checks=2))
    made = ManyFiles(platform.app.state.checker)
    yield made
    await made.leave()
    platform.app.state.checker = before


@pytest.fixture
def picture(pictures: Draw) -> bytes:
    return pictures(uuid.uuid4().int % 10**9)


async def test_a_crowd_of_one_brand_keeps_nobody_else_waiting(
    platform: Platform, make_brand: MakeBrand, many_files: ManyFiles, picture: bytes
) -> None:
    acme, globex = await make_brand("acme"), await make_brand("globex")
    await many_files.come(acme, 4)
    async with platform.client(globex.member) as client:
        asset = await upload(client, globex.id, picture)
        body = {"model_type": "sd15", "training_asset_ids": [asset["id"]]}
        answer = await client.post(f"/v1/brands/{globex.id}/training-jobs:check", json=body)
    assert answer.status_code == 200, answer.text


async def test_a_brand_whose_queue_is_full_is_told_when_to_come_again(
    platform: Platform, make_brand: MakeBrand, many_files: ManyFiles, picture: bytes
) -> None:
    acme, globex = await make_brand("acme"), await make_brand("globex")
    async with platform.client(acme.member) as client:
        asset = await upload(client, acme.id, picture)
        await many_files.come(acme, 4)
        files = [("files", ("logo.png", picture, "image/png"))]
        body = {"model_type": "sd15", "training_asset_ids": [asset["id"]]}
        page = {"file": ("voice.md", b"# Voice", "text/markdown")}
        at = f"/v1/brands/{acme.id}"
        answers = [
            await client.post(f"{at}/assets", files=files),
            await client.post(f"{at}/documents", files=page),
        ]
        checked = await client.post(f"{at}/training-jobs:check", json=body)
    assert [answer.status_code for answer in answers] == [429] * 2
    assert checked.status_code == 200, "a data check reads no files, so it does not wait for their turn"
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
    async with platform.client(globex.member) as client:
        await upload(client, globex.id, picture)


async def test_brands_of_one_account_are_one_crowd(
    platform: Platform, make_brand: MakeBrand, many_files: ManyFiles, picture: bytes
) -> None:
    """Twenty brands of one maker hold no more than one would."""
    globex = await make_brand("globex")
    many = [await make_brand("acme") for _ in range(5)]
    for brand in many:
        await many_files.come(BrandOfPeople(brand.id, many[0].admin, brand.member, brand.member2), 2)
    async with platform.client(globex.member) as client:
        await upload(client, globex.id, picture)
