"""A run's file system on a real S3, as Ray Train uses it: pyarrow with session credentials."""

from __future__ import annotations

import pickle
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from pyarrow.fs import FileSelector, FileType

from onbrand.config import Settings
from onbrand.errors import NotFound
from onbrand.internal.client import SystemClient
from onbrand.storage.credentials import CredentialIssuer
from onbrand.training.dispatch.tickets import FileTickets
from onbrand.training.ray import s3_filesystem
from onbrand.training.ray.s3_filesystem import RunFiles, run_filesystem
from tests.s3.ceph import CephS3

JOB = str(uuid.UUID(int=7, version=4))
RUN = f"run-files/all/acme/{JOB}"


@pytest.fixture(scope="module")
def issuer(s3_server: CephS3, tmp_path_factory: pytest.TempPathFactory) -> CredentialIssuer:
    key, secret = s3_server.user("platform-of-files")
    made = CredentialIssuer.from_settings(
        Settings(
            data_dir=tmp_path_factory.mktemp("data"),
            run_storage="s3://run-files/all",
            s3_endpoint=s3_server.endpoint,
            s3_access_key=key,
            s3_secret_key=secret,
            s3_role_arn=s3_server.role("files", "platform-of-files", ["s3:*"]),
        )
    )
    assert made is not None
    made.check()
    return made


class Platform:
    """Returns credentials as the internal route does, and counts the calls."""

    def __init__(self, issuer: CredentialIssuer) -> None:
        self.issuer, self.num_asked, self.life = issuer, 0, timedelta(minutes=15)

    def credentials(self) -> Any:
        self.num_asked += 1
        return self.issuer.issue("acme", JOB).model_copy(update={"expires_at": datetime.now(UTC) + self.life})


@pytest.fixture
def platform(issuer: CredentialIssuer, monkeypatch: pytest.MonkeyPatch) -> Platform:
    told = Platform(issuer)
    monkeypatch.setattr(SystemClient, "credentials", lambda client: told.credentials())
    return told


@pytest.fixture
def tickets(tmp_path: Path) -> FileTickets:
    (tmp_path / "ticket").write_text("the-token")
    return FileTickets(tmp_path)


@pytest.fixture
def files(platform: Platform, tickets: FileTickets) -> pyarrow.fs.PyFileSystem:
    made = run_filesystem(tickets, "http://test")
    made.delete_dir(RUN)
    return made


def write(files: pyarrow.fs.PyFileSystem, path: str, data: bytes) -> None:
    with files.open_output_stream(path) as stream:
        stream.write(data)


def test_what_is_written_is_read(files: pyarrow.fs.PyFileSystem) -> None:
    write(files, f"{RUN}/a", b"some bytes")
    with files.open_input_stream(f"{RUN}/a") as stream:
        assert stream.read() == b"some bytes"
    with files.open_input_file(f"{RUN}/a") as file:
        assert (file.size(), file.read_at(5, 5)) == (10, b"bytes")


def test_an_empty_file_is_a_file(files: pyarrow.fs.PyFileSystem) -> None:
    write(files, f"{RUN}/empty", b"")
    assert files.get_file_info(f"{RUN}/empty").size == 0


def test_a_checkpoints_folder_goes_there_and_back(files: pyarrow.fs.PyFileSystem, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"x" * 3_000_000)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "state.json").write_text("{}")
    files.create_dir(f"{RUN}/checkpoint_1")
    pyarrow.fs.copy_files(str(tmp_path), f"{RUN}/checkpoint_1", destination_filesystem=files, chunk_size=2**20)
    back = tmp_path / "back"
    back.mkdir()
    pyarrow.fs.copy_files(f"{RUN}/checkpoint_1", str(back), source_filesystem=files)
    assert (back / "state.safetensors").read_bytes() == b"x" * 3_000_000
    assert (back / "deep" / "state.json").read_text() == "{}"


def test_a_large_file_goes_in_parts_and_arrives_whole(
    files: pyarrow.fs.PyFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_filesystem, "PART_BYTES", 5 * 2**20)
    data = bytes(range(256)) * (11 * 2**12)
    write(files, f"{RUN}/large", data)
    with files.open_input_stream(f"{RUN}/large") as stream:
        assert stream.read() == data


def test_files_folders_and_what_is_not_there_are_told_apart(files: pyarrow.fs.PyFileSystem) -> None:
    write(files, f"{RUN}/folder/file", b"1")
    write(files, f"{RUN}/folder-of-another-name", b"1")
    kinds = {name: files.get_file_info(f"{RUN}/{name}").type for name in ("folder/file", "folder", "none", "fold")}
    wanted = {"folder/file": FileType.File, "folder": FileType.Directory, "none": FileType.NotFound}
    assert kinds == wanted | {"fold": FileType.NotFound}
    assert files.get_file_info(RUN).type == FileType.Directory


def test_a_folder_is_listed_with_and_without_what_is_below(files: pyarrow.fs.PyFileSystem) -> None:
    for name in ("a", "b/c", "b/d/e"):
        write(files, f"{RUN}/{name}", b"1")
    near = {info.path: info.type for info in files.get_file_info(FileSelector(RUN))}
    assert near == {f"{RUN}/a": FileType.File, f"{RUN}/b": FileType.Directory}
    deep = {info.path.removeprefix(f"{RUN}/") for info in files.get_file_info(FileSelector(RUN, recursive=True))}
    assert deep == {"a", "b", "b/c", "b/d", "b/d/e"}
    assert files.get_file_info(FileSelector(f"{RUN}/none", allow_not_found=True)) == []
    with pytest.raises(FileNotFoundError):
        files.get_file_info(FileSelector(f"{RUN}/none"))


def test_what_is_deleted_is_gone_and_the_rest_is_not(files: pyarrow.fs.PyFileSystem) -> None:
    for name in ("a/1", "a/2", "b"):
        write(files, f"{RUN}/{name}", b"1")
    files.delete_dir(f"{RUN}/a")
    assert [info.path for info in files.get_file_info(FileSelector(RUN))] == [f"{RUN}/b"]
    files.move(f"{RUN}/b", f"{RUN}/c")
    assert [info.path for info in files.get_file_info(FileSelector(RUN))] == [f"{RUN}/c"]


def test_a_missing_file_is_told_as_such(files: pyarrow.fs.PyFileSystem) -> None:
    with pytest.raises(FileNotFoundError):
        files.open_input_stream(f"{RUN}/none")


@pytest.mark.parametrize("path", [f"run-files/all/globex/{JOB}/x", "run-files/x", "other-bucket/x"])
def test_outside_its_run_nothing_can_be_done(files: pyarrow.fs.PyFileSystem, path: str) -> None:
    with pytest.raises(OSError):
        write(files, path, b"x")
    with pytest.raises(OSError):
        files.get_file_info(path)
    with pytest.raises(OSError):
        files.delete_file(path)


def test_it_travels_without_a_secret_and_is_equal_to_itself(files: pyarrow.fs.PyFileSystem, platform: Platform) -> None:
    write(files, f"{RUN}/a", b"1")
    sent = pickle.dumps(files)
    given = platform.issuer.issue("acme", JOB)
    assert not any(secret in sent for secret in (b"the-token", given.secret_key.encode(), b"aws_secret"))
    there = pickle.loads(sent)  # noqa: S301
    assert there == files
    assert there.get_file_info(f"{RUN}/a").size == 1


def test_credentials_are_asked_for_once_and_again_before_they_end(
    files: pyarrow.fs.PyFileSystem, platform: Platform
) -> None:
    asked = platform.num_asked
    for number in range(3):
        write(files, f"{RUN}/{number}", b"1")
    assert platform.num_asked == asked
    soon = RunFiles(FileTickets(files.handler._tickets.folder), "http://test")
    platform.life = s3_filesystem.RENEW_BEFORE - timedelta(seconds=1)
    for number in range(3):
        soon.get_file_info([f"{RUN}/{number}"])
    assert platform.num_asked == asked + 3


def test_a_job_that_has_ended_gets_none(
    files: pyarrow.fs.PyFileSystem, tickets: FileTickets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(client: SystemClient) -> None:
        raise NotFound("there is no such training job")

    monkeypatch.setattr(SystemClient, "credentials", refuse)
    with pytest.raises(NotFound):
        run_filesystem(tickets, "http://test").get_file_info(f"{RUN}/a")
