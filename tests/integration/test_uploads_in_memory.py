"""Uploads stay on disk until their turn, one file at a time is in memory, and bytes in progress are bounded."""

from __future__ import annotations

import asyncio
import io
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from starlette.datastructures import UploadFile

from onbrand.api.http.bytes_in_progress import BytesInProgress
from onbrand.config import Limits
from onbrand.fair_turns import QueueOwner
from onbrand.sandbox.checker import Checker
from onbrand.sandbox.incoming_files import SentFile
from onbrand.services import asset_checks
from tests.conftest import MakeBrand
from tools.harness.in_process_platform import Platform, weights

Draw = Callable[..., bytes]


@pytest.fixture
def picture(pictures: Draw) -> Callable[[], bytes]:
    return lambda: pictures(uuid.uuid4().int % 10**9)


class Counted(bytes):
    """Bytes that count how many of them exist at once."""

    now = most = 0

    def __new__(cls, data: bytes) -> Counted:
        cls.now += 1
        cls.most = max(cls.most, cls.now)
        return super().__new__(cls, data)

    def __del__(self) -> None:
        type(self).now -= 1


class Noting(Checker):
    """Records the order of checks."""

    def __init__(self) -> None:
        super().__init__(Limits())
        self.order: list[str] = []

    async def run(self, check: Callable[..., Any], *given: Any) -> Any:
        self.order.append(check.__name__)
        return await super().run(check, *given)


def sent(data: bytes) -> SentFile:
    async def read() -> bytes:
        return Counted(data)

    return SentFile(data[:4], len(data), read)


def packed(*pictures: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for n, data in enumerate(pictures):
            archive.writestr(f"{n}.png", data)
    return written.getvalue()


async def test_each_file_is_let_go_before_the_next_is_read(picture: Callable[[], bytes]) -> None:
    Counted.now = Counted.most = 0
    files = [asset_checks.Upload(f"{n}.png", sent(picture())) for n in range(5)]
    files.append(asset_checks.Upload("more.zip", sent(packed(picture()))))
    assert len(await asset_checks.check(Checker(), files, Limits())) == 6
    assert Counted.most <= 2  # the thread that checked a file may let it go a moment after its turn


async def test_one_archive_at_a_time_is_unpacked(picture: Callable[[], bytes]) -> None:
    checker = Noting()
    files = [asset_checks.Upload(f"{n}.zip", sent(packed(picture(), picture()))) for n in range(2)]
    assert len(await asset_checks.check(checker, files, Limits())) == 4
    assert checker.order == ["unpack", "image", "image"] * 2


@pytest.fixture
async def occupied(platform: Platform) -> AsyncIterator[Callable[[], Any]]:
    """Take all places for whole requests until `occupied()` is called."""
    before, made, free = platform.app.state.checker, Checker(), asyncio.Event()
    platform.app.state.checker = made

    async def stay(n: int) -> None:
        async with made.on_behalf_of(QueueOwner(f"other-{n}", f"other-{n}")).whole():
            await free.wait()

    tasks = [asyncio.create_task(stay(n)) for n in range(4)]
    yield free.set
    free.set()
    await asyncio.gather(*tasks)
    platform.app.state.checker = before


@pytest.fixture
def whole_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read whole."""
    names, read = [], UploadFile.read

    async def noting(self: UploadFile, size: int = -1) -> bytes:
        if size < 0:
            names.append(self.filename or "")
        return await read(self, size)

    monkeypatch.setattr(UploadFile, "read", noting)
    return names


async def until_it_waits(platform: Platform, brand_id: str) -> None:
    turns = platform.app.state.checker._requests
    async with asyncio.timeout(20):
        while brand_id not in turns._waiting:  # noqa: ASYNC110 (nothing tells when somebody waits)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("door", ["assets", "documents", "models:import"])
async def test_a_file_is_read_when_its_turn_has_come(
    platform: Platform,
    make_brand: MakeBrand,
    picture: Callable[[], bytes],
    occupied: Callable[[], None],
    whole_reads: list[str],
    door: str,
) -> None:
    acme = await make_brand("acme")
    forms: dict[str, dict[str, Any]] = {
        "assets": {"files": [("files", ("a.png", picture())), ("files", ("b.png", picture()))]},
        "documents": {"files": {"file": ("a.md", b"# Voice")}},
        "models:import": {
            "files": {"file": ("a.safetensors", weights("x"))},
            "data": {"model_type": "sd15", "trigger_word": "acme"},
        },
    }
    async with platform.client(acme.member) as client:
        asking = asyncio.create_task(client.post(f"/v1/brands/{acme.id}/{door}", **forms[door]))
        await until_it_waits(platform, acme.id)
        assert whole_reads == []
        occupied()
        answer = await asking
    assert whole_reads
    assert answer.status_code in ((201,) if door != "models:import" else (202, 422)), answer.text


@pytest.fixture
async def few_bytes(platform: Platform) -> AsyncIterator[BytesInProgress]:
    """Limit an account to 20,000 bytes."""
    before = platform.app.state.bodies
    platform.app.state.bodies = BytesInProgress(Limits(account_body_bytes=20_000, body_bytes=100_000))
    yield platform.app.state.bodies
    platform.app.state.bodies = before


async def test_more_bytes_of_an_account_are_refused_before_they_are_read(
    platform: Platform, make_brand: MakeBrand, few_bytes: BytesInProgress
) -> None:
    acme = await make_brand("acme")
    path = f"/v1/brands/{acme.id}/documents"
    page = {"file": ("voice.md", b"# Voice\n" + b"word " * 2_000)}

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"content-type": "multipart/form-data; boundary=x"}
    async with platform.client(acme.member) as client, platform.client(acme.member2) as other:
        with ExitStack() as under_way:
            under_way.enter_context(few_bytes.held(acme.member.user_id, 15_000))
            refused = await client.post(path, files=page)
            assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (429, True)
            assert (await other.post(path, files=page)).status_code == 201
            assert (await client.get(path)).status_code == 200
        for n in range(3):  # what was answered holds nothing
            other_page = {"file": (f"{n}.md", page["file"][1])}
            assert (await client.post(path, files=other_page)).is_success
        endless = await _status(client, path, unread(), headers)
    assert endless == 429
    assert len(few_bytes) == 0


async def _status(client: httpx.AsyncClient, path: str, body: AsyncIterator[bytes], headers: dict[str, str]) -> int:
    """The status for a body without a length, which counts as the maximum of the address."""
    return (await client.post(path, content=body, headers=headers)).status_code
