"""Jobs become published adapters, whatever process fails: real Ray, database, store and internal routes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import ray
import safetensors.torch
import torch
from ray.job_submission import JobSubmissionClient

from onbrand.brand import Ticket
from onbrand.config import Settings
from onbrand.db.session import Database
from onbrand.families.lora_kohya import kohya_file
from onbrand.secrets_file import Secrets
from onbrand.services import assets, imports, logs
from onbrand.storage.store import ObjectStore
from onbrand.training.dispatch.providers.ray import job_environment, submission_id
from onbrand.training.dispatch.submission import manual_submission
from onbrand.training.dispatch.tickets import ticket_folder
from tests.integration.training_cluster import (
    CONFIG,
    Cluster,
    Owner,
    is_completed,
    is_past_a_checkpoint,
    running_cluster,
)
from tests.integration.training_s3 import CANARY, PREFIX, SECRET_VARIABLES, objects_of, runs_on_s3, secrets_seen_by
from tools.harness.tiny_families import adapter_bytes, family_of

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    settings: Settings,
    secrets: Secrets,
    db: Database,
    store: ObjectStore,
) -> AsyncIterator[Cluster]:
    """Runs on S3 (acceptance's are in a folder); the platform's environment is full of secrets as it starts Ray."""
    changes = runs_on_s3(request, settings)
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRET_VARIABLES:
            patch.setenv(name, f"{CANARY}-{name}")
        folder = tmp_path_factory.mktemp("cluster")
        async with running_cluster(folder, settings, secrets, db, store, **changes) as running:
            yield running


@pytest_asyncio.fixture(loop_scope="session")
async def owner(cluster: Cluster, make_brand, pictures) -> Owner:
    return await Owner.with_pictures(cluster, await make_brand("trained"), pictures)


async def test_whatever_dies_and_however_many_share_the_work_the_adapter_has_the_same_bits(cluster, owner, secrets):
    """One test, for the runs share the machine: first the worker killed, then the driver; two workers, undisturbed.

    (One worker, undisturbed, against two: `test_training_trainer`.)
    """
    job_ids = [await owner.create(), await owner.create(num_workers=2)]
    killed, _ = job_ids
    await owner.until(killed, is_past_a_checkpoint)
    assert len(cluster.processes("ray::")) >= 2
    assert secrets_seen_by(cluster, secrets) == {}
    os.kill(await cluster.worker_of(killed), signal.SIGKILL)
    job = await owner.until(killed, lambda job: "resumed_at_step" in job.metrics)
    first = job.metrics["resumed_at_step"]
    assert (job.provider_job_id, first >= CONFIG["checkpoint_every"]) == (submission_id(killed, 1), True)
    await owner.until(killed, lambda job: job.metrics["step"] > first + 1.5 * CONFIG["checkpoint_every"])
    for pid in cluster.processes(f"--job {killed}"):
        os.kill(pid, signal.SIGKILL)
    done = [await owner.until(job_id, is_completed) for job_id in job_ids]
    assert [job.metrics.get("resumed_at_step", 0) > first for job in done] == [True, False]
    assert [job.provider_job_id for job in done] == [
        submission_id(job_id, 2 if job_id == killed else 1) for job_id in job_ids
    ]
    one, other = [await owner.adapter(job) for job in done]
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    names = {f"models/{owner.brand_id}/sd15-lora-v{number}.safetensors" for number in (1, 2)}
    assert {job.model_url for job in done} == names
    assert all(len(job.sample_images_urls) == 2 + 2 * 2 for job in done), "two of the base, two twice of the adapter"
    if cluster.settings.run_storage.startswith("s3:"):
        keys = await asyncio.to_thread(objects_of, cluster)
        assert any(
            key.startswith(f"{PREFIX}/{owner.brand_id}/{killed}/") and key.endswith("state.safetensors") for key in keys
        )
        runs = tuple(f"{PREFIX}/{owner.brand_id}/{job_id}/" for job_id in job_ids)
        assert [key for key in keys if not key.startswith(runs) or key.endswith("ticket")] == []


async def test_a_task_of_ray_finds_no_secret_in_its_environment(cluster):
    @ray.remote(num_cpus=0)
    def environment() -> str:
        return Path("/proc/self/environ").read_bytes().decode()

    seen = await asyncio.to_thread(ray.get, environment.remote())
    assert "RAY_AUTH_MODE" in seen
    assert CANARY not in seen
    assert not cluster.settings.s3_secret_key or cluster.settings.s3_secret_key not in seen


@pytest.mark.long
async def test_a_run_out_of_memory_goes_on_from_its_checkpoint_one_step_more_thrifty_and_says_so(cluster, owner):
    """With as many workers as there is room for, up to two, which all go the same way. See `oom_injection/`."""
    job_id = await owner.create(sample_every=49, num_workers=[1, 2])
    job = await owner.until(job_id, is_completed)
    assert job.metrics["memory"] == {"way": "1 row at a time", "steps_down": 1}
    assert job.metrics["resumed_at_step"] == CONFIG["checkpoint_every"]
    assert job.provider_job_id == submission_id(job_id, 1)
    async with cluster.db.user_session(owner.scope) as session:
        said = [line.code for line in await logs.lines_of(session, owner.brand_id, job_id, 0, 100)]
    assert said.index("out_of_memory") < said.index("resumed") < said.index("trained")


async def test_a_long_job_is_there_once_shows_no_secret_can_be_canceled_retried_and_stopped(cluster, owner, secrets):
    """One test, for one job is enough for all. An engineer who submits a job that runs already is refused."""
    job_id = await owner.create(steps=5000)
    job = await owner.until(job_id, lambda job: job.provider_job_id is not None)
    second = await asyncio.to_thread(submitted_by_hand, cluster, owner.brand_id, job_id)
    await owner.until(job_id, lambda job: job.status == "training" and is_past_a_checkpoint(job))
    told = str(await asyncio.to_thread(jobs_of_ray().list_jobs))
    assert job_id in told
    assert not any(secret in told for secret in (secrets.tickets, secrets.tokens, secrets.links, "photo of", "eyJ"))
    assert await asyncio.to_thread(cluster.provider.status, second) == "failed"
    assert f"is run as {submission_id(job_id, 1)}" in await asyncio.to_thread(jobs_of_ray().get_job_logs, second)
    await owner.cancel(job_id)
    job = await owner.until(job_id, lambda job: job.status == "canceled")
    assert job.model_url is None

    again = await owner.retry(job_id)
    ticket = Ticket.issue(owner.brand_id, again, owner.user_id, "training", 60)
    job = await owner.until(again, lambda job: job.provider_job_id is not None)
    assert await asyncio.to_thread(cluster.provider.submit, ticket, 1) == job.provider_job_id
    job = await owner.until(again, lambda job: "resumed_at_step" in job.metrics)
    assert job.metrics["resumed_at_step"] >= CONFIG["checkpoint_every"]
    await owner.stop(again)
    job = await owner.until(again, is_completed)
    assert CONFIG["checkpoint_every"] <= job.metrics["step"] < 5000
    assert "resumed" in str(await owner.events(again))


@pytest.mark.long
async def test_a_job_that_an_engineer_submits_waits_for_its_turn_and_is_then_that_submission(cluster, owner):
    """It ends at its pictures, which is enough to see that it was read."""
    async with cluster.db.user_session(owner.scope) as session:
        await assets.set_caption(session, owner.brand_id, owner.user_id, owner.asset_ids[0], "a wall")
    async with cluster.holding_jobs():
        job_id = await owner.create()
        submission = await asyncio.to_thread(submitted_by_hand, cluster, owner.brand_id, job_id)
        await until_it_asks(cluster, owner.brand_id, job_id, submission)
        waiting = await owner.job(job_id)
    assert (waiting.status, waiting.provider_job_id, waiting.waiting_for) == ("pending", None, "operator")
    job = await owner.until(job_id, lambda job: job.status == "failed")
    assert (job.error["code"], job.provider_job_id, job.attempts) == ("data_refused", submission, 1)
    assert await asyncio.to_thread(cluster.provider.status, submission_id(job_id, 1)) == "lost"


def jobs_of_ray() -> JobSubmissionClient:
    return JobSubmissionClient(ray.get_runtime_context().gcs_address)


def submitted_by_hand(cluster: Cluster, brand_id: str, job_id: str) -> str:
    """Run `ray job submit -- python -m onbrand.training.job ...` on a node with the platform's settings."""
    entrypoint = f"{sys.executable} -m onbrand.training.job --brand {brand_id} --job {job_id}"
    env = {"env_vars": job_environment(cluster.settings)}
    return str(jobs_of_ray().submit_job(entrypoint=entrypoint, runtime_env=env))


async def until_it_asks(cluster: Cluster, brand_id: str, job_id: str, submission: str) -> None:
    async with asyncio.timeout(120):
        while manual_submission(ticket_folder(cluster.settings, brand_id, job_id)) != submission:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.2)


async def test_a_job_canceled_before_it_began_never_starts(cluster, owner):
    job_id = await owner.create()
    await owner.cancel(job_id)
    job = await owner.until(job_id, lambda job: job.status == "canceled", seconds=60)
    assert job.progress == 0


async def test_a_config_that_contradicts_the_bases_advice_fails_the_job_with_the_fields_name(cluster, owner):
    job_id = await owner.create(batch_size=None, num_workers=3)
    job = await owner.until(job_id, lambda job: job.status == "failed")
    assert job.error["code"] == "invalid_input"
    assert "num_workers" in job.error["message"]


async def test_data_that_is_not_fit_ends_a_job_before_it_trains_and_a_file_is_imported_without_training(cluster, owner):
    """One test, for both are short, and what they share is the cluster."""
    store = cluster.store.brand(owner.brand_id)
    kohya = b"".join(kohya_file(adapter_bytes(family_of("sd15"), 2, 0, "attention"), "sd15"))
    new = imports.NewImport(model_type="sd15", trigger_word="zilgo")
    async with cluster.db.user_session(owner.scope) as session:
        await assets.set_caption(session, owner.brand_id, owner.user_id, owner.asset_ids[0], "a wall")
        whose = (session, store, owner.brand_id, owner.user_id)
        importing = (await imports.create_import(*whose, new, kohya, ["sd15"])).id
    refused = await owner.until(await owner.create(), lambda job: job.status == "failed")
    assert refused.error["code"] == "data_refused"
    assert "without the trigger word" in refused.error["message"]
    assert "no_trigger" in [finding["code"] for finding in refused.metrics["findings"]]
    assert "step" not in refused.metrics
    done = await owner.until(importing, is_completed)
    adapter = await owner.adapter(done)
    assert len(adapter) == len(safetensors.torch.load(kohya)) * 2 // 3  # kohya's has an alpha for each pair
