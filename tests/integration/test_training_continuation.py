"""Jobs that start from a model or continue another job's run, that are stopped, or that are refused at submission."""

from __future__ import annotations

import uuid

import pytest

from onbrand.config import Limits
from onbrand.errors import Conflict, DataRefused, Forbidden, InvalidInput, NotFound, TooManyRequests
from onbrand.families.spec import with_family_defaults
from onbrand.internal.training import TrainingSpec
from onbrand.services import (
    assets,
    continuation,
    job_validation,
    jobs,
    models,
    publication,
    training_job,
    training_worker,
)
from onbrand.services.job_validation import Terms
from tests.integration.test_services_workflow import Story
from tests.small_adapter import FACTS, safetensors

TERMS = Terms(recommended={"sd15": with_family_defaults("sd15", {"resolution": 64})})


@pytest.fixture
async def story(db, store, make_brand, pictures) -> Story:
    return Story(db, store, await make_brand("begun"), pictures)


@pytest.fixture
async def asset_ids(story: Story) -> list[str]:
    return [asset.id for asset in await story.upload(1, 2)]


async def spec_of(story: Story, job_id: str) -> TrainingSpec:
    ticket = story.brand.ticket(job_id)
    async with story.db.system_session(ticket) as session:
        return await training_worker.spec_for_worker(session, ticket)


async def read_start(story: Story, job_id: str) -> bytes:
    ticket = story.brand.ticket(job_id)
    async with story.db.system_session(ticket) as session:
        return await continuation.read_start(session, story.store, ticket)


async def end(story: Story, job_id: str) -> None:
    async with story.db.system_session(story.brand.ticket(job_id)) as session:
        await training_worker.fail(session, story.brand.ticket(job_id), "any", "any reason")


async def retry(story: Story, job_id: str, terms: Terms = TERMS) -> training_job.TrainingJob:
    async with story.as_user() as session:
        return await jobs.retry(session, story.brand.id, story.brand.member.user_id, job_id, terms)


async def test_a_job_continues_from_a_model_with_its_rank_targets_and_trigger_word(story: Story, asset_ids):
    first = await story.job(asset_ids, training_config={"steps": 5, "rank": 4, "targets": "strong"})
    model = await story.publish(first.id)
    for named in (model.name, model.id):
        job = await story.job(asset_ids, training_config={"steps": 5, "continue_from": named})
        said = {name: job.training_config[name] for name in ("continue_from", "rank", "targets", "trigger_word")}
        assert said == {"continue_from": model.name, "rank": 4, "targets": "strong", "trigger_word": "zorgle"}
    spec = await spec_of(story, job.id)
    assert spec.start is not None
    assert (spec.start.name, spec.start.sha256, spec.start.base_revision) == (model.name, model.sha256, "tiny")
    assert await read_start(story, job.id) == safetensors()


async def test_a_model_that_is_anothers_or_deleted_is_answered_as_one_that_never_was(
    story: Story, asset_ids, db, store, make_brand, pictures
):
    other = Story(db, store, await make_brand("other"), pictures)
    theirs = await other.model()
    gone = await story.publish((await story.job(asset_ids)).id)
    async with story.as_user(story.brand.admin) as session:
        await models.delete_model(session, story.store, story.brand.id, gone.id)
    told = []
    for named in (theirs.id, theirs.name, gone.id, gone.name, str(uuid.uuid4()), "sd15-lora-v77", "no such"):
        with pytest.raises(NotFound) as missing:
            await story.job(asset_ids, training_config={"continue_from": named})
        told.append((missing.value.message, missing.value.fields))
    assert set(map(str, told)) == {str(("there is no such model", {}))}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"model_type": "flux"}, "training_config.continue_from"),
        ({"training_config": {"rank": 8}}, "training_config.rank"),
        ({"training_config": {"targets": "all"}}, "training_config.targets"),
    ],
)
async def test_what_does_not_fit_the_model_is_refused_by_field(story: Story, asset_ids, options, param):
    first = await story.job(asset_ids, training_config={"targets": "attention"})
    model = await story.publish(first.id)
    config = options.get("training_config", {}) | {"continue_from": model.name}
    with pytest.raises(InvalidInput) as refused:
        await story.job(asset_ids, **(options | {"training_config": config}))
    assert refused.value.param == param


async def test_a_model_deleted_while_its_job_waits_is_told_and_never_replaced_by_nothing(story: Story, asset_ids):
    model = await story.publish((await story.job(asset_ids)).id)
    job = await story.job(asset_ids, training_config={"continue_from": model.name})
    async with story.as_user(story.brand.admin) as session:
        await models.delete_model(session, story.store, story.brand.id, model.id)
    spec = await spec_of(story, job.id)
    assert (spec.start, spec.training_config["continue_from"]) == (None, model.name)
    with pytest.raises(NotFound):
        await read_start(story, job.id)
    await end(story, job.id)
    with pytest.raises(Conflict, match="continued from"):
        await retry(story, job.id)


async def test_a_job_reads_only_the_model_that_it_continues_from(story: Story, asset_ids):
    await story.publish((await story.job(asset_ids)).id)
    plain = await story.job(asset_ids)
    with pytest.raises(NotFound):
        await read_start(story, plain.id)


async def test_a_retry_goes_on_with_the_run_of_the_job_it_retries_and_two_never_write_it_at_once(
    story: Story, asset_ids
):
    job = await story.job(asset_ids)
    assert (await spec_of(story, job.id)).run_id == job.id
    await end(story, job.id)
    first, second = await retry(story, job.id), await retry(story, job.id)
    assert (first.retry_of, second.retry_of) == (job.id, job.id)
    assert (await spec_of(story, first.id)).run_id == job.id
    assert (await spec_of(story, second.id)).run_id == second.id
    await end(story, first.id)
    third = await retry(story, first.id)
    assert ((await spec_of(story, third.id)).run_id, third.retry_of) == (job.id, first.id)


async def test_the_database_lets_one_open_job_write_a_run(story: Story, asset_ids, owner):
    job = await story.job(asset_ids)
    await end(story, job.id)
    again = await retry(story, job.id)
    with pytest.raises(Exception, match="jobs_one_writer"):
        owner.execute(
            "insert into app.lora_training_jobs (brand_id, user_id, name, model_type, run_id)"
            " select brand_id, user_id, name, model_type, run_id from app.lora_training_jobs where id = %s",
            [again.id],
        )


async def test_a_job_that_trains_is_stopped_by_its_owner_and_hears_of_it(story: Story, asset_ids):
    job = await story.job(asset_ids)
    ticket = story.brand.ticket(job.id)

    async def stop(person=None) -> training_job.TrainingJob:
        async with story.as_user(person) as session:
            return await jobs.request_stop(session, story.brand.id, job.id)

    with pytest.raises(Conflict, match="pending"):
        await stop()
    async with story.db.system_session(ticket) as session:
        assert not (await training_worker.report(session, ticket, 1)).stop_requested
    with pytest.raises(Forbidden):
        await stop(story.brand.member2)
    await stop()
    await stop()
    async with story.db.system_session(ticket) as session:
        heard = await training_worker.report(session, ticket, 2)
    assert (heard.stop_requested, heard.cancel_requested) == (True, False)
    async with story.db.system_session(ticket) as session:
        await publication.publish(session, story.store, ticket, safetensors(), FACTS)
    assert (await stop()).status == "completed"


async def create(
    story: Story, asset_ids: list[str], terms: Terms = TERMS, **config: object
) -> training_job.TrainingJob:
    new = job_validation.NewJob(name="a", model_type="sd15", training_config=config, training_asset_ids=asset_ids)
    async with story.as_user() as session:
        return await jobs.create_job(session, story.brand.id, story.brand.member.user_id, new, terms)


async def test_what_the_rows_say_against_a_job_is_refused_before_it_is_one(story: Story, asset_ids):
    async with story.as_user() as session:
        await assets.set_caption(session, story.brand.id, story.brand.member.user_id, asset_ids[0], "a wall")
    with pytest.raises(DataRefused) as refused:
        await create(story, asset_ids)
    assert [(found["code"], found["asset_id"]) for found in refused.value.fields["findings"]] == [
        ("no_trigger", asset_ids[0])
    ]
    assert refused.value.param == "training_asset_ids"
    with pytest.raises(DataRefused, match="64 x 64 pixels"):
        await create(story, asset_ids[1:], resolution=512)
    await create(story, asset_ids[1:])


@pytest.mark.parametrize(
    ("config", "param"),
    [
        ({"num_workers": 5}, "training_config.num_workers"),
        ({"accumulation": 3}, "training_config.accumulation"),
    ],
)
async def test_a_config_that_contradicts_the_bases_advice_is_refused_at_the_call(
    story: Story, asset_ids, config, param
):
    with pytest.raises(InvalidInput) as refused:
        await create(story, asset_ids, **config)
    assert refused.value.param == param


async def test_a_base_that_is_not_served_is_refused_at_the_call(story: Story, asset_ids):
    with pytest.raises(InvalidInput, match="served: flux") as refused:
        await create(story, asset_ids, Terms(recommended={"flux": with_family_defaults("flux", {})}))
    assert refused.value.param == "model_type"


async def test_retries_count_among_a_brands_open_jobs(story: Story, asset_ids):
    job = await story.job(asset_ids)
    await end(story, job.id)
    one = Terms(TERMS.recommended, Limits(open_trainings=1))
    await retry(story, job.id, one)
    with pytest.raises(TooManyRequests, match="1 training jobs"):
        await retry(story, job.id, one)
