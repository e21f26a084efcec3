"""Ctrl-C ends everything that `onbrand up` started and nothing else: another Ray on the machine keeps running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import place_for_a_platform
from tools.harness.platform_process import Running, command_line, environment, free_port, wait_for


@contextmanager
def another_ray(folder: Path) -> Iterator[set[int]]:
    """The processes of another user's Ray."""
    ports = {
        f"--{name}-port": str(free_port())
        for name in ("node-manager", "object-manager", "ray-client-server", "dashboard-agent-listen", "metrics-export")
    }
    options = {"--node-ip-address": "127.0.0.1", "--port": str(free_port()), "--temp-dir": str(folder)} | ports
    options |= {"--include-dashboard": "false", "--num-cpus": "1", "--object-store-memory": "80000000"}
    words = [f"{name}={value}" for name, value in options.items()]
    with (folder / "ray.log").open("w") as log:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *words],
            env=environment(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled"),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for((folder / "ray_current_cluster").is_file, 60, f"another Ray: {(folder / 'ray.log').read_text()}")
        yield {head.pid, *(child.pid for child in psutil.Process(head.pid).children(recursive=True))}
    finally:
        for process in (*psutil.Process(head.pid).children(recursive=True), head):
            process.kill()
        head.wait()


@pytest.mark.ends_the_platform
def test_ctrl_c_ends_all_that_up_started_and_nothing_else(platform: Running) -> None:
    """The platform is the one of all tests before, so that what they left running is ended too."""
    with place_for_a_platform() as folder, another_ray(folder) as others:
        names = " ".join(map(command_line, others))
        assert all(part in names for part in ("raylet", "gcs_server"))
        assert len(platform.processes()) > 5
        assert platform.send(signal.SIGINT) == 0
        end = time.monotonic() + 10
        while platform.processes() and time.monotonic() < end:
            time.sleep(0.1)
        assert [command_line(pid) for pid in platform.processes()] == []
        assert [pid for pid in others if not os.path.exists(f"/proc/{pid}")] == []
