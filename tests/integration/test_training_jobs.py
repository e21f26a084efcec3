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
import ray
import safetensors.torch
import torch
import uvicorn
from ray._private.authentication_test_utils import reset_auth_token_state
from ray.job_submission import JobSubmissionClient

from onbrand.app import create_system_app
from onbrand.brand import Scope, Ticket
from onbrand.config import Secrets, Settings
from onbrand.db.session import Doors
from onbrand.keeper import descendants
from onbrand.rayhead import RayHead, free_ports
from onbrand.services import assets, jobs, models
from onbrand.storage.store import ObjectStore
from onbrand.training.dispatcher import Dispatcher
from onbrand.training.providers.ray import RayProvider, submission_id
from tests.integration.training_queue import fail_all_open_jobs
from tests.unit.training_bases import base_of

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]

NUM_PICTURES = 5
CONFIG = {"steps": 100, "batch_size": 4, "rank": 2, "resolution": 64, "targets": "attention", "checkpoint_every": 20}


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
    await fail_all_open_jobs(doors)
    before = dict(os.environ)
    ray_head = RayHead(folder, {"OMP_NUM_THREADS": "1"})
    server = uvicorn.Server(
        uvicorn.Config(create_system_app(known, secrets, doors, store), port=port, log_level="error")
    )
    try:
        ray_head.launch()
        reset_auth_token_state()  # Ray was imported before this cluster had a token
        with ray_head.connected():
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
    scope: Scope

    async def create(self, **config: object) -> str:
        wanted = {name: value for name, value in (CONFIG | config).items() if value is not None}
        new = jobs.NewJob(name="a job", model_type="sd15", training_config=wanted, training_asset_ids=self.asset_ids)
        async with self.cluster.doors.user_session(self.scope) as session:
            return (await jobs.create_job(session, self.brand_id, self.user_id, new)).id

    async def job(self, job_id: str) -> jobs.TrainingJob:
        async with self.cluster.doors.user_session(self.scope) as session:
            return await jobs.get_job(session, self.brand_id, job_id)

    async def cancel(self, job_id: str) -> None:
        async with self.cluster.doors.user_session(self.scope) as session:
            await jobs.request_cancel(session, self.brand_id, job_id)

    async def until(self, job_id: str, condition: Callable[[jobs.TrainingJob], bool], seconds: float = 600):
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


async def test_whatever_dies_and_however_many_share_the_work_the_adapter_has_the_same_bits(cluster, owner):
    """One test, for the runs share the machine: undisturbed, worker killed, driver killed, two workers."""
    job_ids = [await owner.create() for _ in range(3)] + [await owner.create(num_workers=2)]
    _, worker_killed, driver_killed, _ = job_ids
    await owner.until(worker_killed, is_past_a_checkpoint)
    os.kill(await _worker_of(cluster, worker_killed), signal.SIGKILL)
    await owner.until(driver_killed, is_past_a_checkpoint)
    for pid in cluster.processes(f"--job {driver_killed}"):
        os.kill(pid, signal.SIGKILL)
    done = [await owner.until(job_id, is_completed) for job_id in job_ids]
    assert [job.metrics.get("resumed_at_step", 0) >= CONFIG["checkpoint_every"] for job in done] == RESUMED
    assert [job.provider_job_id for job in done] == [
        submission_id(job_id, 2 if job_id == driver_killed else 1) for job_id in job_ids
    ]
    first, *others = [await owner.adapter(job) for job in done]
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)
    names = {f"models/{owner.brand_id}/sd15-lora-v{number}.safetensors" for number in range(1, 5)}
    assert {job.model_url for job in done} == names
    assert all(len(job.sample_images_urls) == 4 for job in done)


RESUMED = [False, True, True, False]


async def _worker_of(cluster: Cluster, job_id: str) -> int:
    """A training process of the job: Ray Train lets each run's workers work in a folder named after the run."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for pid in cluster.processes("RayTrainWorker"):
            with contextlib.suppress(OSError):
                if job_id in os.readlink(f"/proc/{pid}/cwd"):
                    return pid
        await asyncio.sleep(0.1)
    raise AssertionError("no training process works in the run's folder")


async def test_a_long_job_is_there_once_shows_no_secret_and_can_be_canceled(cluster, owner, secrets):
    """One test, for one job is enough for the three."""
    job_id = await owner.create(steps=5000)
    job = await owner.until(job_id, lambda job: job.provider_job_id is not None)
    again = Ticket.issue(owner.brand_id, job_id, owner.user_id, "training", 60)
    assert await asyncio.to_thread(cluster.provider.submit, again, 1) == job.provider_job_id
    assert await asyncio.to_thread(cluster.provider.status, submission_id(job_id, 2)) == "lost"
    await owner.until(job_id, lambda job: job.status == "training" and "step" in job.metrics)
    told = str(await asyncio.to_thread(JobSubmissionClient(ray.get_runtime_context().gcs_address).list_jobs))
    assert job_id in told
    assert not any(secret in told for secret in (secrets.tickets, secrets.tokens, secrets.links, "photo of", "eyJ"))
    await owner.cancel(job_id)
    job = await owner.until(job_id, lambda job: job.status == "canceled")
    assert job.model_url is None


async def test_a_job_canceled_before_it_began_never_starts(cluster, owner):
    job_id = await owner.create()
    await owner.cancel(job_id)
    job = await owner.until(job_id, lambda job: job.status == "canceled", seconds=60)
    assert job.progress == 0


async def test_a_config_that_contradicts_the_bases_advice_fails_the_job_with_the_fields_name(cluster, owner):
    job_id = await owner.create(batch_size=None, num_workers=63)
    job = await owner.until(job_id, lambda job: job.status == "failed")
    assert job.error["code"] == "invalid_input"
    assert "num_workers" in job.error["message"]
