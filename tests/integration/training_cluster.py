"""A private Ray with a dispatcher and the internal routes, and a member of a brand who trains on it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import uvicorn
from ray._private.authentication_test_utils import reset_auth_token_state

from onbrand.app import create_system_app
from onbrand.brand import Scope
from onbrand.config import Settings
from onbrand.db.session import Database
from onbrand.local.ray_head import RayHead, free_ports
from onbrand.local.supervisor import children, descendants
from onbrand.secrets_file import Secrets
from onbrand.services import asset_checks, job_validation, jobs, models, training_job
from onbrand.services.events import Event
from onbrand.storage.store import ObjectStore
from onbrand.training.dispatch.admission import Bounds
from onbrand.training.dispatch.dispatcher import Dispatcher
from onbrand.training.dispatch.providers.ray import RayProvider
from tests.integration.training_queue import fail_all_open_jobs
from tests.stored_assets import store_assets
from tests.unit.training_bases import base_of

NUM_PICTURES = 5
CONFIG = {"steps": 80, "batch_size": 4, "rank": 2, "resolution": 64, "targets": "attention", "checkpoint_every": 16}


@dataclass
class Cluster:
    """The processes and clients of a running cluster."""

    settings: Settings
    db: Database
    store: ObjectStore
    provider: RayProvider
    dispatcher: Dispatcher
    neighbours: frozenset[int]
    """Children of this process that were there before, such as another platform under test."""

    @contextlib.asynccontextmanager
    async def holding_jobs(self) -> AsyncIterator[None]:
        """Let no job start within the block."""
        usual, self.dispatcher.bounds = self.dispatcher.bounds, Bounds(0, 1)
        try:
            yield
        finally:
            self.dispatcher.bounds = usual

    def processes(self, words: str = "") -> list[int]:
        """Processes of this cluster whose command line holds `words`."""
        own = [pid for pid in children(os.getpid()) if pid not in self.neighbours]
        return [pid for top in own for pid in (top, *descendants(top)) if words in command_line(pid)]

    async def worker_of(self, job_id: str) -> int:
        """A training process of the job. Ray Train's workers run in a folder named after the run."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for pid in self.processes("RayTrainWorker"):
                with contextlib.suppress(OSError):
                    if job_id in os.readlink(f"/proc/{pid}/cwd"):
                        return pid
            await asyncio.sleep(0.1)
        raise AssertionError("no training process works in the run's folder")


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


@contextlib.asynccontextmanager
async def running_cluster(
    folder: Path, settings: Settings, secrets: Secrets, db: Database, store: ObjectStore, **changes: object
) -> AsyncIterator[Cluster]:
    """A cluster with its data directory in `folder`. At its end all its processes stop and the environment is restored.

    Args:
        changes: settings other than the tests' usual ones.
    """
    [port] = free_ports(1)
    usual = {
        "data_dir": folder,
        "run_storage": str(folder / "runs"),
        "internal_url": f"http://127.0.0.1:{port}",
        "bases": {"sd15": str(base_of("sd15"))},
        "device": "cpu",
    }
    known = settings.model_copy(update=usual | changes)
    await fail_all_open_jobs(db)
    before = dict(os.environ)
    neighbours = frozenset(children(os.getpid()))
    injection = Path(__file__).parent / "oom_injection"
    ray_head = RayHead(folder, {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(injection)})
    server = uvicorn.Server(uvicorn.Config(create_system_app(known, secrets, db, store), port=port, log_level="error"))
    try:
        ray_head.launch()
        reset_auth_token_state()  # Ray was imported before this cluster had a token
        with ray_head.connected():
            provider = RayProvider(known)
            dispatcher = Dispatcher(known, secrets, db, [provider], Bounds(2, 2), tick_seconds=0.3)
            async with _serving(server), _running(dispatcher.run()):
                yield Cluster(known, db, store, provider, dispatcher, neighbours)
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
    """A member of a brand with pictures, and their actions."""

    cluster: Cluster
    brand_id: str
    user_id: str
    asset_ids: list[str]
    scope: Scope

    @classmethod
    async def with_pictures(cls, cluster: Cluster, brand, pictures) -> Owner:
        files = [
            asset_checks.Upload(f"{n}.png", pictures(n), f"photo of [brand] logo {n}") for n in range(NUM_PICTURES)
        ]
        scope, store = brand.member.scope, cluster.store.brand(brand.id)
        async with cluster.db.user_session(scope) as session:
            stored = await store_assets(session, store, brand.id, scope.user_id, files, cluster.settings.limits)
        return cls(cluster, brand.id, scope.user_id, [asset.id for asset in stored], scope)

    async def create(self, **config: object) -> str:
        wanted = {name: value for name, value in (CONFIG | config).items() if value is not None}
        new = job_validation.NewJob(
            name="a job", model_type="sd15", training_config=wanted, training_asset_ids=self.asset_ids
        )
        async with self.cluster.db.user_session(self.scope) as session:
            return (await jobs.create_job(session, self.brand_id, self.user_id, new)).id

    async def job(self, job_id: str) -> training_job.TrainingJob:
        async with self.cluster.db.user_session(self.scope) as session:
            return await jobs.get_job(session, self.brand_id, job_id)

    async def retry(self, job_id: str) -> str:
        async with self.cluster.db.user_session(self.scope) as session:
            return (await jobs.retry(session, self.brand_id, self.user_id, job_id)).id

    async def stop(self, job_id: str) -> None:
        async with self.cluster.db.user_session(self.scope) as session:
            await jobs.request_stop(session, self.brand_id, job_id)

    async def events(self, job_id: str) -> list[Event]:
        async with self.cluster.db.user_session(self.scope) as session:
            return await jobs.events(session, self.brand_id, job_id)

    async def cancel(self, job_id: str) -> None:
        async with self.cluster.db.user_session(self.scope) as session:
            await jobs.request_cancel(session, self.brand_id, job_id)

    async def until(self, job_id: str, condition: Callable[[training_job.TrainingJob], bool], seconds: float = 600):
        """The job once `condition` holds of it; fails the test when the job ended otherwise or time is up."""
        end = time.monotonic() + seconds
        while not condition(job := await self.job(job_id)):
            assert job.status in ("pending", "training"), f"{job.status}: {job.error}"
            assert time.monotonic() < end, f"{job.status} at {job.progress} %: {job.metrics}"
            await asyncio.sleep(0.2)
        return job

    async def adapter(self, job: training_job.TrainingJob) -> dict[str, torch.Tensor]:
        """The published tensors."""
        async with self.cluster.db.user_session(self.scope) as session:
            model = await models.get_model(session, self.brand_id, job.model_id)
            return safetensors.torch.load(self.cluster.store.brand(self.brand_id).read(model.key))


def is_completed(job: training_job.TrainingJob) -> bool:
    return job.status == "completed"


def is_past_a_checkpoint(job: training_job.TrainingJob) -> bool:
    return job.metrics.get("step", 0) > 1.5 * CONFIG["checkpoint_every"]
