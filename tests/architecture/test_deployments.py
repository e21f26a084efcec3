"""The deployment files are valid for the tools that read them, and name things that exist."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from onbrand.api.http.front import PUBLIC
from onbrand.config import Settings
from onbrand.local.platform import PUBLIC_PORT
from onbrand.serving.listener import CALLBACK

ROOT = Path(__file__).parents[2]
CLUSTERS = [ROOT / "cluster.yaml"]
SERVE_FILES = sorted((ROOT / "deployments/serve").glob("*.yaml"))
KUBERAY = ROOT / "deployments/kuberay"


def serve_configs() -> dict[str, dict[str, Any]]:
    found = {path.name: yaml.safe_load(path.read_text()) for path in SERVE_FILES}
    service = yaml.safe_load((KUBERAY / "rayservice.yaml").read_text())
    return {**found, "rayservice.yaml": yaml.safe_load(service["spec"]["serveConfigV2"])}


def applications() -> list[Any]:
    return [
        pytest.param(application, id=f"{file}-{application['name']}")
        for file, config in serve_configs().items()
        for application in config["applications"]
    ]


def test_image_and_manifests_name_one_ray_which_the_project_allows() -> None:
    image = re.search(r"rayproject/ray:([0-9.]+)-", (ROOT / "deployments/docker/Dockerfile").read_text())
    named = {
        yaml.safe_load((KUBERAY / "raycluster.yaml").read_text())["spec"]["rayVersion"],
        yaml.safe_load((KUBERAY / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]["rayVersion"],
    }
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["server"]
    allowed = next(Requirement(line) for line in wanted if line.startswith("ray[")).specifier
    assert image is not None
    assert named == {image[1]}
    assert image[1] in allowed


def test_the_cluster_file_is_valid_for_rays_launcher() -> None:
    validate_config(prepare_config(yaml.safe_load(CLUSTERS[0].read_text())))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_gpu_workers_scale_from_zero(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    kinds = config["available_node_types"]
    head, gpu = kinds[config["head_node_type"]], kinds["gpu"]
    assert head["resources"]["GPU"] == 0
    assert (gpu["min_workers"], gpu["resources"]["GPU"]) == (0, 1)
    assert gpu["max_workers"] > 0


def test_rays_ports_stay_inside_and_want_a_token() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["provider"]["use_internal_ips"] is True
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_only_the_heads_role_reads_the_logins() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert "logins.json" not in str([config["file_mounts"], config["worker_start_ray_commands"]])
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"] for name, kind in config["available_node_types"].items()
    }
    assert profiles["head"] != profiles["gpu"]


@pytest.mark.parametrize("file", serve_configs())
def test_a_serve_file_is_valid_for_ray_serve(file: str) -> None:
    ServeDeploySchema.model_validate(serve_configs()[file])


@pytest.mark.parametrize("application", applications())
def test_a_serve_file_names_applications_and_deployments_that_exist(
    application: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = application["import_path"].split(":")
    built = getattr(import_module(module), name)(dict(application.get("args") or {}))
    deployment = built._bound_deployment.name
    assert {override["name"] for override in application.get("deployments", [])} <= {deployment}


@pytest.mark.parametrize("application", applications())
def test_a_serve_files_arguments_are_settings(application: dict[str, Any]) -> None:
    given = {k: v for k, v in (application.get("args") or {}).items() if k not in ("family", "engine")}
    Settings(**given)


def test_each_served_family_has_its_engine() -> None:
    for config in serve_configs().values():
        by_name = {application["name"]: application for application in config["applications"]}
        wanted = by_name["onbrand"].get("args", {}).get("families", ["sd15", "sdxl", "flux"])
        assert {f"engine-{family}" for family in wanted} == {name for name in by_name if name.startswith("engine-")}


def test_the_service_on_kubernetes_serves_what_the_serve_file_says() -> None:
    def without_addresses(config: dict[str, Any]) -> dict[str, Any]:
        for application in config["applications"]:
            (application.get("args") or {}).pop("internal_url", None)
        return config

    configs = serve_configs()
    assert without_addresses(configs["rayservice.yaml"]) == without_addresses(configs["gpu.yaml"])


@pytest.mark.parametrize("file", ["raycluster.yaml", "rayservice.yaml"])
def test_kubernetes_heads_are_what_start_up_accepts(file: str) -> None:
    """A dashboard on every address is accepted where all of them are said to be private; tokens are on."""
    spec = yaml.safe_load((KUBERAY / file).read_text())["spec"]
    cluster = spec.get("rayClusterConfig", spec)
    head = cluster["headGroupSpec"]
    env = {each["name"]: each.get("value") for each in head["template"]["spec"]["containers"][0]["env"]}
    everywhere = head["rayStartParams"]["dashboard-host"] == "0.0.0.0"
    assert cluster["authOptions"] == {"mode": "token"}
    assert not everywhere or env["ONBRAND_PRIVATE_NETWORK"] == "true"


def test_no_deployment_file_allows_an_open_ray() -> None:
    files = [*CLUSTERS, *SERVE_FILES, *KUBERAY.glob("*.yaml"), ROOT / "deployments/docker/Dockerfile"]
    for path in files:
        text = path.read_text()
        assert "ONBRAND_DEV" not in text, path
        assert not re.search(r"^\s*dev:", text, re.MULTILINE), path
        assert not re.search(r"RAY_AUTH_MODE[=:,]\s*(?!token)", text), path


@pytest.mark.parametrize("file", ["raycluster.yaml", "rayservice.yaml"])
def test_kubernetes_workers_hold_no_login_and_start_at_zero(file: str) -> None:
    spec = yaml.safe_load((KUBERAY / file).read_text())["spec"]
    cluster = spec.get("rayClusterConfig", spec)
    workers = cluster["workerGroupSpecs"][0]
    assert cluster["authOptions"] == {"mode": "token"}
    assert (workers["replicas"], workers["minReplicas"]) == (0, 0)
    assert "secret" not in str(workers).lower()
    assert "onbrand-head" in str(cluster["headGroupSpec"])


def test_the_outside_reaches_the_public_port_alone() -> None:
    service, ingress, policy = yaml.safe_load_all((KUBERAY / "ingress.yaml").read_text())
    paths = [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    backends = {(path["backend"]["service"]["name"], path["backend"]["service"]["port"]["number"]) for path in paths}
    assert [path["path"] for path in paths] == list(PUBLIC)
    assert backends == {(service["metadata"]["name"], 8000)}
    assert [port["targetPort"] for port in service["spec"]["ports"]] == [8000]
    *_, controller = policy["spec"]["ingress"]
    assert controller["ports"] == [{"port": 8000, "protocol": "TCP"}]


@pytest.mark.parametrize("file", ["raycluster.yaml", "rayservice.yaml"])
def test_serves_own_port_is_another_and_the_operator_finds_it(file: str) -> None:
    spec = yaml.safe_load((KUBERAY / file).read_text())["spec"]
    head = spec.get("rayClusterConfig", spec)["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert (ports["public"], ports["serve"]) == (Settings().port, 8001)


@pytest.mark.parametrize("file", serve_configs())
def test_serve_listens_at_its_own_port_where_workers_look_for_the_internal_routes(file: str) -> None:
    config = serve_configs()[file]
    internal = next(each for each in config["applications"] if each["name"] == "internal")
    settings = Settings(**internal["args"])
    assert config["http_options"]["port"] == 8001 != settings.port
    assert settings.system_url.endswith(":8001/internal")


def test_the_image_opens_the_public_port() -> None:
    assert (
        f"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH={CALLBACK}" in (ROOT / "deployments/docker/Dockerfile").read_text()
    )
    assert PUBLIC_PORT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == CALLBACK
