"""A range of workers on a cluster with changing nodes: a preemption notice, a lost node, a new node. `-m long`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import ray
import torch

from onbrand.config import Settings
from onbrand.db.session import Database
from onbrand.internal import log_lines
from onbrand.local.ray_head import OBJECT_STORE_BYTES, free_ports, num_cpus
from onbrand.secrets_file import Secrets
from onbrand.services import logs
from onbrand.storage.store import ObjectStore
from tests.integration.training_cluster import (
    CONFIG,
    Cluster,
    Owner,
    is_completed,
    is_past_a_checkpoint,
    running_cluster,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]
STEPS, NOTICE_SECONDS = 500, 20
PREEMPTION = "DRAIN_NODE_REASON_PREEMPTION"
JOIN = """
import os
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"  # or it refuses a second node on loopback
from ray._private import services
from ray.scripts.scripts import main
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
services.get_node_ip_address = lambda *_: "127.0.0.1"
main()
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory, settings: Settings, secrets: Secrets, db: Database, store: ObjectStore
) -> AsyncIterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
        folder = tmp_path_factory.mktemp("cluster")
        changes = {"train_resize_seconds": 3.0}
        async with running_cluster(folder, settings, secrets, db, store, **changes) as running:
            yield running


@pytest_asyncio.fixture(loop_scope="session")
async def owner(cluster: Cluster, make_brand, pictures) -> Owner:
    return await Owner.with_pictures(cluster, await make_brand("trained"), pictures)


@contextlib.contextmanager
def another_node() -> Iterator[str]:
    """A second node with resources for one worker; returns its id. All its processes are stopped at the end."""
    known = {node["NodeID"] for node in ray.nodes()}
    [agent] = free_ports(1)
    options = {
        "--address": ray.get_runtime_context().gcs_address,
        "--node-ip-address": "127.0.0.1",
        "--num-cpus": 1,
        "--object-store-memory": OBJECT_STORE_BYTES,
        "--dashboard-agent-listen-port": agent,
        "--min-worker-port": 0,
        "--max-worker-port": 0,
    }
    start = [sys.executable, "-c", JOIN, "start", "--block", "--disable-usage-stats"]
    start += [f"{name}={value}" for name, value in options.items()]
    with tempfile.TemporaryDirectory(prefix="onbrand-test-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        with log.open("wb") as said:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "onbrand.local.supervisor", str(os.getpid()), f"{folder}/own", *start],
                stdout=said,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        try:
            yield joined(known, log)
        finally:
            keeper.terminate()
            keeper.wait(30)


def joined(known: set[str], log: Path) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        new = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in known]
        if new:
            return str(new[0])
        time.sleep(0.2)
    raise AssertionError(f"no node joined: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def room_for_one_worker_on_the_head() -> Iterator[None]:
    """Occupy the head's other cores."""

    @ray.remote(num_cpus=num_cpus() - 1)
    class Guest:
        def here(self) -> bool:
            return True

    guest: Any = Guest.remote()
    assert ray.get(guest.here.remote(), timeout=60)
    try:
        yield
    finally:
        ray.kill(guest)


def take_away(node: str) -> None:
    """Preempt a node as a cloud does: a notice first, and the node's end after the deadline."""
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={address}", f"--node-id={node}"]
    command += [f"--reason={PREEMPTION}", "--reason-message=spot", f"--deadline-remaining-seconds={NOTICE_SECONDS}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def said(cluster: Cluster, owner: Owner, job_id: str) -> list[log_lines.Line]:
    async with cluster.db.user_session(owner.scope) as session:
        return list(await logs.lines_of(session, owner.brand_id, job_id, 0, 1000))


async def until_said(cluster: Cluster, owner: Owner, job_id: str, code: str, times: int = 1) -> list[log_lines.Line]:
    """Wait until the log has this many lines of one code; returns them."""
    async with asyncio.timeout(300):
        while len(lines := [line for line in await said(cluster, owner, job_id) if line.code == code]) < times:
            job = await owner.job(job_id)
            assert job.status in ("pending", "training"), f"{job.status}: {job.error}"
            await asyncio.sleep(0.2)
    return lines


async def test_a_run_keeps_its_bits_while_nodes_are_taken_away_and_others_join(cluster, owner):
    """Two workers, a notice and one worker less, a new node and two again; then the same with one worker all along."""
    with room_for_one_worker_on_the_head():
        with another_node() as node:
            job_id = await owner.create(steps=STEPS, num_workers=[1, 2])
            await owner.until(job_id, is_past_a_checkpoint)
            await asyncio.to_thread(take_away, node)
            its_end = time.monotonic() + NOTICE_SECONDS
            [leaving] = await until_said(cluster, owner, job_id, "leaving")
            await asyncio.sleep(its_end - time.monotonic())
        [resumed] = await until_said(cluster, owner, job_id, "resumed")
        assert resumed.facts["step"] >= leaving.facts["step"] > CONFIG["checkpoint_every"]
        with another_node():
            began = await until_said(cluster, owner, job_id, "began", 3)
            await owner.until(job_id, is_completed)
    assert [line.facts["num_workers"] for line in began] == [2, 1, 2]
    alone = await owner.create(steps=STEPS, num_workers=1)
    done = [await owner.until(each, is_completed) for each in (job_id, alone)]
    assert [job.attempts for job in done] == [1, 1]
    changed, unbroken = [await owner.adapter(job) for job in done]
    assert all(torch.equal(changed[key], value) for key, value in unbroken.items())
