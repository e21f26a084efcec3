"""What `up` checks before it starts anything, and what it hands to Ray's processes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from onbrand.config import Limits, Settings
from onbrand.db.logins import DatabaseUrls
from onbrand.errors import BaseModelRefused, ConfigurationError
from onbrand.rayhead import free_ports
from onbrand.runtime import Platform, environment, locked, must_be_bases, must_be_free


def test_a_port_in_use_is_refused_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} .*--port"):
            must_be_free("127.0.0.1", port)


def test_a_free_port_is_taken() -> None:
    must_be_free("127.0.0.1", free_ports(1)[0])


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--host"):
        must_be_free("203.0.113.7", 8000)


def test_a_data_directory_in_use_names_the_process_that_uses_it(tmp_path: Path) -> None:
    import os

    with locked(tmp_path), pytest.raises(ConfigurationError, match=f"process {os.getpid()}"), locked(tmp_path):
        pass


def test_a_data_directory_can_be_used_again_after_its_holder_died(tmp_path: Path) -> None:
    (tmp_path / "up.lock").write_text("1")
    with locked(tmp_path):
        pass


def test_a_base_folder_without_a_pipeline_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BaseModelRefused, match="model_index"):
        must_be_bases(Settings(families=("sd15",), bases={"sd15": str(tmp_path)}))


def test_port_zero_becomes_a_free_one() -> None:
    assert Platform(Settings(port=0)).settings.port > 0


def test_settings_reach_other_processes_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        data_dir=tmp_path, port=8123, families=("flux",), bases={"flux": "/base"}, limits=Limits(upload_files=3)
    )
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_the_owners_login_never_reaches_other_processes(tmp_path: Path) -> None:
    urls = DatabaseUrls("owner-dsn", "web-dsn", "system-dsn")
    external = environment(Settings(data_dir=tmp_path, database_url="owner-dsn"), urls)
    assert "owner-dsn" not in json.dumps(external)
    assert external["ONBRAND_WEB_DATABASE_URL"] == "web-dsn"
    assert "dsn" not in json.dumps(environment(Settings(data_dir=tmp_path), urls))
