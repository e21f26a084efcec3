"""A training whose run is kept on a real S3, by processes that hold no key: real Ray, Ceph and PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import botocore.session
import pytest
import pytest_asyncio
import ray

from onbrand.config import Secrets, Settings
from onbrand.db.session import Doors
from onbrand.storage.credentials import CredentialIssuer
from onbrand.storage.store import ObjectStore
from onbrand.training.providers.ray import submission_id
from tests.integration.training_cluster import (
    CONFIG,
    Cluster,
    Owner,
    is_completed,
    is_past_a_checkpoint,
    running_cluster,
)
from tests.s3.ceph import CephS3

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]

BUCKET, PREFIX = "onbrand-test-runs", "all"
CANARY = "canary-of-the-environment"
SECRET_VARIABLES = (
    "ONBRAND_DATABASE_URL", "ONBRAND_WEB_DATABASE_URL", "ONBRAND_SYSTEM_DATABASE_URL", "ONBRAND_S3_ACCESS_KEY",
    "ONBRAND_S3_SECRET_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "PGPASSWORD",
    "HF_TOKEN", "SOME_API_KEY",
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory,
    settings: Settings,
    secrets: Secrets,
    doors: Doors,
    store: ObjectStore,
    s3_server: CephS3,
) -> AsyncIterator[Cluster]:
    """Runs on S3, and a platform whose own environment is full of secrets when it starts Ray."""
    key, secret = s3_server.user("platform-of-runs")
    changes = {
        "run_storage": f"s3://{BUCKET}/{PREFIX}",
        "s3_endpoint": s3_server.endpoint,
        "s3_access_key": key,
        "s3_secret_key": secret,
        "s3_role_arn": s3_server.role("runs-of-training", "platform-of-runs", ["s3:*"]),
    }
    issuer = CredentialIssuer.from_settings(settings.model_copy(update=changes))
    assert issuer is not None
    issuer.check()
    with pytest.MonkeyPatch.context() as patch:
        for name in SECRET_VARIABLES:
            patch.setenv(name, f"{CANARY}-{name}")
        folder = tmp_path_factory.mktemp("cluster")
        async with running_cluster(folder, settings, secrets, doors, store, **changes) as running:
            yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def owner(cluster: Cluster, make_brand, pictures) -> Owner:
    return await Owner.with_pictures(cluster, await make_brand("trained"), pictures)


def objects_of(cluster: Cluster) -> list[str]:
    """All keys of the runs' bucket, seen with the platform's own key."""
    known = cluster.settings
    client = botocore.session.Session().create_client(
        "s3", "us-east-1", endpoint_url=known.s3_endpoint,
        aws_access_key_id=known.s3_access_key, aws_secret_access_key=known.s3_secret_key,
    )  # fmt: skip
    return [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def secrets_seen_by(cluster: Cluster, secrets: Secrets) -> dict[str, list[str]]:
    """Which secrets stand in the environment of which process of the cluster."""
    known = cluster.settings
    values = [CANARY, known.s3_access_key, known.s3_secret_key, secrets.tickets, secrets.tokens, secrets.links, "eyJ"]
    found = {}
    for pid in cluster.processes():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if any(value in environment for value in values):
            found[str(pid)] = [line.split("=")[0] for line in environment.split("\0") if any(v in line for v in values)]
    return found


async def test_a_run_on_s3_is_resumed_after_its_processes_died(cluster, owner, secrets):
    """One test, for one job is enough for all: killed, resumed from S3, with no key in any of its processes."""
    job_id = await owner.create()
    await owner.until(job_id, is_past_a_checkpoint)
    assert len(cluster.processes("ray::")) >= 2
    assert secrets_seen_by(cluster, secrets) == {}

    for pid in (await cluster.worker_of(job_id), *cluster.processes(f"--job {job_id}")):
        os.kill(pid, signal.SIGKILL)
    job = await owner.until(job_id, is_completed)

    assert job.provider_job_id == submission_id(job_id, 2)
    assert job.metrics["resumed_at_step"] >= CONFIG["checkpoint_every"]
    assert len(await owner.adapter(job)) > 0
    keys = await asyncio.to_thread(objects_of, cluster)
    run = f"{PREFIX}/{owner.brand_id}/{job_id}/"
    assert any(key.startswith(run) and key.endswith("state.safetensors") for key in keys)
    assert all(key.startswith(run) for key in keys)
    assert not any(key.endswith("ticket") for key in keys)


async def test_a_task_of_ray_finds_no_secret_in_its_environment(cluster):
    @ray.remote(num_cpus=0)
    def environment() -> str:
        return Path("/proc/self/environ").read_bytes().decode()

    seen = await asyncio.to_thread(ray.get, environment.remote())
    assert "RAY_AUTH_MODE" in seen
    assert CANARY not in seen
    assert cluster.settings.s3_secret_key not in seen
