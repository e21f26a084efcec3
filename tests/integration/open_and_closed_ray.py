"""Starts a Ray of one kind for test_ray_closed.py, checks whether the platform accepts it, and prints JSON.

`python -m tests.integration.open_and_closed_ray closed|open FOLDER`
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil

from onbrand.config import Settings
from onbrand.errors import ConfigurationError
from onbrand.local.platform import deploy
from onbrand.local.ray_head import RayHead
from onbrand.local.supervisor import descendants
from onbrand.serving.cluster_security import Cluster, must_be_closed, must_be_closed_environment


def verdict(call: Any, *arguments: Any) -> str:
    """`accepted`, or the text of the refusal."""
    try:
        call(*arguments)
    except ConfigurationError as problem:
        return problem.message
    return "accepted"


def verdict_of_a_worker(settings: Settings) -> str:
    import ray  # not before the head's environment stands: Ray reads it at its import

    return ray.get(ray.remote(num_cpus=0)(verdict).remote(must_be_closed, settings))


def listening(pid: int) -> list[str]:
    """Addresses on which the processes below `pid` listen."""
    found = {
        connection.laddr.ip
        for process in descendants(pid)
        for connection in psutil.Process(process).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    return sorted(found)


def main(kind: str, folder: Path) -> dict[str, Any]:
    settings = Settings(data_dir=folder)
    head = RayHead(folder, {}, is_open=kind == "open")
    head.launch()
    try:
        with head.connected():
            cluster = Cluster.of_this_process()
            assert head._keeper is not None
            return {
                "driver": verdict(must_be_closed, settings),
                "worker": verdict_of_a_worker(settings),
                "deploy": verdict(deploy, settings) if kind == "open" else None,
                "dev": verdict(must_be_closed, settings.model_copy(update={"dev": True})),
                "dashboard": cluster.dashboard,
                "gcs": cluster.gcs,
                "address": verdict(must_be_closed_environment, settings, {"RAY_ADDRESS": cluster.gcs}),
                "jobs_address": verdict(
                    must_be_closed_environment, settings, {"RAY_ADDRESS": f"http://{cluster.dashboard}"}
                ),
                "listening": listening(head._keeper.pid),
            }
    finally:
        head.stop()


if __name__ == "__main__":
    os.environ.pop("RAY_ADDRESS", None)
    found = main(sys.argv[1], Path(sys.argv[2]))
    print(json.dumps(found))
