"""A generation whose ingress or engine is gone runs again with the same parameters, a bounded number of times."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
import pytest_asyncio
from PIL import Image

from onbrand.app import create_app
from onbrand.background import generations
from onbrand.background.generations import GenerationTasks
from onbrand.background.previews import Viewer
from onbrand.background.recovery import SILENT_SECONDS, Recovery, abandoned
from onbrand.brand import Ticket
from onbrand.db.limits import set_limits
from onbrand.errors import Conflict, EngineLost, Unavailable
from onbrand.services import generation_worker
from onbrand.services.job_queue import QueueEntry
from tests.conftest import BrandOfPeople
from tools.harness.in_process_platform import Platform
from tools.harness.receipts import receipt_of

BODY = {"prompt": "photo of [brand] logo", "width": 64, "height": 64, "seed": 11}
DRAWN = {"prefer": "wait=20"}
LONG = timedelta(seconds=SILENT_SECONDS + 1)


@pytest_asyncio.fixture(loop_scope="session")
async def generation_tasks(platform: Platform) -> AsyncIterator[GenerationTasks]:
    """The part of the system process that restarts abandoned generations."""
    made = GenerationTasks(
        platform.settings, platform.secrets, platform.generator, lambda ticket: platform.system(ticket, patience=2)
    )
    yield made
    await made.close()


@pytest.fixture
def recovery(platform: Platform, generation_tasks: GenerationTasks) -> Recovery:
    return listening(platform, generation_tasks)


def listening(platform: Platform, generation_tasks: GenerationTasks | None) -> Recovery:
    """A process that has been listening for a long time."""
    made = Recovery(platform.db, generation_tasks)
    made._listening_since = datetime.now(UTC) - timedelta(days=1)
    return made


async def look(recovery: Recovery, brand: BrandOfPeople) -> None:
    """One search for abandoned generations, of this brand only, as other tests have generations too."""
    queue = recovery._queue

    async def of_the_brand() -> list[QueueEntry]:
        return [entry for entry in await queue() if entry.brand_id == brand.id]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery, "_queue", of_the_brand)
        assert await recovery.look(datetime.now(UTC) + LONG) == 1


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a loss, the next engine gets the request at once."""
    monkeypatch.setattr(generations, "_PAUSE_AFTER_LOSS", 0.0)


async def left(platform: Platform, brand: BrandOfPeople, **options: Any) -> dict[str, Any]:
    """A generation whose ingress ended right after it created the row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform.app.state.onbrand.generation_tasks, "start", lambda family, request: None)
        async with platform.client(brand.member) as client:
            answer = await client.post(at(brand), json=BODY | {"model_type": "sd15"} | options)
    assert answer.status_code == 202, answer.text
    made: dict[str, Any] = answer.json()
    return made


def at(brand: BrandOfPeople) -> str:
    return f"/v1/brands/{brand.id}/generations"


async def until_ended(platform: Platform, brand: BrandOfPeople, made: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(20), platform.client(brand.member) as client:
        while True:
            row: dict[str, Any] = (await client.get(f"{at(brand)}/{made['id']}")).json()
            if row["status"] in ("completed", "failed", "canceled"):
                return row
            await asyncio.sleep(0.02)


async def events_of(platform: Platform, brand: BrandOfPeople, made: dict[str, Any]) -> list[tuple[str, Any]]:
    """Kind and data of all events of an ended generation."""
    async with platform.client(brand.member) as client:
        text = (await client.get(f"{at(brand)}/{made['id']}/events")).text
    blocks = [dict(line.split(": ", 1) for line in block.splitlines() if ": " in line) for block in text.split("\n\n")]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


async def heard_at(platform: Platform, brand: BrandOfPeople, made: dict[str, Any]) -> datetime | None:
    ticket = brand.ticket(made["id"], "generation")
    async with platform.db.system_session(ticket) as session:
        row = await session.one("select heartbeat_at from app.generations where id = %s", [made["id"]])
    return row["heartbeat_at"]


async def test_a_generation_that_nobody_looks_after_is_drawn_as_it_was_asked_for(
    platform, recovery, make_brand, pictures, database
):
    brand = await make_brand("left")
    _, first = await platform.train(brand, pictures(1))
    _, second = await platform.train(brand, pictures(2))
    set_limits(database.owner_url, brand.id, {"weight": 2.5, "slot_quota": 3})
    uses = [{"model": second.name, "scale": 0.25}, {"model": first.name, "scale": 1.0}]
    options = {"models": uses, "model_type": None, "num_images": 2, "sampler": "dpm++2m", "exclusive": True}
    begun = await left(platform, brand, **options)
    await look(recovery, brand)
    done = await until_ended(platform, brand, begun)
    again = platform.generator.seen[-1]
    async with platform.client(brand.member) as client:
        asked = (await client.post(at(brand), json=BODY | options, headers=DRAWN)).json()
    plain = platform.generator.seen[-1]
    assert (done["status"], [image["seed"] for image in done["images"]]) == ("completed", [11, 12])
    assert [image["sha256"] for image in done["images"]] == [image["sha256"] for image in asked["images"]]
    assert (again.weight, again.slot_quota, again.adapters) == (2.5, 3, plain.adapters)
    own = ("ticket", "generation_id")
    assert [getattr(again, name) for name in again.__slots__ if name not in own] == [
        getattr(plain, name) for name in plain.__slots__ if name not in own
    ]


async def test_pictures_that_were_stored_before_stay_and_are_told_once(platform, recovery, make_brand):
    brand = await make_brand("half")
    begun = await left(platform, brand, num_images=3)
    async with platform.system(brand.ticket(begun["id"], "generation")) as worker:
        await worker.start_generation()
        kept = await worker.add_image(1, 12, png(), "image/png", 64, 64, receipt_of(brand.id))
    await look(recovery, brand)
    done = await until_ended(platform, brand, begun)
    assert [(image["index"], image["seed"]) for image in done["images"]] == [(0, 11), (1, 12), (2, 13)]
    assert done["images"][1]["id"] == kept.id
    told = await events_of(platform, brand, begun)
    assert sorted(data["index"] for kind, data in told if kind == "image") == [0, 1, 2]
    assert [data["status"] for kind, data in told if kind == "status"] == ["running", "completed"]


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(file, "PNG")
    return file.getvalue()


async def test_one_of_whom_somebody_was_heard_is_left_alone(platform, recovery, generation_tasks, make_brand):
    brand = await make_brand("heard")
    begun = await left(platform, brand)
    num_seen = len(platform.generator.seen)
    async with platform.system(brand.ticket(begun["id"], "generation")) as worker:
        await worker.report_generation(0)
    ours = [entry for entry in await recovery._queue() if entry.job_id == begun["id"]]
    assert abandoned(ours, recovery._listening_since, datetime.now(UTC)) == []
    async with platform.system(brand.ticket(begun["id"], "generation")) as worker:
        await worker.report_generation(0)  # heard after the look at the queue
    await recovery._take_care(ours[0])
    assert not generation_tasks.is_running(begun["id"])
    assert len(platform.generator.seen) == num_seen


async def test_of_two_who_take_over_one_does(platform, make_brand):
    brand = await make_brand("twice")
    begun = await left(platform, brand)
    ticket = brand.ticket(begun["id"], "generation")

    async def take() -> bool:
        async with platform.db.system_session(ticket) as session:
            return await generation_worker.take_over(session, ticket, None)

    assert sorted(await asyncio.gather(take(), take())) == [False, True]


def entry(brand_id: str, age: float, heard: float | None = None, kind: str = "generation") -> QueueEntry:
    at = {"created_at": NOW - timedelta(seconds=age)}
    at["heartbeat_at"] = None if heard is None else NOW - timedelta(seconds=heard)
    ids = {"job_id": f"{brand_id}-{age:.0f}", "user_id": "u", "provider": None, "provider_job_id": None}
    state = {"status": "running", "attempts": 0, "cancel_requested": False}
    return QueueEntry(kind=kind, brand_id=brand_id, **ids, **state, **at)


NOW = datetime(2026, 1, 1, tzinfo=UTC)
AGES = timedelta(days=1)


def test_who_was_heard_of_lately_or_is_new_is_not_abandoned():
    queue = [entry("a", 900, 3), entry("b", 900, 900), entry("c", 1), entry("d", 900), entry("e", 900, kind="training")]
    assert [each.brand_id for each in abandoned(queue, NOW - AGES, NOW)] == ["b", "d"]


def test_silence_while_nobody_could_be_heard_does_not_count():
    queue = [entry("a", 900, 600)]
    for since, num in ((SILENT_SECONDS - 1, 0), (SILENT_SECONDS + 1, 1)):
        assert len(abandoned(queue, NOW - timedelta(seconds=since), NOW)) == num


def test_each_brands_first_comes_before_any_brands_second():
    queue = [entry("a", 900), entry("a", 800), entry("a", 700), entry("b", 600), entry("c", 500), entry("b", 400)]
    found = [each.job_id for each in abandoned(queue, NOW - AGES, NOW)]
    assert found == ["a-900", "b-600", "c-500", "a-800", "b-400", "a-700"]


async def test_one_that_was_canceled_meanwhile_is_not_drawn(platform, recovery, make_brand):
    brand = await make_brand("unwanted")
    begun = await left(platform, brand)
    async with platform.client(brand.member) as client:
        await client.post(f"{at(brand)}/{begun['id']}/cancel")
    num_seen = len(platform.generator.seen)
    await look(recovery, brand)
    assert (await until_ended(platform, brand, begun))["status"] == "canceled"
    assert not [each for each in platform.generator.seen[num_seen:] if each.generation_id == begun["id"]]


async def test_one_whose_model_was_deleted_is_not_drawn_with_less(platform, recovery, make_brand, pictures):
    brand = await make_brand("bare")
    _, model = await platform.train(brand, pictures(1))
    begun = await left(platform, brand, model=model.name, model_type=None)
    async with platform.client(brand.admin) as admin:
        await admin.delete(f"/v1/brands/{brand.id}/models/{model.id}")
    await look(recovery, brand)
    row = await until_ended(platform, brand, begun)
    assert (row["status"], row["error"]["code"], row["images"]) == ("failed", "not_found", [])


async def test_without_an_engine_it_ends_as_failed(platform, make_brand):
    brand = await make_brand("alone")
    begun = await left(platform, brand)
    await look(listening(platform, None), brand)
    assert (await until_ended(platform, brand, begun))["error"]["code"] == "engine_lost"


# engines that are lost


def lost() -> Unavailable:
    return Unavailable("the replica is gone", elsewhere=True)


async def test_when_a_replica_is_lost_another_draws_and_nobody_is_told_to_wait(
    platform, make_brand, database, monkeypatch
):
    brand = await make_brand("moved")
    platform.generator.refusals = [lost(), lost()]
    noted: list[str] = []
    monkeypatch.setattr(GenerationTasks, "_note", lambda generation_tasks, key, *_: noted.append(key))
    done = (await ask(platform, brand, DRAWN)).json()
    assert done["status"] == "completed"
    assert num_lost(database, done["id"]) == 2
    assert noted == []


def num_lost(database: Any, generation_id: str) -> int:
    with psycopg.connect(database.owner_url) as owner:
        owner.execute("set row_security = off")
        return int(owner.execute("select num_lost from app.generations where id = %s", [generation_id]).fetchone()[0])


async def test_what_loses_engines_again_and_again_is_ended(platform, make_brand):
    brand = await make_brand("deadly")
    num_seen = len(platform.generator.seen)
    platform.generator.refusals = [lost() for _ in range(2 * generation_worker.LOST_MAX)]
    try:
        async with platform.client(brand.member) as client:
            done = (await client.post(at(brand), json=BODY | {"model_type": "sd15"}, headers=DRAWN)).json()
    finally:
        platform.generator.refusals = []
    assert (done["status"], done["error"]["code"]) == ("failed", "engine_lost")
    assert len(platform.generator.seen) - num_seen == generation_worker.LOST_MAX + 1


async def test_losses_are_counted_over_all_who_look_after_it(platform, recovery, make_brand):
    """A generation that kills its ingress and its engine at once is bounded too."""
    brand = await make_brand("worse")
    begun = await left(platform, brand)
    ticket = brand.ticket(begun["id"], "generation")
    async with platform.system(ticket) as worker:
        await worker.start_generation()
    for _ in range(generation_worker.LOST_MAX):
        heard = await heard_at(platform, brand, begun)
        async with platform.db.system_session(ticket) as session:
            assert await generation_worker.take_over(session, ticket, heard)
    await look(recovery, brand)
    assert (await until_ended(platform, brand, begun))["error"]["code"] == "engine_lost"
    with pytest.raises(Conflict):
        async with platform.system(ticket) as worker:
            await worker.report_generation(0, lost=True)


async def test_a_worker_hears_that_engines_were_lost_too_often(platform, make_brand):
    brand = await make_brand("worker")
    begun = await left(platform, brand)
    async with platform.system(brand.ticket(begun["id"], "generation")) as worker:
        for _ in range(generation_worker.LOST_MAX):
            await worker.report_generation(0, lost=True)
        with pytest.raises(EngineLost):
            await worker.report_generation(0, lost=True)


# until a replica has begun


async def ask(platform: Platform, brand: BrandOfPeople, headers: dict[str, str], **options: Any) -> httpx.Response:
    async with platform.client(brand.member) as client:
        return await client.post(at(brand), json=BODY | {"model_type": "sd15"} | options, headers=headers)


async def test_while_no_replica_begins_its_ingress_says_that_it_is_looked_after(platform, make_brand, monkeypatch):
    monkeypatch.setattr(generations, "ALIVE_SECONDS", 0.05)
    brand = await make_brand("queued")
    begun = (await ask(platform, brand, {}, prompt="[silent]")).json()
    first = None
    async with asyncio.timeout(20):
        while (now := await heard_at(platform, brand, begun)) is None or now == (first := first or now):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    async with platform.client(brand.member) as client:
        await client.post(f"{at(brand)}/{begun['id']}/cancel")
    assert (await until_ended(platform, brand, begun))["status"] == "canceled"
    told = await events_of(platform, brand, begun)
    assert [kind for kind, _ in told] == ["status"], "what did not change is not told"


async def test_a_cancel_is_heard_though_no_replica_begins(platform, make_brand):
    brand = await make_brand("hasty")
    begun = (await ask(platform, brand, {}, prompt="[silent]")).json()
    async with asyncio.timeout(3), platform.client(brand.member) as client:
        await client.post(f"{at(brand)}/{begun['id']}/cancel")
        assert (await until_ended(platform, brand, begun))["status"] == "canceled"


async def test_an_engine_that_never_begins_ends_it_honestly(platform, make_brand, monkeypatch):
    monkeypatch.setattr(generations, "ALIVE_SECONDS", 0.01)
    monkeypatch.setattr(generations, "FULL_SECONDS", 0.05)
    monkeypatch.setattr(generations, "AWAY_SECONDS", 0.05)
    brand = await make_brand("never")
    done = (await ask(platform, brand, DRAWN, prompt="[silent]")).json()
    assert (done["status"], done["error"]["code"]) == ("failed", "unavailable")


async def test_a_call_that_is_repeated_elsewhere_begins_no_second_drawing(platform, make_brand):
    """Its ingress waits for an engine, and says so; the one that is asked again has only the row to go by."""
    brand = await make_brand("again")
    key = {"idempotency-key": uuid.uuid4().hex}
    begun = await left_with(platform, brand, key)
    async with platform.system(brand.ticket(begun["id"], "generation")) as worker:
        await worker.report_generation(0)
    num_seen = len(platform.generator.seen)
    assert (await ask(platform, brand, key)).json()["id"] == begun["id"]
    assert not platform.app.state.onbrand.generation_tasks.is_running(begun["id"])
    assert len(platform.generator.seen) == num_seen


async def left_with(platform: Platform, brand: BrandOfPeople, headers: dict[str, str]) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform.app.state.onbrand.generation_tasks, "start", lambda family, request: None)
        made: dict[str, Any] = (await ask(platform, brand, headers)).json()
    return made


async def test_a_ticket_that_ran_out_meanwhile_is_replaced(platform, make_brand):
    """A generation may be lost after longer than its first ticket lasts."""
    brand = await make_brand("slow")
    num_seen = len(platform.generator.seen)
    platform.generator.refusals = [lost()]
    with pytest.MonkeyPatch.context() as patch:
        old = Ticket.renewed
        patch.setattr(Ticket, "renewed", lambda ticket, seconds: old(ticket, seconds + 7))
        assert (await ask(platform, brand, DRAWN)).json()["status"] == "completed"
    first, second = platform.generator.seen[num_seen:]
    secret = platform.secrets.tickets
    assert Ticket.verify(second.ticket, secret).expires_at - Ticket.verify(first.ticket, secret).expires_at >= 7


# previews through any ingress


@pytest.fixture
def elsewhere(platform: Platform) -> Platform:
    """The same platform through another ingress."""
    app = create_app(
        platform.settings, platform.secrets, platform.db, platform.store, platform.generator,
        client_for=lambda ticket: platform.system(ticket, patience=2),
    )  # fmt: skip
    parts = (platform.settings, platform.secrets, platform.db, platform.store, app, platform.system_app)
    return Platform(*parts, platform.generator)


async def watched(platform: Platform, person: Any, path: str) -> tuple[int, str]:
    """Status and full text of a stream."""
    async with asyncio.timeout(20), platform.client(person) as client:
        answer = await client.get(f"{path}/events")
    return answer.status_code, answer.text


async def test_previews_are_seen_through_an_ingress_that_does_not_draw_by_their_member_alone(
    platform, elsewhere, make_brand, monkeypatch
):
    shown, news = [], Viewer.news
    monkeypatch.setattr(Viewer, "news", lambda *looks: [shown.append(each) or each for each in news(*looks)])
    ours, theirs = await make_brand("shown"), await make_brand("rival")
    begun = (await ask(platform, ours, {}, prompt="[hang]", preview_every=2)).json()
    path = f"{at(ours)}/{begun['id']}"
    num_watched = len(platform.generator.watched)
    streams = [
        asyncio.create_task(watched(elsewhere, person, path))
        for person in (ours.member, ours.member2, ours.admin, theirs.member, theirs.admin)
    ]
    async with asyncio.timeout(20):
        while not shown:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    async with platform.client(ours.member) as client:
        await client.post(f"{path}/cancel")
    (own, *others) = await asyncio.gather(*streams)
    image = f"data:image/jpeg;base64,{begun['id']}"
    assert own[1].count(f'event: preview\ndata: {{"index":0,"step":2,"image":"{image}"}}') == 1
    assert [status for status, _ in others] == [200, 200, 404, 404]
    assert not [text for _, text in others if "event: preview" in text or image in text]
    assert set(platform.generator.watched[num_watched:]) == {(begun["id"], ours.id, ours.member.user_id)}


async def test_who_asked_for_no_previews_makes_no_replica_tell(platform, elsewhere, make_brand):
    brand = await make_brand("plain")
    begun = (await ask(platform, brand, {}, prompt="[hang]")).json()
    path = f"{at(brand)}/{begun['id']}"
    stream = asyncio.create_task(watched(elsewhere, brand.member, path))
    await asyncio.sleep(1)  # two looks of the stream
    async with platform.client(brand.member) as client:
        await client.post(f"{path}/cancel")
    assert "event: preview" not in (await stream)[1]
    assert begun["id"] not in {asked[0] for asked in platform.generator.watched}
