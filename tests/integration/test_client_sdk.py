"""The SDK and the unchanged `openai` client with the app behind uvicorn."""

from __future__ import annotations

import asyncio
import base64
import io
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

import onbrand.client as sdk
from onbrand.brand import Ticket
from onbrand.errors import BaseModelRefused, EngineLost, ModelGone, NotAsPublished, OnbrandError, TicketRefused
from tests.conftest import PASSWORD, BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform, weights


@pytest.fixture(scope="module")
async def acme(platform: Platform, make_brand: MakeBrand, pictures: Any) -> BrandOfPeople:
    """A brand with one model, sd15-lora-v1."""
    brand = await make_brand("acme")
    await platform.train(brand, pictures(1))
    return brand


class Clients:
    """Creates clients of the platform, and closes them all."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._open = ExitStack()

    def sdk(self, token: str | Any = None) -> sdk.Onbrand:
        held = self._platform.token(token) if hasattr(token, "user_id") else token
        return self._open.enter_context(sdk.Onbrand(self._platform.url, held, max_retries=0))

    def openai(self, person: Any, brand_id: str | None = None) -> openai.OpenAI:
        key = self._platform.token(person, brand_id)
        client = openai.OpenAI(base_url=f"{self._platform.url}/v1", api_key=key, max_retries=0, timeout=30)
        return self._open.enter_context(client)

    def close(self) -> None:
        self._open.close()


@pytest.fixture
def clients(platform: Platform) -> Iterator[Clients]:
    made = Clients(platform)
    yield made
    made.close()


async def test_from_signing_up_to_a_picture(
    clients: Clients, platform: Platform, pictures: Any, tmp_path: Path
) -> None:
    def before_training() -> tuple[sdk.Onbrand, str, sdk.TrainingJob]:
        client = clients.sdk()
        email = f"ada-{uuid.uuid4().hex[:8]}@example.com"
        client.users.create(email, PASSWORD)
        client.log_in(email, PASSWORD)
        client.brands.create(f"five-{uuid.uuid4().hex[:8]}", "Five Steps")
        brand = client.get_user_brand()
        (tmp_path / "a.png").write_bytes(pictures(1))
        files = [tmp_path / "a.png", ("b.png", pictures(2)), io.BytesIO(pictures(3))]
        assets = client.upload_training_images(brand, files, "photo of [brand] logo", object="logo")
        assert [asset.caption for asset in assets] == ["photo of [brand] logo"] * 3
        job = client.create_training_job(brand, "sd15", name="first", config={"steps": 10, "trigger_word": "zilgo"})
        assert set(job.training_asset_ids) == {asset.id for asset in assets}
        return client, client.users.me().id, job

    def after_training(client: sdk.Onbrand, job: sdk.TrainingJob) -> None:
        seen: list[int] = []
        job = job.wait(lambda now: seen.append(now.progress), timeout=20)
        assert (job.status, seen[-1]) == ("completed", 100)
        model = job.model()
        assert model.download(tmp_path).read_bytes() == weights("five")
        assert [event.kind for event in job.events()][-1] == "status"
        generation = client.generate_image(job.brand_id, "photo of [brand]", model=model, num_images=2, seed=3)
        assert [image.seed for image in generation.images] == [3, 4]
        assert generation.images[0].download(tmp_path / "picture.png").read_bytes() == generation.images[0].read()
        assert Image.open(io.BytesIO(generation.images[1].read())).size == (64, 64)
        assert len(list(client.images.list(job.brand_id))) == 2

    client, user_id, job = await asyncio.to_thread(before_training)
    ticket = Ticket.issue(job.brand_id, job.id, user_id, "training", 60)
    async with platform.system(ticket) as worker:
        await worker.report(50)
        await worker.publish(weights("five"), {"rank": 4, "trigger_word": "zilgo", "base_revision": "r"})
    await asyncio.to_thread(after_training, client, job)


async def test_what_a_generation_asks_for_comes_back_and_its_previews_are_events(
    clients: Clients, acme: BrandOfPeople
) -> None:
    def watch() -> None:
        client = clients.sdk(acme.member)
        options: dict[str, Any] = {"sampler": "euler", "exclusive": True, "preview_every": 2, "wait": False}
        options |= {"quality": "low", "output_format": "webp", "output_compression": 60}
        uses = [{"model": "sd15-lora-v1", "scale": 0.5}]
        made = client.generate_image(acme.id, "[hang]", models=uses, **options)
        assert [(use.model, use.scale) for use in made.models] == [("sd15-lora-v1", 0.5)]
        assert (made.sampler, made.exclusive, made.preview_every, made.output_compression) == ("euler", True, 2, 60)
        seen = []
        for event in made.events():
            seen.append(event.kind)
            if event.kind == "preview":
                assert event.data["image"].startswith("data:image/jpeg;base64,")
                made.cancel()
        assert "preview" in seen
        assert made.refresh().status == "canceled"

    await asyncio.to_thread(watch)


async def test_a_failed_job_raises_its_reason(clients: Clients, platform: Platform, acme: BrandOfPeople) -> None:
    client = clients.sdk(acme.member)
    job = await asyncio.to_thread(client.create_training_job, acme.id, "sd15", name="bad")
    async with platform.system(acme.ticket(job.id)) as worker:
        await worker.fail("training_failed", "the loss became NaN at step 3")
    with pytest.raises(sdk.JobFailed, match="NaN at step 3"):
        await asyncio.to_thread(job.wait)


async def test_refusals_are_typed_and_name_the_field(clients: Clients, platform: Platform, acme: BrandOfPeople) -> None:
    def try_them() -> None:
        client = clients.sdk(acme.member)
        with pytest.raises(sdk.InvalidInput) as caught:
            client.create_training_job(acme.id, "sd15", config={"rank": 10_000})
        assert caught.value.param == "training_config.rank"
        with pytest.raises(sdk.NotFound):
            client.models.get("globex", "sd15-lora-v1")
        with pytest.raises(sdk.RoleTooLow):
            client.assets.delete(acme.id, next(client.assets.list(acme.id)).id)
        with pytest.raises(sdk.UnsupportedMedia, match=r"notes\.txt"):
            client.upload_training_images(acme.id, [("notes.txt", b"not a picture")])
        with pytest.raises(sdk.NotLoggedIn):
            clients.sdk("nonsense").users.me()

    await asyncio.to_thread(try_them)


async def test_progress_is_told_and_a_generation_can_be_canceled(
    clients: Clients, platform: Platform, acme: BrandOfPeople
) -> None:
    def draw() -> None:
        client = clients.sdk(acme.member)
        seen: list[str] = []
        client.generate_image(acme.id, "p", model_type="sd15", progress=lambda now: seen.append(now.status))
        assert seen[-1] == "completed"
        hanging = client.generate_image(acme.id, "[hang]", model_type="sd15", wait=False)
        hanging.cancel()
        with pytest.raises(sdk.JobFailed, match="canceled"):
            hanging.wait(timeout=10)

    await asyncio.to_thread(draw)


async def test_openai_lists_a_brands_models(clients: Clients, platform: Platform, acme: BrandOfPeople) -> None:
    def ids(brand_id: str | None) -> list[str]:
        return [model.id for model in clients.openai(acme.member, brand_id).models.list()]

    assert f"{acme.id}/sd15-lora-v1" in await asyncio.to_thread(ids, None)
    assert "sd15-lora-v1" in await asyncio.to_thread(ids, acme.id)
    found = await asyncio.to_thread(clients.openai(acme.member).models.retrieve, f"{acme.id}/sd15-lora-v1")
    assert (found.object, found.owned_by) == ("model", acme.id)


@pytest.mark.parametrize("bound", [False, True], ids=["brand/model", "model"])
async def test_openai_draws_a_picture(clients: Clients, platform: Platform, acme: BrandOfPeople, bound: bool) -> None:
    client = clients.openai(acme.member, acme.id if bound else None)
    model = "sd15-lora-v1" if bound else f"{acme.id}/sd15-lora-v1"
    drawn = await asyncio.to_thread(
        client.images.generate,
        model=model,
        prompt="photo of [brand] logo",
        n=2,
        size="64x64",
        response_format="b64_json",
        output_format="jpeg",
        extra_body={"seed": 5, "negative_prompt": "blur"},
    )
    pictures = [Image.open(io.BytesIO(base64.b64decode(data.b64_json or ""))) for data in drawn.data or []]
    assert [(picture.format, picture.size) for picture in pictures] == [("JPEG", (64, 64))] * 2
    assert platform.generator.seen[-1].parameters.prompt == f"photo of {acme.id} mark logo"


async def test_openai_gets_links_unless_told_otherwise(
    clients: Clients, platform: Platform, acme: BrandOfPeople
) -> None:
    client = clients.openai(acme.member)
    drawn = await asyncio.to_thread(client.images.generate, model=f"{acme.id}/sd15", prompt="p")
    url = (drawn.data or [])[0].url
    fetched = await asyncio.to_thread(clients.sdk(acme.member).fetch, str(url))
    assert Image.open(io.BytesIO(fetched)).format == "PNG"


@pytest.mark.parametrize(
    ("change", "kind", "param"),
    [
        ({"model": "nobrand"}, openai.UnprocessableEntityError, "model"),
        ({"model": "globex/sd15-lora-v1"}, openai.NotFoundError, None),
        ({"size": "big"}, openai.UnprocessableEntityError, "size"),
        ({"size": "63x64"}, openai.UnprocessableEntityError, "size"),
        ({"n": 99}, openai.UnprocessableEntityError, "n"),
        ({"extra_body": {"colour": "red"}}, openai.UnprocessableEntityError, "colour"),
        ({"prompt": "[break]"}, openai.InternalServerError, None),
    ],
)
async def test_openai_understands_refusals(
    clients: Clients, acme: BrandOfPeople, change: Any, kind: type[openai.APIStatusError], param: str | None
) -> None:
    arguments = {"model": f"{acme.id}/sd15-lora-v1", "prompt": "p"} | change
    with pytest.raises(kind) as caught:
        await asyncio.to_thread(lambda: clients.openai(acme.member).images.generate(**arguments))
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("problem", "kind", "may_retry"),
    [
        (ModelGone("there is no such model any more"), openai.NotFoundError, False),
        (NotAsPublished("the weights are not those that were published"), openai.UnprocessableEntityError, False),
        (EngineLost("it killed three engines"), openai.InternalServerError, False),
        (BaseModelRefused("the base is not there"), openai.InternalServerError, True),
        (TicketRefused("a ticket of another"), openai.InternalServerError, False),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
async def test_openai_hears_what_ended_a_generation(
    clients: Clients, platform: Platform, acme: BrandOfPeople, problem: OnbrandError, kind: Any, may_retry: bool
) -> None:
    platform.generator.refusals = [problem]
    with pytest.raises(kind, match=problem.message) as caught:
        await asyncio.to_thread(clients.openai(acme.member).images.generate, model=f"{acme.id}/sd15", prompt="p")
    assert (caught.value.response.headers.get("x-should-retry") != "false") == may_retry


async def test_openai_hears_of_a_cancel_and_does_not_ask_again(
    clients: Clients, platform: Platform, acme: BrandOfPeople
) -> None:
    client = clients.openai(acme.member).with_options(max_retries=2)
    num_asked = len(platform.generator.seen)
    asked = asyncio.create_task(asyncio.to_thread(client.images.generate, model=f"{acme.id}/sd15", prompt="[hang]"))
    while len(platform.generator.seen) == num_asked:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    async with platform.client(acme.member) as other:
        path = f"/v1/brands/{acme.id}/generations/{platform.generator.seen[-1].generation_id}"
        await other.post(f"{path}/cancel")
    with pytest.raises(openai.ConflictError, match="canceled"):
        await asked
    assert len(platform.generator.seen) == num_asked + 1
