"""Rows become trained, published adapters, whatever dies on the way: real Ray, database, store and internal routes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import safetensors.torch
import torch
import uvicorn
from ray._private.authentication_test_utils import reset_auth_token_state

from onbrand.app import create_system_app
from onbrand.config import Secrets, Settings
from onbrand.db.session import Doors
from onbrand.keeper import descendants
from onbrand.rayhead import RayHead, free_ports
from onbrand.services import assets, jobs, models
from onbrand.storage.store import ObjectStore
from onbrand.training.dispatcher import Dispatcher
from onbrand.training.providers.ray import RayProvider, submission_id
from tests.unit.training_bases import base_of

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

NUM_PICTURES = 5
CONFIG = {"steps": 120, "batch_size": 4, "rank": 2, "resolution": 64, "targets": "attention", "checkpoint_every": 20}


@dataclass
class Cluster:
    """A private Ray with a dispatcher and the internal routes beside it."""

    settings: Settings
    doors: Doors
    store: ObjectStore
    provider: RayProvider

    def processes(self, words: str) -> list[int]:
        """Processes of this cluster whose command line holds `words`."""
        return [pid for pid in descendants(os.getpid()) if words in _command_line(pid)]


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory, settings: Settings, secrets: Secrets, doors: Doors, store: ObjectStore
) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    [port] = free_ports(1)
    known = settings.model_copy(
        update={
            "data_dir": folder,
            "run_storage": str(folder / "runs"),
            "internal_url": f"http://127.0.0.1:{port}",
            "bases": {"sd15": str(base_of("sd15"))},
            "device": "cpu",
        }
    )
    before = dict(os.environ)
    ray_head = RayHead(folder, {"OMP_NUM_THREADS": "1"})
    server = uvicorn.Server(
        uvicorn.Config(create_system_app(known, secrets, doors, store), port=port, log_level="error")
    )
    try:
        ray_head.launch()
        reset_auth_token_state()  # Ray was imported before this cluster had a token
        await asyncio.to_thread(ray_head.connect)
        provider = RayProvider(known)
        dispatcher = Dispatcher(known, secrets, doors, [provider], max_running=2, tick_seconds=0.3)
        async with _serving(server), _running(dispatcher.run()):
            yield Cluster(known, doors, store, provider)
    finally:
        await asyncio.to_thread(ray_head.stop)
        os.environ.clear()
        os.environ.update(before)
        reset_auth_token_state()


@contextlib.asynccontextmanager
async def _serving(server: uvicorn.Server) -> AsyncIterator[None]:
    task = asyncio.ensure_future(server.serve())
    try:
        yield
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def _running(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@dataclass
class Owner:
    """A member of a brand with pictures, and what they do."""

    cluster: Cluster
    brand_id: str
    user_id: str
    asset_ids: list[str]
    scope: object

    async def create(self, **config: object) -> str:
        new = jobs.NewJob(
            name="a job", model_type="sd15", training_config=CONFIG | config, training_asset_ids=self.asset_ids
        )
        async with self.cluster.doors.user_session(self.scope) as session:
            return (await jobs.create_job(session, self.brand_id, self.user_id, new)).id

    async def job(self, job_id: str) -> jobs.TrainingJob:
        async with self.cluster.doors.user_session(self.scope) as session:
            return await jobs.get_job(session, self.brand_id, job_id)

    async def cancel(self, job_id: str) -> None:
        async with self.cluster.doors.user_session(self.scope) as session:
            await jobs.request_cancel(session, self.brand_id, job_id)

    async def until(self, job_id: str, condition: Callable[[jobs.TrainingJob], bool], seconds: float = 240):
        """The job once `condition` holds of it; fails the test when the job ended otherwise or time is up."""
        end = time.monotonic() + seconds
        while not condition(job := await self.job(job_id)):
            assert job.status in ("pending", "training"), f"{job.status}: {job.error}"
            assert time.monotonic() < end, f"{job.status} at {job.progress} %: {job.metrics}"
            await asyncio.sleep(0.2)
        return job

    async def adapter(self, job: jobs.TrainingJob) -> dict[str, torch.Tensor]:
        """The published tensors."""
        async with self.cluster.doors.user_session(self.scope) as session:
            model = await models.get_model(session, self.brand_id, job.model_id)
            return safetensors.torch.load(self.cluster.store.brand(self.brand_id).read(model.key))


@pytest_asyncio.fixture(loop_scope="session")
async def owner(cluster: Cluster, make_brand, pictures) -> Owner:
    brand = await make_brand("trained")
    files = [assets.Upload(f"{n}.png", pictures(n), f"photo of [brand] logo {n}") for n in range(NUM_PICTURES)]
    scope, store = brand.member.scope, cluster.store.brand(brand.id)
    async with cluster.doors.user_session(scope) as session:
        stored = await assets.upload(session, store, brand.id, scope.user_id, files, cluster.settings.limits)
    return Owner(cluster, brand.id, scope.user_id, [asset.id for asset in stored], scope)


def is_completed(job: jobs.TrainingJob) -> bool:
    return job.status == "completed"


def is_past_a_checkpoint(job: jobs.TrainingJob) -> bool:
    return job.metrics.get("step", 0) > 1.5 * CONFIG["checkpoint_every"]


async def test_a_killed_worker_costs_time_and_not_a_single_bit(cluster, owner):
    killed, unbroken = await owner.create(), await owner.create()
    await owner.until(killed, is_past_a_checkpoint)
    victims = [pid for pid in cluster.processes("RayTrainWorker") if killed in _run_of(cluster, pid)]
    os.kill((victims or cluster.processes("RayTrainWorker"))[0], signal.SIGKILL)
    one, other = await owner.until(killed, is_completed), await owner.until(unbroken, is_completed)
    assert sorted([bool(one.metrics.get("resumed_at_step")), bool(other.metrics.get("resumed_at_step"))]) == [
        False,
        True,
    ]
    first, second = await owner.adapter(one), await owner.adapter(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert len(one.sample_images_urls) == 4
    assert {one.model_url, other.model_url} == {f"models/{owner.brand_id}/sd15-lora-v{n}.safetensors" for n in (1, 2)}


def _run_of(cluster: Cluster, pid: int) -> str:
    """The working folder of a process: Ray Train puts each worker into its own run's."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd")
    return ""


async def test_a_killed_driver_is_started_again_and_resumes(cluster, owner):
    job_id = await owner.create()
    await owner.until(job_id, is_past_a_checkpoint)
    for pid in cluster.processes(f"--job {job_id}"):
        os.kill(pid, signal.SIGKILL)
    job = await owner.until(job_id, is_completed)
    assert job.provider_job_id == submission_id(job_id, 2)
    assert job.metrics["resumed_at_step"] >= CONFIG["checkpoint_every"]


async def test_two_workers_train_one_adapter(cluster, owner):
    alone, shared = await owner.create(steps=20), await owner.create(steps=20, num_workers=2)
    one, other = [await owner.until(job_id, is_completed) for job_id in (alone, shared)]
    first, second = await owner.adapter(one), await owner.adapter(other)
    assert all(torch.allclose(first[key], second[key], atol=1e-5) for key in first)


async def test_a_canceled_job_ends_canceled_and_publishes_nothing(cluster, owner):
    job_id = await owner.create(steps=5000)
    await owner.until(job_id, lambda job: job.status == "training" and "step" in job.metrics)
    await owner.cancel(job_id)
    job = await owner.until(job_id, lambda job: job.status == "canceled")
    assert job.model_url is None


async def test_a_job_canceled_before_it_began_never_starts(cluster, owner):
    job_id = await owner.create()
    await owner.cancel(job_id)
    job = await owner.until(job_id, lambda job: job.status == "canceled", seconds=60)
    assert job.progress == 0


async def test_a_config_that_contradicts_itself_fails_the_job_with_the_fields_name(cluster, owner):
    config = {name: value for name, value in CONFIG.items() if name != "batch_size"} | {"num_workers": 63}
    new = jobs.NewJob(name="odd", model_type="sd15", training_config=config, training_asset_ids=owner.asset_ids)
    async with cluster.doors.user_session(owner.scope) as session:
        job_id = (await jobs.create_job(session, owner.brand_id, owner.user_id, new)).id
    job = await owner.until(job_id, lambda job: job.status == "failed")
    assert job.error["code"] == "invalid_input"
    assert "num_workers" in job.error["message"]


async def test_submitting_an_attempt_again_starts_nothing_twice(cluster, owner):
    job_id = await owner.create(steps=2, checkpoint_every=2)
    job = await owner.until(job_id, lambda job: job.provider_job_id is not None)
    ticket = _ticket(owner, job_id)
    assert await asyncio.to_thread(cluster.provider.submit, ticket, 1) == job.provider_job_id
    await owner.until(job_id, is_completed)


def _ticket(owner: Owner, job_id: str):
    from onbrand.brand import Ticket

    return Ticket.issue(owner.brand_id, job_id, owner.user_id, "training", 60)


async def test_ray_shows_no_secret_and_no_caption(cluster, owner, secrets):
    from ray.job_submission import JobSubmissionClient

    told = str(await asyncio.to_thread(JobSubmissionClient(_address()).list_jobs))
    assert owner.brand_id.split("-")[0] in told
    assert not any(secret in told for secret in (secrets.tickets, secrets.tokens, secrets.links, "photo of", "eyJ"))


def _address() -> str:
    import ray

    return ray.get_runtime_context().gcs_address


async def test_a_job_the_provider_lost_is_submitted_again(cluster, owner):
    job_id = await owner.create(steps=2, checkpoint_every=2)
    await owner.until(job_id, lambda job: job.provider_job_id is not None)
    assert await asyncio.to_thread(cluster.provider.status, submission_id(job_id, 9)) == "lost"
    await owner.until(job_id, is_completed)
