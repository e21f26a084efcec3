"""Private folders: the platform closes its own, and refuses folders of others."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from onbrand.config import Settings
from onbrand.errors import ConfigurationError
from onbrand.folders import make_private, must_be_closed_to_others, must_be_out_of_reach
from onbrand.local.platform import make_private_folders
from onbrand.secrets_file import Secrets
from onbrand.storage.backends import open_backend

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user, which takes root")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def folder(path: Path, mode: int = 0o755) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


def test_a_folder_of_ours_is_closed(tmp_path: Path) -> None:
    assert mode(make_private(folder(tmp_path / "data", 0o777))) == 0o700


def test_an_account_may_pass_and_not_list(tmp_path: Path) -> None:
    assert mode(make_private(folder(tmp_path / "data"), group=os.getegid())) == 0o710


def test_a_folder_of_other_things_is_not_closed_but_refused(tmp_path: Path) -> None:
    home = folder(tmp_path / "home")
    (home / "letter.txt").touch()
    with pytest.raises(ConfigurationError, match="not Onbrand's"):
        make_private(home)
    assert mode(home) == 0o755


def test_an_old_data_directory_that_was_open_is_closed(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 0o711)
    (data / "secrets.json").touch()
    assert mode(make_private(data)) == 0o700


@as_root
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(folder(tmp_path / "data"), NOBODY, NOBODY)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        make_private(tmp_path / "data")


@as_root
def test_a_link_of_another_user_is_refused_although_its_target_is_ours(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(folder(tmp_path / "ours"))
    os.chown(tmp_path / "data", NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(ConfigurationError, match="link that belongs to another user"):
        make_private(tmp_path / "data")


def test_a_link_of_ours_is_followed(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(folder(tmp_path / "ours"))
    make_private(tmp_path / "data")
    assert mode(tmp_path / "ours") == 0o700


def test_a_folder_that_anybody_can_replace_is_refused(tmp_path: Path) -> None:
    shared = folder(tmp_path / "shared", 0o777)
    with pytest.raises(ConfigurationError, match="can rename"):
        make_private(folder(shared / "data"))
    shared.chmod(0o1777)
    must_be_out_of_reach(shared / "data")


def test_a_link_through_a_replaceable_folder_is_refused(tmp_path: Path) -> None:
    shared = folder(tmp_path / "shared", 0o777)
    folder(shared / "data")
    (tmp_path / "data").symlink_to(shared / "data")
    with pytest.raises(ConfigurationError, match="can rename"):
        make_private(tmp_path / "data")


def test_a_start_closes_objects_and_runs_and_what_else_is_there(tmp_path: Path) -> None:
    for name in ("objects", "cache", "inductor", "encoded"):
        (folder(tmp_path / name) / "something").touch()
    make_private_folders(Settings(data_dir=tmp_path))
    assert {path.name: mode(path) for path in tmp_path.iterdir()} == dict.fromkeys(
        ("objects", "cache", "inductor", "encoded", "runs", "logs"), 0o700
    )


def test_objects_and_runs_elsewhere_are_closed_to_other_users(tmp_path: Path) -> None:
    elsewhere = [folder(tmp_path / name, 0o775) for name in ("objects-elsewhere", "runs-elsewhere")]
    settings = Settings(data_dir=folder(tmp_path / "data"), storage_url=elsewhere[0].as_uri())
    settings = settings.model_copy(update={"run_storage": str(elsewhere[1])})
    make_private_folders(settings)
    open_backend(settings, Secrets(tokens="t", tickets="t", links="l", claims="00" * 32)).check()
    assert [mode(path) for path in elsewhere] == [0o770, 0o770]


@as_root
def test_objects_that_belong_to_another_user_must_be_closed_already(tmp_path: Path) -> None:
    os.chown(folder(tmp_path / "objects"), NOBODY, NOBODY)
    with pytest.raises(ConfigurationError, match="ONBRAND_STORAGE_URL"):
        must_be_closed_to_others(tmp_path / "objects", "storage_url")
    (tmp_path / "objects").chmod(0o770)
    must_be_closed_to_others(tmp_path / "objects", "storage_url")
