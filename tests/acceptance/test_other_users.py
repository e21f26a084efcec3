"""Another user of the machine can read and change nothing of a platform, and every port needs a token.

The test finds the platform's processes, files, sockets and ports as root in /proc. Then a user who owns nothing tries
all of them (`tests/acceptance/stranger.py`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.acceptance.conftest import Trained, draw_pictures, place_for_a_platform
from tools.harness.platform_process import Person, Running, command_line

SHARED_PLACES = ("/tmp", "/dev/shm", "/var/tmp", "/run", "/var/run")
FOREIGN = {
    "ONBRAND_HOST": "::1", "PGPORT": "9999", "PGHOST": "db.example", "PGOPTIONS": "-c no.such=1",
    "PGSERVICE": "nothing", "PGSSLMODE": "verify-full", "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9",
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9", "RAY_TMPDIR": "/nowhere", "RAY_AUTH_TOKEN": "another",
    "LC_ALL": "xx_XX.nothing",
}  # fmt: skip
PUBLIC = {
    ("GET /", "dashboard/dashboard.py"),  # the page that asks for the token
    ("GET /api/local_raylet_healthz", "DashboardAgent"),  # "success"
    ("GET /api/local_raylet_healthz", "dashboard/dashboard.py"),
    ("GET /", "RuntimeEnvAgent"),
}
"""Ray's answers without its token: pages that hold nothing of the platform."""
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="becomes another user of the machine, which takes root"
)


def as_a_stranger(**what: Any) -> dict[str, Any]:
    """The output of `stranger.py`: what a user who owns nothing can access."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("stranger.py"))],
        input=json.dumps(what),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def processes_of(platform: Running) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in platform.processes()]


def listening(processes: list[psutil.Process]) -> dict[int, tuple[str, str]]:
    """Port -> (address, process) of everything that the platform listens on."""
    found = {}
    for process in processes:
        for each in process.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN:
                found[each.laddr.port] = (each.laddr.ip, command_line(process.pid).strip())
    return found


def open_paths(processes: list[psutil.Process]) -> set[str]:
    """Files, folders, sockets and memory of the processes in folders that all users share."""
    found = set()
    for process in processes:
        links = [f"/proc/{process.pid}/cwd", *map(str, Path(f"/proc/{process.pid}/fd").glob("*"))]
        links += map(str, Path(f"/proc/{process.pid}/map_files").glob("*"))
        for link in links:
            try:
                found.add(os.readlink(link).removesuffix(" (deleted)"))
            except OSError:
                continue
        found |= {str(each.laddr) for each in process.net_connections("unix") if each.laddr}
    return {path for path in found if path.startswith((*SHARED_PLACES, "@", "\0"))}


def everything_below(folders: list[Path]) -> list[str]:
    return [str(path) for folder in folders if folder.exists() for path in (folder, *folder.rglob("*"))]


def rays_folders(processes: list[psutil.Process]) -> list[Path]:
    """The supervisor's folders: Ray's own, and the one for temporary files."""
    [keeper] = [each for each in processes if "onbrand.local.supervisor" in command_line(each.pid)]
    below = [child.environ().get("TMPDIR", "") for child in keeper.children()]
    return [
        Path(keeper.cmdline()[keeper.cmdline().index("onbrand.local.supervisor") + 2]),
        *map(Path, filter(None, below)),
    ]


def secrets_of(platform: Running) -> list[str]:
    texts = [(platform.data_dir / name).read_text() for name in ("secrets.json", "database.json", "ray-token")]
    parsed = [json.loads(text) if text.startswith("{") else {"token": text.strip()} for text in texts]
    return [str(value) for each in parsed for value in each.values()]


def test_files_sockets_and_memory_of_a_running_platform_are_closed(platform: Running, acme: Trained) -> None:
    processes = processes_of(platform)
    rays = rays_folders(processes)
    ours = {*SHARED_PLACES, str(platform.data_dir.parent / "up.log")}  # the log is this test's, not the platform's
    paths = {*everything_below([platform.data_dir, *rays]), *open_paths(processes)} - ours
    assert any("plasma_store" in path for path in paths), "the test of the test: Ray's sockets are among them"
    assert any("safetensors" in path for path in paths), "and models"
    got = as_a_stranger(paths=sorted(paths))
    assert got["paths"] == {}


def test_no_file_lies_where_every_ray_of_the_machine_writes(platform: Running) -> None:
    ports = {str(port) for port in listening(processes_of(platform))}
    shared = Path("/tmp/ray")
    held = [path for path in open_paths(processes_of(platform)) if Path(path).is_relative_to(shared)]
    assert held == []
    address = shared / "ray_current_cluster"
    assert not address.exists() or address.read_text().rpartition(":")[2] not in ports


def test_processes_show_nothing_but_names(platform: Running, acme: Trained) -> None:
    pids = platform.processes()
    got = as_a_stranger(pids=pids)
    assert got["processes"] == {}
    shown = " ".join(got["command_lines"])
    assert "raylet" in shown
    assert [secret for secret in secrets_of(platform) if secret in shown] == []


def test_every_port_is_on_loopback(platform: Running) -> None:
    ports = listening(processes_of(platform))
    assert len(ports) > 10
    loopback = ("127.0.0.1", "::ffff:127.0.0.1", "::1")
    assert {port: where for port, where in ports.items() if where[0] not in loopback} == {}


def test_no_port_but_the_public_one_answers_who_has_no_token(platform: Running, acme: Trained) -> None:
    ports = {port: where[1] for port, where in listening(processes_of(platform)).items() if port != platform.port}
    got = as_a_stranger(ports=sorted(ports))
    assert got["tried"] > 10 * len(ports)
    said = {(asked, ports[int(port)]): text for port, found in got["ports"].items() for asked, text in found.items()}
    public = {who for who in said for page, name in PUBLIC if who[0] == page and name in who[1]}
    assert {who: text[:200] for who, text in said.items() if who not in public} == {}
    words = [*secrets_of(platform), acme.brand_id, acme.job["id"], "logo", str(platform.data_dir), "session_"]
    assert [(asked, word) for asked, answer in said.items() for word in words if word in answer] == []


def test_a_platform_in_foreign_surroundings_works_and_leaves_nothing_open_when_it_has_ended() -> None:
    """On IPv6, with variables of libpq, proxies and another Ray's in its environment."""
    with place_for_a_platform() as folder:
        folder.chmod(0o755)
        running = Running(folder / 'data `of` "us" %20?', more=FOREIGN)
        url = running.start()["url"]
        assert url == f"http://[::1]:{running.port}"
        person = Person(folder / "ada", url)
        person.says("signup", "ada@example.com", ONBRAND_PASSWORD="correct horse ada", **FOREIGN)
        person.says("brand", "create", "acme", **FOREIGN)
        picture = draw_pictures(folder / "pictures", 1)
        assert len(person.says("asset", "upload", *picture, **FOREIGN)["data"]) == 1
        rays = rays_folders(processes_of(running))
        assert running.send(signal.SIGTERM) == 0
        assert [place for place in rays if place.exists()] == []
        left = everything_below([running.data_dir])
        assert any("training-data/acme/" in path for path in left)
        assert as_a_stranger(paths=left)["paths"] == {}
        running.data_dir.chmod(0o755)
        opened = as_a_stranger(paths=left)["paths"]
        assert opened == {str(running.data_dir): ["list"]}, "what lies in it is closed by itself"
