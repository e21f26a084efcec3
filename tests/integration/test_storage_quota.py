"""Limits of open uploads and stored bytes, by brand and by caller: on every route, also with concurrent requests."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import psycopg
import pytest
import pytest_asyncio

from onbrand.brand import Ticket
from onbrand.config import Limits, Settings
from onbrand.db.session import Database
from onbrand.errors import TooLarge
from onbrand.sandbox.checker import Checker
from onbrand.secrets_file import Secrets
from onbrand.services import asset_checks, assets
from tests.conftest import BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform, serving, weights
from tools.harness.receipts import receipt_of

Draw = Callable[..., bytes]
ROOM = 40_000
LIMITS = Limits(open_uploads=4, caller_open_uploads=6, brand_bytes=ROOM, caller_bytes=2 * ROOM)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def narrow(settings: Settings, secrets: Secrets, db: Database) -> AsyncIterator[Platform]:
    """A platform with small quotas."""
    async with serving(settings.model_copy(update={"limits": LIMITS}), secrets, db) as running:
        yield running


@pytest.fixture
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


def fill(owner: psycopg.Connection, brand: BrandOfPeople, num_bytes: int, user_id: str | None = None) -> str:
    """Insert rows of a stored object of this many bytes; returns its name."""
    name = f"{brand.id}/{uuid.uuid4().hex}.png"
    owner.execute("set local session_replication_role = origin")
    owner.execute(
        "insert into storage.objects (bucket_id, name, user_id, content_type, bytes)"
        " values ('generated-content', %s, %s, 'image/png', %s)",
        [name, user_id or brand.member.user_id, num_bytes],
    )
    owner.commit()
    return name


def counted(owner: psycopg.Connection, brand: BrandOfPeople) -> tuple[int, int]:
    """The counted and the actual bytes of the brand."""
    row = owner.execute(
        "select coalesce((select bytes from app.brand_usage where brand_id = %(b)s), 0),"
        " (select coalesce(sum(bytes), 0) from storage.objects where brand_id = %(b)s)",
        {"b": brand.id},
    ).fetchone()
    owner.commit()
    assert row is not None
    return int(row[0]), int(row[1])


def announcement(num_bytes: int = 100) -> dict[str, Any]:
    return {"kind": "image", "filename": "a.png", "content_type": "image/png", "bytes": num_bytes}


async def announce(client: httpx.AsyncClient, brand: BrandOfPeople, num_bytes: int = 100) -> httpx.Response:
    return await client.post(f"/v1/brands/{brand.id}/uploads", json=announcement(num_bytes))


def must_name(answer: httpx.Response, status: int, limit: str) -> None:
    assert (answer.status_code, f"limits.{limit}" in answer.json()["detail"]) == (status, True), answer.text


# Open uploads


async def test_open_uploads_of_a_brand_end_at_their_limit(narrow: Platform, acme: BrandOfPeople) -> None:
    async with narrow.client(acme.member) as client, narrow.client(acme.member2) as other:
        opened = [(await announce(client, acme)).json() for _ in range(LIMITS.open_uploads)]
        refused = await announce(other, acme)
        must_name(refused, 429, "open_uploads")
        assert int(refused.headers["retry-after"]) > 0
        await client.delete(f"/v1/brands/{acme.id}/uploads/{opened[0]['id']}")
        assert (await announce(other, acme)).status_code == 201


async def test_open_uploads_of_a_caller_end_at_their_limit_in_all_brands(
    narrow: Platform, make_brand: MakeBrand
) -> None:
    brand, others = await make_brand("acme"), [await make_brand("globex") for _ in range(2)]
    for other in others:
        async with narrow.client(other.admin) as admin:
            await join(admin, narrow, other, brand.member)
    async with narrow.client(brand.member) as client:
        answers = [await announce(client, each) for each in (brand, *others) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201] * LIMITS.caller_open_uploads + [429] * 3
    must_name(answers[-1], 429, "caller_open_uploads")


async def test_what_is_bound_to_a_brand_leaves_its_user_uploads_elsewhere(
    narrow: Platform, make_brand: MakeBrand
) -> None:
    brand, other = await make_brand("acme"), await make_brand("globex")
    async with narrow.client(other.admin) as admin:
        await join(admin, narrow, other, brand.member)
    async with narrow.client(brand.member, brand.id) as bound, narrow.client(brand.member) as in_person:
        half = LIMITS.caller_open_uploads // 2
        answers = [await announce(bound, brand) for _ in range(half + 1)]
        assert [answer.status_code for answer in answers] == [201] * half + [429]
        must_name(answers[-1], 429, "caller_open_uploads")
        answers = [await announce(in_person, other) for _ in range(LIMITS.caller_open_uploads - half)]
    assert [answer.status_code for answer in answers] == [201] * len(answers)


async def join(admin: httpx.AsyncClient, platform: Platform, brand: BrandOfPeople, person: Any) -> None:
    """Invite the person, who accepts."""
    made = await admin.post(f"/v1/brands/{brand.id}/invitations", json={"email": person.email, "role": "member"})
    assert made.status_code == 201, made.text
    async with platform.client(person) as client:
        accepted = await client.post("/v1/invitations/accept", json={"token": made.json()["token"]})
        assert accepted.is_success, accepted.text


async def test_many_who_announce_at_once_do_not_pass_the_limit(narrow: Platform, acme: BrandOfPeople) -> None:
    async with narrow.client(acme.member) as client, narrow.client(acme.member2) as other:
        answers = await asyncio.gather(*(announce(each, acme) for each in (client, other) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [201] * LIMITS.open_uploads + [429] * 8


# Bytes that are announced


async def test_announced_bytes_are_taken_from_the_brands_room(narrow: Platform, acme: BrandOfPeople) -> None:
    async with narrow.client(acme.member) as client:
        assert (await announce(client, acme, ROOM // 2)).status_code == 201
        must_name(await announce(client, acme, ROOM // 2 + 1), 413, "brand_bytes")
        assert (await announce(client, acme, ROOM // 2)).status_code == 201


async def test_a_canceled_upload_counts_until_its_bytes_are_swept(
    narrow: Platform, acme: BrandOfPeople, owner: psycopg.Connection
) -> None:
    """Its link may still be used."""
    async with narrow.client(acme.member) as client:
        upload = (await announce(client, acme, ROOM)).json()
        await client.delete(f"/v1/brands/{acme.id}/uploads/{upload['id']}")
        must_name(await announce(client, acme, 1), 413, "brand_bytes")
        owner.execute("set local session_replication_role = replica")
        owner.execute("update app.uploads set swept_at = clock_timestamp() where id = %s", [upload["id"]])
        owner.commit()
        assert (await announce(client, acme, ROOM)).status_code == 201


async def test_files_to_import_are_taken_from_the_brands_room(
    narrow: Platform, acme: BrandOfPeople, owner: psycopg.Connection
) -> None:
    data = weights()
    fill(owner, acme, ROOM - len(data))
    async with narrow.client(acme.member) as client:

        async def send() -> httpx.Response:
            return await client.post(
                f"/v1/brands/{acme.id}/models:import", data={"model_type": "sd15"}, files={"file": ("a.st", data)}
            )

        assert (await send()).status_code == 202
        must_name(await send(), 413, "brand_bytes")
        must_name(await announce(client, acme, 1), 413, "brand_bytes")


# Bytes that are stored


async def test_every_door_refuses_what_a_full_brand_would_store(
    narrow: Platform, acme: BrandOfPeople, owner: psycopg.Connection, pictures: Draw
) -> None:
    picture = pictures(uuid.uuid4().int % 10**9)
    at = f"/v1/brands/{acme.id}"
    async with narrow.client(acme.member) as client, httpx.AsyncClient() as stranger:
        upload = (await announce(client, acme, len(picture))).json()
        sent = await stranger.put(upload["send"]["url"], content=picture, headers=upload["send"]["headers"])
        assert sent.is_success, sent.text
        full = fill(owner, acme, ROOM)
        for answer in (
            await client.post(f"{at}/assets", files=[("files", ("logo.png", picture, "image/png"))]),
            await client.post(f"{at}/documents", files={"file": ("voice.md", b"# Voice", "text/markdown")}),
            await client.post(f"{at}/generations", json={"prompt": "a [brand] logo", "model_type": "sd15"}),
            await client.post(f"{at}/uploads/{upload['id']}/complete"),
        ):
            must_name(answer, 413, "brand_bytes")
        assert narrow.store.brand(acme.id).list("training-data", "other") == []
        owner.execute("delete from storage.objects where name = %s", [full])
        owner.commit()
        stored = await client.post(f"{at}/assets", files=[("files", ("logo.png", picture, "image/png"))])
        assert stored.status_code == 201, stored.text


async def test_a_drawn_picture_that_does_not_fit_is_not_stored(
    narrow: Platform, acme: BrandOfPeople, owner: psycopg.Connection, pictures: Draw
) -> None:
    async with narrow.db.user_session(acme.member.scope) as session:
        row = await session.one(
            "insert into app.generations (brand_id, user_id, model_type, model_name, prompt, num_images, width, height,"
            " seed, num_inference_steps, guidance_scale, true_cfg_scale, lora_scale, output_format)"
            " values (%s, %s, 'sd15', 'sd15', 'x', 1, 512, 512, 1, 4, 1, 1, 1, 'png') returning id",
            [acme.id, acme.member.user_id],
        )
    ticket = acme.ticket(row["id"], "generation")
    picture = pictures(uuid.uuid4().int % 10**9, size=512)
    full = fill(owner, acme, ROOM - 10)
    async with narrow.system(ticket) as worker:
        await worker.start_generation()
        given = (0, 1, picture, "image/png", 512, 512, receipt_of(acme.id))
        with pytest.raises(TooLarge, match="brand_bytes"):
            await worker.add_image(*given)
        assert narrow.store.brand(acme.id).list("generated-content") == []
        owner.execute("delete from storage.objects where name = %s", [full])
        owner.commit()
        await worker.add_image(*given)
    assert counted(owner, acme) == (len(picture), len(picture))


async def test_a_caller_has_so_much_in_all_brands(
    narrow: Platform, make_brand: MakeBrand, owner: psycopg.Connection, pictures: Draw
) -> None:
    brand, elsewhere = await make_brand("acme"), await make_brand("globex")
    fill(owner, elsewhere, 2 * ROOM, user_id=brand.member.user_id)
    files = [("files", ("logo.png", pictures(uuid.uuid4().int % 10**9), "image/png"))]
    async with narrow.client(brand.member) as client, narrow.client(brand.member2) as other:
        must_name(await client.post(f"/v1/brands/{brand.id}/assets", files=files), 413, "caller_bytes")
        must_name(await announce(client, brand), 413, "caller_bytes")
        assert (await other.post(f"/v1/brands/{brand.id}/assets", files=files)).status_code == 201


async def test_two_who_store_at_once_do_not_pass_the_limit_together(
    narrow: Platform, acme: BrandOfPeople, pictures: Draw
) -> None:
    """Each alone fits, and neither sees the other when it looks first: the second waits, and is refused."""
    checker = Checker()
    first, second = [
        await asset_checks.check(
            checker, [asset_checks.Upload(f"{n}.png", pictures(uuid.uuid4().int % 10**9))], Limits()
        )
        for n in range(2)
    ]
    limits = Limits(brand_bytes=len(first[0].image.bytes) + len(second[0].image.bytes) - 1)
    store, member = narrow.store.brand(acme.id), acme.member
    has_looked, may_end = asyncio.Event(), asyncio.Event()

    async def store_first() -> None:
        async with narrow.db.user_session(member.scope) as session:
            await assets.store_checked(session, store, acme.id, member.user_id, first, limits)
            has_looked.set()
            await may_end.wait()

    async def store_second() -> None:
        async with narrow.db.user_session(acme.member2.scope) as session:
            await has_looked.wait()
            await assets.store_checked(session, store, acme.id, acme.member2.user_id, second, limits)

    one, two = asyncio.create_task(store_first()), asyncio.create_task(store_second())
    await has_looked.wait()
    while not (await waiting_for_a_lock(narrow)):
        assert not two.done(), "the second was stored beside the first"
        await asyncio.sleep(0.01)
    may_end.set()
    await one
    with pytest.raises(TooLarge, match="brand_bytes"):
        await two
    assert len(store.list("training-data")) == 1


async def waiting_for_a_lock(platform: Platform) -> bool:
    async with platform.db.user_session(None) as session:
        row = await session.one("select exists (select 1 from pg_locks where not granted) as waits")
    return bool(row["waits"])


async def test_what_is_counted_is_what_is_stored(
    narrow: Platform, acme: BrandOfPeople, owner: psycopg.Connection, pictures: Draw
) -> None:
    at = f"/v1/brands/{acme.id}"
    async with narrow.client(acme.admin) as client:
        files = [("files", (f"{n}.png", pictures(uuid.uuid4().int % 10**9), "image/png")) for n in range(2)]
        made = (await client.post(f"{at}/assets", files=files)).json()["data"]
        await client.post(f"{at}/documents", files={"file": ("voice.md", b"# Voice", "text/markdown")})
        assert (await client.post(f"{at}/assets", files=files)).status_code == 409
        assert counted(owner, acme)[0] > 0
        assert counted(owner, acme)[0] == counted(owner, acme)[1]
        await client.delete(f"{at}/assets/{made[0]['id']}")
    assert counted(owner, acme)[0] == counted(owner, acme)[1]


async def test_a_ticket_of_another_kind_counts_as_its_member(narrow: Platform, acme: BrandOfPeople) -> None:
    ticket: Ticket = acme.ticket(str(uuid.uuid4()), "generation")
    async with narrow.db.system_session(ticket) as session:
        row = await session.one("select * from private.stored_bytes(%s)", [acme.id])
    assert (row["of_brand"], row["of_caller"]) == (0, 0)
