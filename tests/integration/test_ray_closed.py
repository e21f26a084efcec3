"""Onbrand starts only on a Ray that requires tokens: real clusters, with and without tokens."""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from onbrand.config import Settings
from onbrand.errors import ConfigurationError
from onbrand.serving.cluster_security import Cluster, must_be_closed, must_be_closed_environment

ROOT = Path(__file__).parents[2]


@cache
def found_in(kind: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.open_and_closed_ray", kind, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the check on a Ray that `onbrand up` starts."""
    return found_in("closed", tmp_path_factory.mktemp("closed"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the check on the same Ray without tokens."""
    return found_in("open", tmp_path_factory.mktemp("open"))


def test_the_ray_of_onbrand_up_is_accepted(closed: dict[str, Any]) -> None:
    assert (closed["driver"], closed["worker"]) == ("accepted", "accepted")


def test_the_ray_of_onbrand_up_listens_on_loopback_alone(closed: dict[str, Any]) -> None:
    addresses = [ipaddress.ip_address(each.removeprefix("::ffff:")) for each in closed["listening"]]
    assert addresses
    assert all(each.is_loopback for each in addresses), closed["listening"]


@pytest.mark.parametrize("who", ["driver", "worker", "deploy"])
def test_an_open_ray_is_refused(who: str, opened: dict[str, Any]) -> None:
    assert "without a token" in opened[who]


def test_an_open_ray_is_accepted_for_development(opened: dict[str, Any]) -> None:
    assert opened["dev"] == "accepted"


def test_the_address_of_an_open_cluster_is_refused(opened: dict[str, Any], closed: dict[str, Any]) -> None:
    assert "RAY_ADDRESS" in opened["address"]
    assert "RAY_ADDRESS" in opened["jobs_address"]
    assert (closed["address"], closed["jobs_address"]) == ("accepted", "accepted")


# without a Ray: servers that answer as Ray's do


class _Refusing(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
            return b""

        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture(scope="module")
def gcs() -> Iterator[str]:
    """The address of a control store that requires a token."""
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(2), handlers=[_Refusing()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def dashboard(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a dashboard: (where it listens, what it answers)."""
    host, status = request.param

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("dashboard", [("127.0.0.1", 401), ("127.0.0.1", 403)], indirect=True)
def test_a_closed_cluster_is_accepted(gcs: str, dashboard: str) -> None:
    must_be_closed(Settings(), Cluster(gcs, dashboard))


@pytest.mark.parametrize("dashboard", [("127.0.0.1", 200), ("127.0.0.1", 404), ("127.0.0.1", 500)], indirect=True)
def test_a_dashboard_that_looks_into_a_call_without_a_token_is_refused(gcs: str, dashboard: str) -> None:
    with pytest.raises(ConfigurationError, match="dashboard and its jobs answer without a token"):
        must_be_closed(Settings(), Cluster(gcs, dashboard))


@pytest.mark.parametrize("dashboard", [("0.0.0.0", 401)], indirect=True)
def test_a_dashboard_on_every_address_is_refused_unless_all_are_private(gcs: str, dashboard: str) -> None:
    with pytest.raises(ConfigurationError, match="every address") as refused:
        must_be_closed(Settings(), Cluster(gcs, dashboard))
    assert refused.value.param == "private_network"
    must_be_closed(Settings(private_network=True), Cluster(gcs, dashboard))
    must_be_closed(Settings(dev=True), Cluster(gcs, dashboard))


def test_a_public_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onbrand.serving.cluster_security.must_ask_for_token", lambda cluster: None)
    for cluster in (Cluster("8.8.8.8:6379"), Cluster("10.0.0.1:6379", "[2600::1]:8265")):
        with pytest.raises(ConfigurationError, match="public address"):
            must_be_closed(Settings(private_network=True), cluster)
    for address in ("10.1.2.3:6379", "192.168.1.2:6379", "100.64.3.4:6379", "[fd00::1]:6379"):
        must_be_closed(Settings(), Cluster(address))


def test_a_dashboard_on_another_nodes_loopback_is_not_looked_for_here() -> None:
    head = Cluster("10.0.0.1:6379", "127.0.0.1:8265")
    assert head.as_seen_from({"127.0.0.1", "10.0.0.1"}) == head
    assert head.as_seen_from({"127.0.0.1", "10.0.0.2"}) == Cluster("10.0.0.1:6379")
    inside = Cluster("10.0.0.1:6379", "10.0.0.1:8265")
    assert inside.as_seen_from({"127.0.0.1", "10.0.0.2"}) == inside


@pytest.mark.parametrize("mode", ["disabled", "DISABLED", "", "k8s"])
def test_an_environment_that_turns_tokens_off_is_refused(mode: str) -> None:
    with pytest.raises(ConfigurationError, match="RAY_AUTH_MODE"):
        must_be_closed_environment(Settings(), {"RAY_AUTH_MODE": mode})
    must_be_closed_environment(Settings(dev=True), {"RAY_AUTH_MODE": mode})


@pytest.mark.parametrize("address", ["auto", "local", ""])
def test_an_address_that_names_no_cluster_is_none(address: str) -> None:
    must_be_closed_environment(Settings(), {"RAY_ADDRESS": address})


def test_a_cluster_that_is_not_there_is_not_open() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    for scheme in ("", "ray://", "http://"):
        must_be_closed_environment(Settings(), {"RAY_ADDRESS": f"{scheme}{address}"})


def test_onbrand_up_is_refused_in_an_open_environment(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onbrand.cli", "up", "--port", "0", "--data-dir", str(tmp_path), "--json"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 9
    assert "RAY_AUTH_MODE" in json.loads(done.stdout)["error"]["message"]
