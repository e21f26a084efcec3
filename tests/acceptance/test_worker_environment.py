"""The processes of a running platform (engine replicas, workers, Ray's own) inherit no secret."""

from __future__ import annotations

import stat
from pathlib import Path

import psutil

from tests.acceptance.conftest import Trained
from tools.harness.platform_process import CANARY, Running, command_line, mapped_files


def environ_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_no_process_of_ray_inherits_a_secret(platform: Running) -> None:
    assert platform.process is not None
    assert CANARY in environ_of(platform.process.pid), "the test of the test: there was something to inherit"
    [keeper] = [pid for pid in platform.processes() if "onbrand.local.supervisor" in command_line(pid)]
    rays = [keeper, *(child.pid for child in psutil.Process(keeper).children(recursive=True))]
    names = " ".join(command_line(pid) for pid in rays)
    assert all(part in names for part in ("raylet", "ServeReplica:engine-sd15", "ServeReplica:internal"))
    found = {command_line(pid): environ_of(pid) for pid in rays}
    assert [name for name, environment in found.items() if CANARY in environment] == []
    passwords = ("password=", "postgresql://", "DATABASE_URL")
    assert [name for name, environ in found.items() if any(word in environ for word in passwords)] == []


def test_logins_lie_in_a_file_of_ours_alone_while_the_platform_runs(platform: Running) -> None:
    file = platform.data_dir / "logins.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert CANARY in file.read_text()


def knows_the_database(libraries: set[str]) -> bool:
    return any("psycopg" in file or "libpq" in file for file in libraries)


def test_engines_and_training_workers_load_no_database_driver(platform: Running, acme: Trained) -> None:
    """They ran a training and a generation before; the driver's extension module would be mapped by now."""
    found = [(command_line(pid), mapped_files(pid)) for pid in platform.processes()]
    replicas = [files for name, files in found if "ServeReplica:engine-sd15" in name]
    engines = [files for name, files in found if "onbrand.serving.engine_child" in name]
    assert len(replicas) == len(engines) == 2
    assert all(any("libtorch" in file for file in files) for files in engines)
    assert not any("libtorch" in file for files in replicas for file in files), "the engine's process alone draws"
    assert any("libtorch" in file for file in acme.worker_libraries)
    assert not any(map(knows_the_database, [*replicas, *engines, acme.worker_libraries]))
    assert any(knows_the_database(files) for name, files in found if "ServeReplica:internal" in name)
