"""The checks of `onbrand up` before it starts anything, and what it passes to Ray's processes."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from onbrand.config import Limits, Settings
from onbrand.errors import BaseModelRefused, ConfigurationError
from onbrand.local.platform import REVIVALS, Platform, environment, locked, must_be_free
from onbrand.local.ray_head import free_ports
from onbrand.secrets_file import SECRET_SETTINGS


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
    settings = Settings(data_dir=tmp_path / "data", port=0, families=("sd15",), bases={"sd15": str(tmp_path)})
    with pytest.raises(BaseModelRefused, match="model_index"):
        Platform(settings).__enter__()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["up.lock"]


def test_a_data_directory_without_room_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = SimpleNamespace(total=2**40, used=2**40 - 2**20, free=2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: left)
    with pytest.raises(ConfigurationError, match=r"has 1 MiB left, and a start takes 256") as refused:
        Platform(Settings(data_dir=tmp_path / "data", port=0)).__enter__()
    assert refused.value.param == "data_dir"
    assert list((tmp_path / "data").iterdir()) == []


def test_port_zero_becomes_a_free_one() -> None:
    assert Platform(Settings(port=0)).settings.port > 0


class Dying:
    """A database that has always ended."""

    def restart_if_dead(self) -> bool:
        return True


def test_a_database_that_ends_again_and_again_ends_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    platform = Platform(Settings(), tell=told.append)
    platform.restart_if_dead()
    assert told == []
    monkeypatch.setattr(platform, "_embedded", Dying())
    for _ in range(REVIVALS):
        platform.restart_if_dead()
    assert len(told) == REVIVALS
    with pytest.raises(ConfigurationError, match="again and again"):
        platform.restart_if_dead()


def test_a_database_may_end_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = Platform(Settings())
    monkeypatch.setattr(platform, "_embedded", Dying())
    monkeypatch.setattr("onbrand.local.platform.REVIVAL_SECONDS", -1.0)
    for _ in range(3 * REVIVALS):
        platform.restart_if_dead()


def test_settings_reach_other_processes_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        data_dir=tmp_path, port=8123, families=("flux",), bases={"flux": "/base"}, limits=Limits(upload_files=3)
    )
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_no_login_and_no_key_reaches_all_processes(tmp_path: Path) -> None:
    told = environment(Settings(data_dir=tmp_path, **{name: f"secret-{name}" for name in SECRET_SETTINGS}))
    assert "secret" not in json.dumps(told)
    assert told["ONBRAND_DATA_DIR"] == str(tmp_path)
