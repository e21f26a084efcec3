"""The five steps of a brand through the services, with the real database and a real store."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress

import pytest

from onbrand.brand import Scope
from onbrand.config import Limits, Settings
from onbrand.db.session import Database
from onbrand.errors import Conflict, Forbidden, InvalidInput, NotFound
from onbrand.families.spec import with_family_defaults
from onbrand.services import (
    asset_checks,
    assets,
    brands,
    generation_parameters,
    generation_worker,
    generations,
    images,
    job_validation,
    jobs,
    models,
    publication,
    training_job,
    training_worker,
)
from onbrand.storage.layout import Key, model_metadata
from onbrand.storage.store import ObjectStore
from tests.conftest import MakeUser
from tests.small_adapter import FACTS, safetensors
from tests.stored_assets import store_assets
from tools.harness.receipts import receipt_of

RECOMMENDED = {"sd15": with_family_defaults("sd15", {"resolution": 64, "num_inference_steps": 4})}


class Story:
    """One brand and its workflow. Each method is one request in one transaction."""

    def __init__(self, db: Database, store: ObjectStore, brand, pictures: Callable[..., bytes]) -> None:
        self.db, self.brand, self.pictures = db, brand, pictures
        self.store = store.brand(brand.id)

    async def upload(self, *seeds: int, who=None, **fields) -> list[assets.Asset]:
        person = who or self.brand.member
        files = [asset_checks.Upload(f"{seed}.png", self.pictures(seed), object="logo", **fields) for seed in seeds]
        async with self.db.user_session(person.scope) as session:
            return await store_assets(session, self.store, self.brand.id, person.user_id, files, Limits())

    async def job(self, asset_ids: list[str], **fields) -> training_job.TrainingJob:
        fields = {"name": "first", "model_type": "sd15", "training_config": {"steps": 5}} | fields
        new = job_validation.NewJob(training_asset_ids=asset_ids, **fields)
        async with self.db.user_session(self.brand.member.scope) as session:
            return await jobs.create_job(session, self.brand.id, self.brand.member.user_id, new)

    async def publish(self, job_id: str, seed: int = 0) -> models.Model:
        ticket = self.brand.ticket(job_id)
        async with self.db.system_session(ticket) as session:
            return await publication.publish(session, self.store, ticket, safetensors(seed), FACTS)

    async def model(self) -> models.Model:
        made = await self.upload(*range(1))
        return await self.publish((await self.job([made[0].id])).id)

    async def generate(self, **fields) -> generations.Generation:
        new = generation_parameters.NewGeneration(
            **({"prompt": "photo of [brand] logo", "model_type": "sd15"} | fields)
        )
        async with self.db.user_session(self.brand.member.scope) as session:
            return await generations.create_generation(
                session, self.brand.id, self.brand.member.user_id, new, RECOMMENDED, Limits()
            )

    async def draw(
        self, generation_id: str, index: int = 0, adapters: Iterable[tuple[str, float]] = ()
    ) -> images.Image:
        ticket, picture = self.brand.ticket(generation_id, "generation"), self.pictures(index)
        receipt = receipt_of(self.brand.id, adapters)
        async with self.db.system_session(ticket) as session:
            with suppress(Conflict):  # it has ended already
                await generation_worker.start_generation(session, ticket)
            added = await generation_worker.add_image(
                session, self.store, ticket, index, 7, picture, "image/png", 64, 64, receipt
            )
            return added.image

    def as_user(self, person=None):
        return self.db.user_session((person or self.brand.member).scope)


@pytest.fixture
async def story(db, store, make_brand, pictures) -> Story:
    return Story(db, store, await make_brand(), pictures)


async def test_the_five_steps(story: Story):
    uploaded = await story.upload(1, 2, caption="photo of [brand] logo")
    assert [asset.object_name for asset in uploaded] == [
        f"{story.brand.id}/logo-001.png",
        f"{story.brand.id}/logo-002.png",
    ]
    job = await story.job([asset.id for asset in uploaded], training_config={"steps": 5, "trigger_word": "zorgle"})
    assert (job.status, job.progress, job.provider) == ("pending", 0, "ray")
    ticket = story.brand.ticket(job.id)
    async with story.db.system_session(ticket) as session:
        spec = await training_worker.spec_for_worker(session, ticket)
        assert {asset.caption for asset in spec.assets} == {"photo of zorgle logo"}
        data, content_type = await training_worker.read_asset(session, story.store, spec.assets[0].id)
        assert content_type == "image/png"
        assert data == story.store.read(uploaded[0].key)
    async with story.db.system_session(ticket) as session:
        heard = await training_worker.report(session, ticket, 40, {"step": 2, "loss": 0.5})
        await training_worker.add_sample(session, story.store, ticket, 2, 0, story.pictures(9))
        assert not heard.cancel_requested
    model = await story.publish(job.id)
    assert model.name == "sd15-lora-v1"
    async with story.as_user() as session:
        done = await jobs.get_job(session, story.brand.id, job.id)
        assert (done.status, done.progress) == ("completed", 100)
        assert done.model_url == f"models/{story.brand.id}/sd15-lora-v1.safetensors"
        assert done.sample_images_urls == [f"generated-content/{story.brand.id}/samples/{job.id}/000002-00.png"]
        seen = await jobs.events(session, story.brand.id, job.id)
        assert [event.kind for event in seen] == ["status", "progress", "sample", "status"]
        assert [event.seq for event in seen] == [1, 2, 3, 4]
    drawn = await story.generate(model="sd15-lora-v1", num_images=2, seed=5)
    async with story.as_user() as session:
        request = await generations.render_request(session, drawn, "a ticket")
    assert request.parameters.prompt == "photo of zorgle logo"
    assert request.adapters == ((models.adapter_ref(model), 1.0),)
    assert "zorgle" not in repr(request)
    assert "ticket" not in repr(request)
    async with story.db.system_session(story.brand.ticket(drawn.id, "generation")) as session:
        _, weights = await models.read_weights(session, story.store, story.brand.id, model.id)
        assert weights == safetensors()
    pictures = [await story.draw(drawn.id, index, [(model.sha256, 1.0)]) for index in (0, 1)]
    assert pictures[1].object_name.endswith("-002.png")
    async with story.as_user() as session:
        finished = await generations.get_generation(session, story.brand.id, drawn.id)
    assert finished.status == "completed"
    assert [image.index for image in finished.images] == [0, 1]


async def test_the_job_object_has_the_fields_of_the_specification_and_those_of_the_queue(story: Story):
    job = await story.job([(await story.upload(1))[0].id])
    wanted = (
        "id brand_id user_id name model_type training_config training_asset_ids status progress model_url"
        " sample_images_urls provider provider_job_id created_at started_at completed_at error metrics urls"
    )
    queue = "eta_seconds waiting_for num_ahead attempts retry_of"
    assert set(job.model_dump(mode="json")) == set(f"{wanted} {queue}".split())


async def test_an_upload_with_one_bad_file_stores_nothing(story: Story):
    files = [asset_checks.Upload("good.png", story.pictures(1)), asset_checks.Upload("bad.png", b"not a picture")]
    with pytest.raises(Exception, match=r"bad\.png"):
        async with story.as_user() as session:
            await store_assets(session, story.store, story.brand.id, story.brand.member.user_id, files, Limits())
    assert story.store.list("training-data") == []
    async with story.as_user() as session:
        assert (await assets.list_assets(session, story.brand.id)).data == []


async def test_bytes_go_away_when_the_transaction_does_not_commit(story: Story):
    class Interrupted(Exception):
        pass

    with pytest.raises(Interrupted):  # noqa: PT012
        async with story.as_user() as session:
            files = [asset_checks.Upload("a.png", story.pictures(1), object="logo")]
            await store_assets(session, story.store, story.brand.id, story.brand.member.user_id, files, Limits())
            assert len(story.store.list("training-data")) == 1
            raise Interrupted
    assert story.store.list("training-data") == []


async def test_a_publication_that_breaks_leaves_no_file_no_row_and_the_job_open(story: Story):
    job = await story.job([(await story.upload(1))[0].id])
    ticket = story.brand.ticket(job.id)
    with pytest.raises(RuntimeError):  # noqa: PT012
        async with story.db.system_session(ticket) as session:
            await publication.publish(session, story.store, ticket, safetensors(), FACTS)
            raise RuntimeError
    assert story.store.list("models") == []
    async with story.as_user() as session:
        assert (await jobs.get_job(session, story.brand.id, job.id)).status == "pending"
    assert (await story.publish(job.id)).version == 1


async def test_the_same_picture_twice_is_a_conflict_that_names_it(story: Story):
    await story.upload(1)
    with pytest.raises(Conflict, match=r"1\.png is there already, as logo-001\.png"):
        await story.upload(1)
    with pytest.raises(Conflict, match="same picture"):
        await story.upload(5, 5)


async def test_numbers_are_not_used_again_after_a_deletion(story: Story):
    first = (await story.upload(1))[0]
    async with story.as_user(story.brand.admin) as session:
        await assets.delete_asset(session, story.store, story.brand.id, first.id)
    assert not story.store.exists(first.key)
    assert (await story.upload(2))[0].object_name.endswith("/logo-002.png")


async def test_versions_are_not_used_again_after_a_deletion(story: Story):
    asset = (await story.upload(1))[0]
    first = await story.publish((await story.job([asset.id])).id)
    async with story.as_user(story.brand.admin) as session:
        await models.delete_model(session, story.store, story.brand.id, first.name)
    second = await story.publish((await story.job([asset.id])).id, seed=1)
    assert second.name == "sd15-lora-v2"
    listed = json.loads(story.store.read(model_metadata(story.brand.id)))
    assert [model["name"] for model in listed["models"]] == ["sd15-lora-v2"]


async def test_uploads_at_the_same_time_get_different_names(story: Story):
    import anyio

    names: list[str] = []

    async def one(seed: int) -> None:
        names.extend(asset.object_name for asset in await story.upload(seed))

    async with anyio.create_task_group() as group:
        for seed in range(6):
            group.start_soon(one, seed)
    assert len(set(names)) == 6
    assert sorted(key.name for key in story.store.list("training-data")) == sorted(names)


async def test_publications_at_the_same_time_get_different_versions(story: Story):
    import anyio

    asset = (await story.upload(1))[0]
    ids = [(await story.job([asset.id])).id for _ in range(4)]
    versions: list[int] = []

    async def one(seed: int) -> None:
        versions.append((await story.publish(ids[seed], seed)).version)

    async with anyio.create_task_group() as group:
        for seed in range(4):
            group.start_soon(one, seed)
    assert sorted(versions) == [1, 2, 3, 4]
    listed = json.loads(story.store.read(model_metadata(story.brand.id)))
    assert len(listed["models"]) == 4


async def test_a_publication_sent_again_is_the_same_model(story: Story):
    job = await story.job([(await story.upload(1))[0].id])
    first = await story.publish(job.id)
    assert await story.publish(job.id) == first
    with pytest.raises(Conflict, match="completed already"):
        await story.publish(job.id, seed=1)


async def test_a_caption_gets_a_new_version_and_keeps_the_old(story: Story, owner):
    asset = (await story.upload(1))[0]
    assert asset.caption == "photo of [brand] logo"
    async with story.as_user() as session:
        changed = await assets.set_caption(
            session, story.brand.id, story.brand.member.user_id, asset.id, "a new caption"
        )
    assert (changed.caption, changed.caption_version) == ("a new caption", 2)


@pytest.mark.parametrize(
    ("config", "param"),
    [
        ({"steps": 0}, "training_config.steps"),
        ({"rank": 100_000}, "training_config.rank"),
        ({"learning_rate": float("nan")}, "training_config.learning_rate"),
        ({"speed": 3}, "training_config.speed"),
        ({"resolution": 65}, "training_config.resolution"),
        ({"trigger_word": "<script>"}, "training_config.trigger_word"),
    ],
)
async def test_a_config_out_of_bounds_names_the_field(story: Story, config, param):
    with pytest.raises(InvalidInput) as refused:
        await story.job(["00000000-0000-4000-8000-000000000000"], training_config=config)
    assert refused.value.param == param


async def test_an_unknown_family_is_refused_with_the_known_ones(story: Story):
    with pytest.raises(InvalidInput, match="sd15, sdxl, flux"):
        await story.job(["00000000-0000-4000-8000-000000000000"], model_type="dalle")


async def test_a_canceled_job_can_be_retried_as_a_new_one(story: Story):
    job = await story.job([(await story.upload(1))[0].id])
    ticket = story.brand.ticket(job.id)
    with pytest.raises(Conflict):
        async with story.as_user() as session:
            await jobs.retry(session, story.brand.id, story.brand.member.user_id, job.id)
    async with story.as_user() as session:
        await jobs.request_cancel(session, story.brand.id, job.id)
    async with story.db.system_session(ticket) as session:
        assert (await training_worker.report(session, ticket, 1)).cancel_requested
        await training_worker.canceled(session, ticket)
    async with story.as_user() as session:
        assert (await jobs.request_cancel(session, story.brand.id, job.id)).status == "canceled"
        again = await jobs.retry(session, story.brand.id, story.brand.member.user_id, job.id)
    assert again.id != job.id
    assert (again.status, again.training_asset_ids) == ("pending", job.training_asset_ids)


async def test_a_job_ends_once(story: Story):
    job = await story.job([(await story.upload(1))[0].id])
    ticket = story.brand.ticket(job.id)
    async with story.db.system_session(ticket) as session:
        await training_worker.fail(session, ticket, "worker_lost", "the worker was lost")
    async with story.db.system_session(ticket) as session:
        await training_worker.fail(session, ticket, "worker_lost", "the worker was lost")
    for ending in (lambda s: training_worker.report(s, ticket, 50), lambda s: training_worker.canceled(s, ticket)):
        with pytest.raises(Conflict, match="failed already"):
            async with story.db.system_session(ticket) as session:
                await ending(session)
    with pytest.raises(Conflict):
        async with story.db.system_session(ticket) as session:
            await session.run("update app.lora_training_jobs set status = 'completed' where id = %s", [job.id])


async def test_only_the_owner_renames_and_cancels(story: Story):
    job = await story.job([(await story.upload(1))[0].id])
    for person in (story.brand.member2, story.brand.admin):
        with pytest.raises(Forbidden):
            async with story.as_user(person) as session:
                await jobs.rename(session, story.brand.id, job.id, "mine now")
        with pytest.raises(Forbidden):
            async with story.as_user(person) as session:
                await jobs.request_cancel(session, story.brand.id, job.id)


async def test_an_asset_in_a_job_under_way_cannot_be_deleted(story: Story):
    asset = (await story.upload(1))[0]
    job = await story.job([asset.id])
    with pytest.raises(Conflict, match="has not ended"):
        async with story.as_user(story.brand.admin) as session:
            await assets.delete_asset(session, story.store, story.brand.id, asset.id)
    await story.publish(job.id)
    async with story.as_user(story.brand.admin) as session:
        await assets.delete_asset(session, story.store, story.brand.id, asset.id)


async def test_deleting_a_job_takes_its_samples_and_leaves_its_model(story: Story):
    job = await story.job([(await story.upload(1))[0].id])
    ticket = story.brand.ticket(job.id)
    async with story.db.system_session(ticket) as session:
        await training_worker.add_sample(session, story.store, ticket, 1, 0, story.pictures(3))
    with pytest.raises(Conflict, match="under way"):
        async with story.as_user(story.brand.admin) as session:
            await jobs.delete_job(session, story.store, story.brand.id, job.id)
    model = await story.publish(job.id)
    with pytest.raises(Forbidden):
        async with story.as_user() as session:
            await jobs.delete_job(session, story.store, story.brand.id, job.id)
    async with story.as_user(story.brand.admin) as session:
        await jobs.delete_job(session, story.store, story.brand.id, job.id)
    assert story.store.list("generated-content") == []
    async with story.as_user() as session:
        assert (await models.get_model(session, story.brand.id, model.id)).job_id is None


async def test_deleting_a_model_takes_the_jobs_link_to_it(story: Story):
    job = await story.job([(await story.upload(1))[0].id])
    model = await story.publish(job.id)
    async with story.as_user(story.brand.admin) as session:
        await models.delete_model(session, story.store, story.brand.id, model.id)
    assert not story.store.exists(model.key)
    async with story.as_user() as session:
        left = await jobs.get_job(session, story.brand.id, job.id)
    assert (left.status, left.model_url, left.model_id) == ("completed", None, None)


async def test_weights_that_changed_in_the_store_are_refused(story: Story):
    model = await story.model()
    story.store.write(model.key, safetensors(9), None)
    with pytest.raises(Exception, match="not those that were published"):
        async with story.as_user() as session:
            await models.read_weights(session, story.store, story.brand.id, model.id)


async def test_a_picture_belongs_to_the_member_who_asked(story: Story):
    image = await story.draw((await story.generate()).id)
    for person in (story.brand.member2, story.brand.admin):
        with pytest.raises(Forbidden):
            async with story.as_user(person) as session:
                await images.delete_image(session, story.store, story.brand.id, image.id)
    async with story.as_user() as session:
        await images.delete_image(session, story.store, story.brand.id, image.id)
    assert not story.store.exists(Key("generated-content", image.object_name))


async def test_a_picture_sent_again_is_stored_once(story: Story):
    asked = await story.generate(num_images=2)
    assert await story.draw(asked.id) == await story.draw(asked.id)
    assert await story.draw(asked.id, 1) == await story.draw(asked.id, 1), "also the one that completed it"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"num_images": 99}, "num_images"),
        ({"width": 65}, "width"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": 1e9}, "guidance_scale"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"model_type": "flux"}, "model_type"),
        ({"model_type": "dalle"}, "model_type"),
        ({"seed": -1}, "seed"),
        ({"lora_scale": 50}, "lora_scale"),
    ],
)
async def test_a_generation_out_of_bounds_names_the_field(story: Story, fields, param):
    with pytest.raises(InvalidInput) as refused:
        await story.generate(**fields)
    assert refused.value.param == param


async def test_a_generation_takes_what_the_base_recommends(story: Story):
    made = await story.generate()
    assert (made.width, made.num_inference_steps, made.model) == (64, 4, "sd15")


async def test_lists_go_on_where_their_cursor_says(story: Story):
    await story.upload(*range(5))
    seen: list[str] = []
    cursor = None
    async with story.as_user() as session:
        while True:
            page = await assets.list_assets(session, story.brand.id, 2, cursor)
            seen += [asset.object_name[-7:] for asset in page.data]
            cursor = page.next_cursor
            if not page.has_more:
                break
    assert seen == [f"{number:03d}.png" for number in (5, 4, 3, 2, 1)]


@pytest.mark.parametrize("cursor", ["x", "bm8", "W10", "eyJhIjoxfQ"])
async def test_a_cursor_that_is_not_ours_is_refused(story: Story, cursor):
    with pytest.raises(InvalidInput, match="cursor"):
        async with story.as_user() as session:
            await assets.list_assets(session, story.brand.id, 2, cursor)


async def test_what_is_not_an_id_is_not_found(story: Story):
    async with story.as_user() as session:
        for get in (assets.get_asset, jobs.get_job, models.get_model, images.get_image, generations.get_generation):
            with pytest.raises(NotFound):
                await get(session, story.brand.id, "no-id")


async def test_a_removed_member_is_out_at_once(story: Story):
    from onbrand.services import brands

    asset = (await story.upload(1))[0]
    async with story.as_user(story.brand.admin) as session:
        await brands.remove_member(session, story.brand.id, story.brand.member.user_id)
    with pytest.raises(NotFound):
        async with story.as_user() as session:
            await assets.get_asset(session, story.brand.id, asset.id)


async def test_a_brand_bound_scope_narrows_and_never_widens(story: Story, make_brand):
    other = await make_brand("globex")
    async with story.db.user_session(Scope(story.brand.member.user_id, other.id)) as session:
        assert (await assets.list_assets(session, story.brand.id)).data == []
        assert (await assets.list_assets(session, other.id)).data == []


async def test_recommendations_come_from_the_bases_that_are_folders(settings: Settings):
    assert set(generations.recommended_of(settings)) == set(settings.families)


async def test_a_brand_is_at_home_in_any_region_that_stores_have(db: Database, make_user: MakeUser) -> None:
    person = await make_user()
    for region in ("auto", "fr-par", "nyc3", "garage", "us-east-1-gov", "RegionOne", "a" * 63):
        async with db.user_session(person.scope) as session:
            brand = await brands.create_brand(session, f"acme-{uuid.uuid4().hex[:8]}", region=region)
        assert brand.home_region == region
    for region in ("eu west", "-auto", "../auto", "1234", "a" * 64):
        with pytest.raises(InvalidInput, match="region"):
            async with db.user_session(person.scope) as session:
                await brands.create_brand(session, f"acme-{uuid.uuid4().hex[:8]}", region=region)
