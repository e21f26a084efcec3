"""Paths and hosts in URLs survive a round trip, whatever characters they contain."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from onbrand.addresses import file_url, http_url, must_be_host, path_of_file_url
from onbrand.config import Settings
from onbrand.errors import ConfigurationError
from onbrand.secrets_file import Secrets
from onbrand.storage.backends import LocalBackend, open_backend
from onbrand.storage.runs import run_folder, runs_bucket

ODD = [
    "run #1", "run ?a=b", "it's", 'a "quoted" one', "100%", "a%20b", "a b", "ü é 画", "-rf", "a,b", "a;b&c",
    "$HOME `id`", "back\\slash", "a+b", "[1]", "{x}", "*", "~", "a:b", "@",
]  # fmt: skip
SECRETS = Secrets(tokens="t", tickets="t", links="l", claims="00" * 32)
JOB = "0b8a4c1e-1111-4222-8333-444455556666"


def store_at(settings: Settings) -> LocalBackend:
    backend = open_backend(settings, SECRETS)
    assert isinstance(backend, LocalBackend)
    return backend


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_the_same_after_it_was_a_url(name: str) -> None:
    path = Path("/data") / name / "objects"
    assert path_of_file_url(file_url(path), "storage_url") == path


@pytest.mark.parametrize("name", ODD)
def test_objects_and_runs_lie_in_the_data_directory_whatever_its_name(tmp_path: Path, name: str) -> None:
    settings = Settings(data_dir=tmp_path / name)
    assert store_at(settings).folder == tmp_path / name / "objects"
    assert run_folder(settings, "acme", JOB) == tmp_path / name / "runs" / "acme" / JOB
    assert runs_bucket(settings) is None


def test_two_platforms_beside_one_another_never_write_the_same_object(tmp_path: Path) -> None:
    names = ["run", "run ", "run #1", "run #2", "run?1", "run?2", "run%201", "run 1", "run%2525", "run%25"]
    stores = {name: store_at(Settings(data_dir=tmp_path / name)) for name in names}
    for name, store in stores.items():
        store.write("training-data", "acme/logo.png", name.encode(), "image/png")
    assert {name: store.read("training-data", "acme/logo.png").decode() for name, store in stores.items()} == {
        name: name for name in names
    }


@pytest.mark.parametrize("name", ODD)
def test_ray_train_reads_the_same_folder_from_its_url(name: str) -> None:
    from pyarrow.fs import FileSystem

    path = f"/data/{name}/runs/acme"
    assert FileSystem.from_uri(file_url(Path(path)))[1] == path


@pytest.mark.parametrize("name", ["new\nline", "end\n", "\x1b[31m", "nul\x7f", "tab\t", "latin\udce9"])
def test_a_character_that_no_path_of_ours_can_have_is_refused_and_shown(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="control character") as refused:
        _ = Settings(data_dir=tmp_path / name).folder
    assert name not in str(refused.value)
    assert "ONBRAND_DATA_DIR" in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["file:///data/run #1", "file:///data/a?b", "file:///data/\n", "file:///da\tta", "file://host/data", "file:data"],
)
def test_a_url_whose_rest_would_be_lost_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="ONBRAND_STORAGE_URL"):
        open_backend(Settings(data_dir=tmp_path, storage_url=url), SECRETS)


def test_an_empty_data_directory_is_not_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONBRAND_DATA_DIR", "")
    with pytest.raises(ConfigurationError, match="empty"):
        Settings()


def test_relative_places_become_absolute_for_processes_that_work_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir=Path("-data"), run_storage="runs here")
    assert settings.folder == tmp_path / "-data"
    assert settings.runs_url == str(tmp_path / "runs here")


def test_a_run_storage_as_a_url_is_read_as_one(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, run_storage=file_url(tmp_path / "run #1"))
    assert run_folder(settings, "acme", JOB) == tmp_path / "run #1" / "acme" / JOB


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("[::1]", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
        ("2001:db8::7", "http://[2001:db8::7]:8000"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_every_url_of_a_host_can_be_called(tmp_path: Path, host: str, url: str) -> None:
    settings = Settings(data_dir=tmp_path, host=host)
    assert (settings.url, settings.system_url) == (url, "http://127.0.0.1:8001/internal")
    assert http_url(must_be_host(host), 8000) == url
    assert urlsplit(url).port == 8000
    if "%" not in url:
        assert httpx.URL(settings.url).port == 8000


@pytest.mark.parametrize("host", ["", "a b", "http://127.0.0.1", "127.0.0.1/8", "host\n", "u@host"])
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigurationError, match="ONBRAND_HOST"):
        Settings(data_dir=tmp_path, host=host)


def test_the_interpreters_path_reaches_a_jobs_shell_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex
    import sys
    from types import SimpleNamespace

    from onbrand.brand import Ticket
    from onbrand.training.dispatch.providers.ray import RayProvider

    asked: dict[str, str] = {}
    provider = RayProvider(Settings(run_storage="/runs"))
    provider.__dict__["_client"] = SimpleNamespace(submit_job=lambda **what: asked.update(what))
    monkeypatch.setattr(sys, "executable", "/opt/my env $(id)/bin/python")
    provider.submit(Ticket.issue("acme", JOB, JOB, "training", 600), 1)
    assert shlex.split(asked["entrypoint"])[0] == "/opt/my env $(id)/bin/python"
    assert os.linesep not in asked["entrypoint"]
