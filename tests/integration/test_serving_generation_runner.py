"""A replica's work without Ray: tickets, weights and pictures over the real internal routes, database and store."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psycopg
import pytest
import pytest_asyncio
import safetensors.torch
import torch
import uvicorn
from PIL import Image

from onbrand.adapter import AdapterRef
from onbrand.app import create_system_app
from onbrand.brand import Ticket
from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.engine import Engine
from onbrand.engine.request import FinishedImage
from onbrand.errors import AdapterRefused, InvalidInput, NotFound, TicketRefused, TooManyRequests, Unavailable
from onbrand.families.lora import read_adapter
from onbrand.internal import generation
from onbrand.internal.async_client import AsyncSystemClient
from onbrand.internal.client import SystemClient
from onbrand.internal.generation import RenderRequest
from onbrand.services import generation_worker, generations, images, models
from onbrand.serving.active_generation import ActiveGeneration
from onbrand.serving.adapter_store import AdapterFiles, AdapterStore
from onbrand.serving.assembly import quiet_libraries
from onbrand.serving.engine_thread import EngineThread
from onbrand.serving.generation_runner import GenerationRunner
from onbrand.serving.image_files import RECEIPT_KEY
from onbrand.serving.local_engine import LocalEngine
from tests.integration.serving_fixtures import ServingFixtures
from tests.numerics.drawing import drawn
from tests.numerics.drawing import request as engine_request
from tools.harness.receipts import receipt_of
from tools.harness.tiny_families import adapter_bytes, family_of

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def fixtures(db, store, secrets, pictures) -> ServingFixtures:
    return ServingFixtures(db, store, secrets, pictures)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def internal_url(settings, secrets, db, store) -> AsyncIterator[str]:
    """The internal routes on a port of this machine."""
    app = create_system_app(settings, secrets, db, store)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="on"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


def replica(internal_url: str, folder: Path, engine: Engine | None = None) -> GenerationRunner:
    family = family_of("sd15")
    local = LocalEngine(
        EngineThread(engine or Engine(family, max_batch=4, max_waiting_per_brand=4)),
        AdapterStore(family, AdapterFiles(folder, 2**30), 2**30),
        lambda ticket: SystemClient(internal_url, ticket, patience=5),
    )
    return GenerationRunner(local, lambda ticket: AsyncSystemClient(internal_url, ticket, patience=5))


@pytest_asyncio.fixture(loop_scope="session")
async def renderer(internal_url, tmp_path) -> AsyncIterator[GenerationRunner]:
    made = replica(internal_url, tmp_path / "adapters")
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="session")
async def other(internal_url, tmp_path) -> AsyncIterator[GenerationRunner]:
    """A second replica."""
    made = replica(internal_url, tmp_path / "others")
    yield made
    await made.close()


@pytest.fixture(scope="module")
def adapter() -> bytes:
    return adapter_bytes(family_of("sd15"), rank=4, seed=1, preset="attention", strength=2.0)


async def told(renderer: GenerationRunner, asked: RenderRequest) -> list[generation.RenderEvent]:
    return [event async for event in renderer.generate(asked)]


def kinds(events: list[generation.RenderEvent]) -> list[str]:
    return [event.kind for event in events if event.kind != "progress"]


def pixels(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype("float32") / 255)


async def test_a_generation_ends_completed_with_its_pictures_stored(fixtures, renderer, make_brand, adapter):
    brand = await make_brand()
    asked = await fixtures.ask(brand, model=await fixtures.publish(brand, adapter), num_images=3)
    events = await told(renderer, asked)
    row = await fixtures.row(brand, asked)
    assert kinds(events) == ["completed"]
    assert (row.status, row.progress, [(image.index, image.seed) for image in row.images]) == (
        "completed",
        100,
        [(0, 5), (1, 6), (2, 7)],
    )


async def test_the_stored_picture_is_the_adapters_own(fixtures, renderer, make_brand, adapter):
    brand = await make_brand()
    asked = await fixtures.ask(brand, model=await fixtures.publish(brand, adapter))
    base = await fixtures.ask(brand)
    await asyncio.gather(told(renderer, asked), told(renderer, base))
    stored = [
        pixels(await fixtures.bytes_of(brand, (await fixtures.row(brand, each)).images[0])) for each in (asked, base)
    ]
    use = AdapterUse(AdapterKey("brand-0", "published"), read_adapter(adapter, family_of("sd15")))
    expected = [await drawn_alone(adapters=(use,)), await drawn_alone()]
    for picture, wanted in zip(stored, expected, strict=True):
        assert (picture - wanted).abs().max() <= 1 / 255
    assert (expected[0] - expected[1]).abs().max() > 0.05


async def drawn_alone(**more) -> torch.Tensor:
    """The same request, drawn by an engine directly."""
    loop = EngineThread(Engine(family_of("sd15"), max_batch=4))
    plain = {"prompt": "a red square", "seed": 5, "num_inference_steps": 2, "negative_prompt": None}
    (picture,) = [
        event for event in await drawn(loop, engine_request("r", **plain, **more)) if isinstance(event, FinishedImage)
    ]
    loop.close()
    return picture.image_CHW.permute(1, 2, 0)


def receipt_in(file: bytes) -> dict[str, object]:
    """The receipt in the file's metadata: a PNG's text, or EXIF's description."""
    opened = Image.open(io.BytesIO(file))
    text = opened.text[RECEIPT_KEY] if opened.format == "PNG" else opened.getexif()[0x010E]
    return dict(json.loads(text))


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_the_receipt_is_in_the_row_and_in_the_file(fixtures, renderer, make_brand, adapter, output_format):
    brand = await make_brand()
    other = adapter_bytes(family_of("sd15"), rank=8, seed=2, preset="attention")
    uses = [
        {"model": await fixtures.publish(brand, data), "scale": scale} for data, scale in ((adapter, 0.5), (other, 1.5))
    ]
    asked = await fixtures.ask(brand, models=uses, num_images=2, sampler="dpm++2m", output_format=output_format)
    await told(renderer, asked)
    row = await fixtures.row(brand, asked)
    for index, image in enumerate(row.images):
        file = await fixtures.bytes_of(brand, image)
        assert receipt_in(file) == image.receipt
        assert (image.content_type, Image.open(io.BytesIO(file)).format.lower()) == (
            f"image/{output_format}",
            output_format,
        )
        facts = {
            "brand_id": brand.id,
            "family": "sd15",
            "adapters": [
                {"sha256": hashlib.sha256(adapter).hexdigest(), "scale": 0.5},
                {"sha256": hashlib.sha256(other).hexdigest(), "scale": 1.5},
            ],
            "base_revision": family_of("sd15").revision,
            "sampler": "dpm++2m",
            "num_inference_steps": 2,
            "guidance_scale": 3.0,
            "seed": 5 + index,
            "width": 64,
            "height": 64,
        }
        assert {name: image.receipt[name] for name in facts} == facts
        assert set(image.receipt["batch_sizes"]) <= {1, 2, 4}
        assert image.receipt["batch_sizes"]
        assert image.receipt["slot_generation"] >= 1


async def test_a_picture_of_the_base_names_no_adapter_and_no_slot(fixtures, renderer, make_brand):
    brand = await make_brand()
    asked = await fixtures.ask(brand)
    await told(renderer, asked)
    (image,) = (await fixtures.row(brand, asked)).images
    assert (image.receipt["adapters"], image.receipt["slot_generation"]) == ([], None)
    assert image.receipt["sampler"]


@pytest.mark.parametrize(("words", "num_cut"), [(5, 0), (60, 1)])
async def test_a_prompt_that_is_longer_than_what_is_read_is_said_to_be(fixtures, renderer, make_brand, words, num_cut):
    brand = await make_brand()
    asked = await fixtures.ask(brand, prompt="red " * words)
    assert (await fixtures.row(brand, asked)).cut is None
    await told(renderer, asked)
    row = await fixtures.row(brand, asked)
    told_cut = [{"field": "prompt", "tokenizer": "tokenizer", "tokens": words + 2, "read": 32}] * num_cut
    assert [each.model_dump() for each in row.cut] == row.images[0].receipt["cut"] == told_cut


@pytest.mark.parametrize(
    "lie",
    [{"brand_id": "globex"}, {"adapters": []}, {"adapters": [{"sha256": "0" * 64, "scale": 1.0}]}],
    ids=["brand", "no adapter", "another adapter"],
)
async def test_a_picture_that_was_not_drawn_as_asked_is_not_kept(fixtures, make_brand, adapter, caplog, lie):
    """Were an engine ever to mix brands up, its own receipt would say so, and the picture would reach nobody."""
    brand = await make_brand()
    asked = await fixtures.ask(brand, model=await fixtures.publish(brand, adapter))
    ticket = brand.ticket(asked.generation_id, "generation")
    honest = receipt_of(brand.id, [(hashlib.sha256(adapter).hexdigest(), 1.0)])
    async with fixtures.db.system_session(ticket) as session:
        await generation_worker.start_generation(session, ticket)

    async def add(receipt: dict[str, object]) -> images.Image:
        async with fixtures.db.system_session(ticket) as session:
            stored = fixtures.store.brand(brand.id)
            added = await generation_worker.add_image(
                session, stored, ticket, 0, 5, fixtures.pictures(1), "image/png", 64, 64, receipt
            )
            return added.image

    with pytest.raises(TicketRefused):
        await add(honest | lie)
    with pytest.raises(InvalidInput, match="lacks sampler"):
        await add({name: said for name, said in honest.items() if name != "sampler"})
    assert (await fixtures.row(brand, asked)).images == []
    assert [record.name for record in caplog.records if record.name == "onbrand.security"]
    assert (await add(honest)).receipt == honest


async def test_a_ticket_of_another_brand_is_refused_before_anything_happens(fixtures, renderer, make_brand, adapter):
    ours, theirs = await make_brand("acme"), await make_brand("globex")
    asked = await fixtures.ask(ours, model=await fixtures.publish(ours, adapter))
    stolen = replace(asked, ticket=theirs.ticket(asked.generation_id, "generation").sign(fixtures.secrets.tickets))
    with pytest.raises(TicketRefused, match="another brand"):
        await told(renderer, stolen)
    assert (await fixtures.row(ours, asked)).status == "pending"


async def test_a_ticket_of_another_generation_or_kind_is_refused(fixtures, renderer, make_brand):
    brand = await make_brand()
    asked, other = await fixtures.ask(brand), await fixtures.ask(brand)
    training_ticket = brand.ticket(asked.generation_id, "training").sign(fixtures.secrets.tickets)
    for token in (other.ticket, training_ticket, "rubbish"):
        with pytest.raises(TicketRefused):
            await told(renderer, replace(asked, ticket=token))


async def test_a_forged_ticket_is_refused_by_the_platform(fixtures, renderer, make_brand):
    brand = await make_brand()
    asked = await fixtures.ask(brand)
    forged = Ticket.issue(brand.id, asked.generation_id, brand.member.user_id, "generation", 600).sign("0" * 64)
    with pytest.raises(TicketRefused):
        await told(renderer, replace(asked, ticket=forged))
    assert (await fixtures.row(brand, asked)).status == "pending"


async def test_another_brands_model_id_with_our_own_ticket_is_not_found(fixtures, renderer, make_brand, adapter):
    """The ingress erred, or someone else speaks to the replica: the platform does not hand out the weights."""
    ours, theirs = await make_brand("acme"), await make_brand("globex")
    await fixtures.publish(theirs, adapter)
    async with fixtures.db.user_session(theirs.member.scope) as session:
        ref = models.adapter_ref((await models.list_models(session, theirs.id)).data[0])
    asked = await fixtures.ask(ours)
    events = await told(renderer, replace(asked, adapters=((replace(ref, brand_id=ours.id), 1.0),)))
    assert kinds(events) == ["failed"]
    row = await fixtures.row(ours, asked)
    assert (row.status, row.error["code"], row.images) == ("failed", "not_found", [])


async def test_a_file_that_is_not_what_the_row_says_fails_the_generation(fixtures, renderer, make_brand, adapter):
    brand = await make_brand()
    asked = await fixtures.ask(brand, model=await fixtures.publish(brand, adapter))
    wrong = replace(asked, adapters=((replace(asked.adapters[0][0], sha256="0" * 64), 1.0),))
    events = await told(renderer, wrong)
    assert (kinds(events), events[-1].data["code"]) == (["failed"], "not_as_published")
    assert (await fixtures.row(brand, asked)).error["message"].startswith("the weights of sd15-lora-v1")


async def test_an_adapter_of_another_family_fails_the_generation(fixtures, renderer, make_brand):
    brand = await make_brand()
    asked = await fixtures.ask(brand)
    ref = AdapterRef(brand.id, "00000000-0000-0000-0000-000000000000", "flux", 1, "0" * 64)
    events = await told(renderer, replace(asked, adapters=((ref, 1.0),)))
    assert events[-1].data["message"] == "flux-lora-v1 is a model of flux, not of sd15"


def altered(data: bytes, change: Callable[[dict[str, torch.Tensor]], None]) -> bytes:
    """An adapter's file with other tensors and the same header."""
    size = int.from_bytes(data[:8], "little")
    state = safetensors.torch.load(data)
    change(state)
    return bytes(safetensors.torch.save(state, json.loads(data[8 : 8 + size])["__metadata__"]))


def rename(state: dict[str, torch.Tensor]) -> None:
    name = next(name for name in state if name.endswith("lora_A.weight"))
    for part in ("lora_A.weight", "lora_B.weight"):
        state[f"unet.nowhere.{part}"] = state.pop(name.replace("lora_A.weight", part))


def widen(state: dict[str, torch.Tensor]) -> None:
    name = next(name for name in state if name.endswith("lora_A.weight"))
    state[name] = torch.cat([state[name], state[name][:, :1]], 1)


def spoil(state: dict[str, torch.Tensor]) -> None:
    next(iter(state.values())).view(-1)[0] = float("nan")


async def swap(fixtures: ServingFixtures, brand, name: str, data: bytes, database, *, row_too: bool = True) -> None:
    """Replace the bytes of a published file, and optionally the hash in its row."""
    async with fixtures.db.user_session(brand.member.scope) as session:
        model = await models.get_model(session, brand.id, name)
    fixtures.store.brand(brand.id).write(model.key, data, "application/octet-stream")
    if row_too:
        with psycopg.connect(database.owner_url) as owner:
            owner.execute(
                "update app.models set sha256 = %s where id = %s", [hashlib.sha256(data).hexdigest(), model.id]
            )


@pytest.mark.parametrize(
    ("change", "row_too", "code", "reason"),
    [
        (spoil, False, "not_as_published", "not those that were published"),
        (rename, True, "adapter_refused", "nowhere"),
        (widen, True, "adapter_refused", "shape"),
        (spoil, True, "adapter_refused", "not finite"),
    ],
    ids=["hash", "keys", "shapes", "nan"],
)
async def test_a_bad_file_is_refused_with_its_reason_and_disturbs_no_slot(
    fixtures, internal_url, tmp_path, make_brand, adapter, database, caplog, change, row_too, code, reason
):
    """Row and file of the brand itself, spoiled behind the platform: logged, failed, and the replica serves on."""
    engine = Engine(family_of("sd15"), num_slots=1, max_batch=4)
    renderer = replica(internal_url, tmp_path / "only", engine)
    good, bad = await make_brand("good"), await make_brand("bad")
    name, spoiled = (
        await fixtures.publish(good, adapter),
        await fixtures.publish(bad, altered(adapter, lambda state: None)),
    )
    first = await fixtures.ask(good, model=name)
    await told(renderer, first)
    held = engine.residency.holdings()
    await swap(fixtures, bad, spoiled, altered(adapter, change), database, row_too=row_too)
    asked = await fixtures.ask(bad, model=spoiled)
    events = await told(renderer, asked)
    row = await fixtures.row(bad, asked)
    assert (kinds(events), row.status, row.error["code"], row.images) == (["failed"], "failed", code, [])
    assert reason in row.error["message"]
    assert [record for record in caplog.records if record.name == "onbrand.security" and reason in record.message]
    assert engine.residency.holdings() == held
    again = await fixtures.ask(good, model=name)
    assert kinds(await told(renderer, again)) == ["completed"]
    ours = [(await fixtures.row(good, each)).images[0].receipt for each in (first, again)]
    assert ours[0]["slot_generation"] == ours[1]["slot_generation"]
    await renderer.close()


async def test_a_refused_publication_is_a_security_event_and_makes_no_model(fixtures, make_brand, adapter, caplog):
    brand = await make_brand()
    with pytest.raises(AdapterRefused, match="not finite"):
        await fixtures.publish(brand, altered(adapter, spoil))
    assert [record for record in caplog.records if record.name == "onbrand.security" and "finite" in record.message]
    async with fixtures.db.user_session(brand.member.scope) as session:
        assert (await models.list_models(session, brand.id)).data == []


async def test_a_model_that_is_deleted_meanwhile_fails_the_generation_and_nobody_elses(
    fixtures, renderer, make_brand, adapter
):
    ours, theirs = await make_brand("acme"), await make_brand("globex")
    lost, kept = await fixtures.publish(ours, adapter), await fixtures.publish(theirs, adapter)
    asked = await fixtures.ask(ours, model=lost)
    ((ref, _),) = (await fixtures.ask(theirs, model=kept)).adapters
    crossed = replace(asked, adapters=((replace(ref, brand_id=ours.id), 1.0),))
    assert (await told(renderer, crossed))[-1].data["code"] == "not_found"
    async with fixtures.db.user_session(ours.admin.scope) as session:
        await models.delete_model(session, fixtures.store.brand(ours.id), ours.id, lost)
    late = await fixtures.ask(ours)
    assert (await told(renderer, replace(late, adapters=asked.adapters)))[-1].data["code"] == "not_found"
    assert kinds(await told(renderer, await fixtures.ask(theirs, model=kept)))[-1] == "completed"


async def test_previews_of_what_is_drawn_are_small_pictures_that_say_nothing_else(fixtures, renderer, make_brand):
    brand = await make_brand()
    assert "preview" not in {event.kind for event in await told(renderer, await fixtures.ask(brand))}
    shown: list[dict[str, object]] = []
    for _ in range(5):  # what colours latents stand for is found out at the first: a picture may be done before
        asked = await fixtures.ask(brand, num_inference_steps=150, preview_every=2)
        async for event in renderer.generate(asked):
            if event.kind == "preview":
                shown.append(event.data)
                renderer.cancel(asked.generation_id)
        if shown:
            break
    assert shown
    for data in shown:
        assert (data["index"], data["num_steps"], data["step"] % 2) == (0, 150, 0)
        head, _, body = data["image"].partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(body)))
        assert (head, picture.format) == ("data:image/jpeg;base64", "JPEG")
        assert max(picture.size) <= 64
        assert not picture.getexif()


def test_who_follows_late_is_told_the_newest_preview_of_each_picture():
    rendering = ActiveGeneration(SimpleNamespace(parameters=SimpleNamespace(num_inference_steps=9)))
    for index, step in ((0, 1), (1, 1), (0, 2), (0, 3)):
        rendering.show(index, step, f"{index}/{step}")
    rendering.tell("completed", {})

    async def follow() -> list[str]:
        return [event.data["image"] async for event in rendering.follow() if event.kind == "preview"]

    assert asyncio.run(follow()) == ["1/1", "0/3"]


async def test_a_cancel_while_the_start_is_reported_is_kept(fixtures, renderer, make_brand, monkeypatch):
    asked = await fixtures.ask(await make_brand(), num_inference_steps=150)
    start = AsyncSystemClient.start_generation

    async def canceled_meanwhile(client: AsyncSystemClient) -> object:
        renderer.cancel(asked.generation_id)
        return await start(client)

    monkeypatch.setattr(AsyncSystemClient, "start_generation", canceled_meanwhile)
    assert kinds(await told(renderer, asked)) == ["canceled"]


async def test_a_drawing_is_watched_by_its_member_and_by_nobody_elses_name(fixtures, renderer, make_brand, caplog):
    ours, theirs = await make_brand("acme"), await make_brand("globex")
    asked = await fixtures.ask(ours, num_inference_steps=150)
    stream = renderer.generate(asked)
    first = await anext(stream)
    assert (first.kind, first.data) == ("progress", {"progress": 0})
    assert renderer.is_drawing(asked.generation_id)
    drawing = renderer._active[asked.generation_id].task
    watching = renderer.watch(asked.generation_id, ours.id, ours.member.user_id)
    assert await anext(watching) == first
    strangers = [(theirs.id, theirs.member.user_id), (theirs.id, ours.member.user_id), (ours.id, ours.admin.user_id)]
    for brand_id, user_id in strangers:
        with pytest.raises(NotFound):
            await anext(renderer.watch(asked.generation_id, brand_id, user_id))
    for brand_id, user_id in strangers:
        named = Ticket.issue(brand_id, asked.generation_id, user_id, "generation", 60).sign("forged" * 10)
        with pytest.raises(NotFound):
            await anext(renderer.generate(replace(asked, ticket=named)))
    events = [record for record in caplog.records if record.name == "onbrand.security"]
    assert len(events) == 2 * len(strangers)
    renderer.cancel(asked.generation_id)
    assert [event async for event in watching] == [event async for event in stream]
    await drawing
    assert not renderer.is_drawing(asked.generation_id)
    with pytest.raises(NotFound):
        await anext(renderer.watch(asked.generation_id, ours.id, ours.member.user_id))
    await stream.aclose()


async def test_the_replica_serves_on_after_a_failure(fixtures, renderer, make_brand):
    brand = await make_brand()
    bad = AdapterRef(brand.id, "00000000-0000-0000-0000-000000000000", "sd15", 1, "0" * 64)
    events = await told(renderer, replace(await fixtures.ask(brand), adapters=((bad, 1.0),)))
    assert kinds(events) == ["failed"]
    assert kinds(await told(renderer, await fixtures.ask(brand)))[-1] == "completed"


async def test_cancel_ends_the_generation_as_canceled(fixtures, renderer, make_brand):
    brand = await make_brand()
    asked = await fixtures.ask(brand, num_inference_steps=150)
    events = []
    async for event in renderer.generate(asked):
        events.append(event)
        renderer.cancel(asked.generation_id)
    assert kinds(events) == ["canceled"]
    assert (await fixtures.row(brand, asked)).status == "canceled"


async def test_a_generation_canceled_before_it_began_is_never_drawn(fixtures, renderer, make_brand):
    brand = await make_brand()
    asked = await fixtures.ask(brand)
    async with fixtures.db.user_session(brand.member.scope) as session:
        await generations.cancel_generation(session, brand.id, asked.generation_id)
    assert kinds(await told(renderer, asked)) == ["canceled"]


async def test_a_generation_is_drawn_to_its_end_though_the_asker_left(fixtures, renderer, make_brand):
    brand = await make_brand()
    asked = await fixtures.ask(brand, num_inference_steps=10)
    stream = renderer.generate(asked)
    await anext(stream)
    await stream.aclose()
    assert kinds(await told(renderer, asked))[-1] == "completed"
    assert (await fixtures.row(brand, asked)).status == "completed"


async def test_asking_twice_draws_once(fixtures, renderer, make_brand):
    brand = await make_brand()
    asked = await fixtures.ask(brand, num_inference_steps=5)
    both = await asyncio.gather(told(renderer, asked), told(renderer, asked))
    assert both[0] == both[1]
    assert len((await fixtures.row(brand, asked)).images) == 1


async def test_what_a_closing_replica_breaks_off_another_one_finishes(fixtures, renderer, other, make_brand):
    brand = await make_brand()
    asked = await fixtures.ask(brand, num_inference_steps=20)
    stream = renderer.generate(asked)
    await anext(stream)
    await renderer.close()
    with pytest.raises(Unavailable) as told_off:
        async for _ in stream:
            pass
    assert told_off.value.fields["elsewhere"]
    assert (await fixtures.row(brand, asked)).status == "running"
    assert kinds(await told(other, asked)) == ["completed"]


async def test_what_an_engine_that_breaks_leaves_another_one_finishes(
    fixtures, renderer, other, make_brand, monkeypatch
):
    """Not only what was under way: who asks this replica now is sent on at once."""
    brand = await make_brand()
    asked, late = await fixtures.ask(brand, num_inference_steps=20), await fixtures.ask(brand)
    stream = renderer.generate(asked)
    await anext(stream)
    monkeypatch.setattr(renderer._engine.thread._engine, "step", lambda: 1 / 0)
    with pytest.raises(Unavailable) as told_off:
        async for _ in stream:
            pass
    assert told_off.value.fields["elsewhere"]
    assert not renderer.is_alive
    with pytest.raises(Unavailable) as told_off:
        await told(renderer, late)
    assert told_off.value.fields["elsewhere"]
    assert [(await fixtures.row(brand, each)).status for each in (asked, late)] == ["running", "pending"]
    for each in (asked, late):
        assert kinds(await told(other, each)) == ["completed"]


async def test_a_brand_that_asks_for_too_much_is_told_when_to_come_back(fixtures, renderer, make_brand):
    brand = await make_brand()
    large = await fixtures.ask(brand, num_images=8, num_inference_steps=100)
    stream = renderer.generate(large)
    await anext(stream)
    with pytest.raises(TooManyRequests, match="this brand") as told_off:
        await told(renderer, await fixtures.ask(brand))
    assert told_off.value.fields["retry_after"] >= 1
    renderer.cancel(large.generation_id)
    assert [event.kind async for event in stream][-1] == "canceled"


async def test_weights_stay_on_disk_for_us_alone_and_are_checked_again(
    fixtures, renderer, make_brand, adapter, tmp_path, caplog
):
    brand = await make_brand()
    name = await fixtures.publish(brand, adapter)
    await told(renderer, await fixtures.ask(brand, model=name))
    folder = tmp_path / "adapters"
    (file,) = folder.glob("*.safetensors")
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert brand.id not in file.name
    file.unlink()
    file.write_bytes(b"tampered")
    ((ref, _),) = (await fixtures.ask(brand, model=name)).adapters
    fetched: list[bytes] = []
    again = AdapterStore(family_of("sd15"), AdapterFiles(folder, 2**30), 2**30)
    again.weights(ref, lambda: fetched.append(adapter) or adapter)
    again.close()
    assert fetched == [adapter]
    assert file.read_bytes() == adapter
    assert [event for event in caplog.records if event.name == "onbrand.security" and ref.model_id in event.message]


async def test_no_log_holds_a_prompt(fixtures, renderer, make_brand, caplog):
    brand = await make_brand()
    caplog.set_level("DEBUG")
    bad = AdapterRef(brand.id, "00000000-0000-0000-0000-000000000000", "sd15", 1, "0" * 64)
    asked = await fixtures.ask(brand, prompt="a very secret word")
    await told(renderer, asked)
    await told(renderer, replace(await fixtures.ask(brand, prompt="a very secret word"), adapters=((bad, 1.0),)))
    assert "secret" not in caplog.text + repr(asked)


def test_the_libraries_do_not_log_the_end_of_a_long_prompt(caplog):
    """diffusers warns with the words that it cuts off: heard before `quiet_libraries`, and not after."""
    library, family, long = logging.getLogger("diffusers"), family_of("sd15"), "a very secret word " * 60
    level = library.level
    library.addHandler(caplog.handler)
    try:
        library.setLevel(logging.WARNING)
        family.pipeline.encode_prompt(long, "cpu", 1, False)
        assert "secret" in caplog.text
        caplog.clear()
        quiet_libraries()
        family.pipeline.encode_prompt(long, "cpu", 1, False)
        family.encode_prompts([long])
        assert "secret" not in caplog.text
    finally:
        library.removeHandler(caplog.handler)
        library.setLevel(level)


async def test_another_brands_ticket_finds_no_generation(fixtures, make_brand):
    """The ticket's claims are what the row policies see."""
    ours, theirs = await make_brand("acme"), await make_brand("globex")
    asked = await fixtures.ask(ours)
    ticket = theirs.ticket(asked.generation_id, "generation")
    with pytest.raises(NotFound):
        async with fixtures.db.system_session(ticket) as session:
            await generation_worker.start_generation(session, ticket)
