"""Failures of a local directory: links, dots, a full or read-only disk, and a crash during a write."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from onbrand.config import Settings
from onbrand.errors import ConfigurationError, NotFound, StorageError
from onbrand.secrets_file import Secrets
from onbrand.storage import backends, layout
from onbrand.storage.layout import Key
from onbrand.storage.store import BrandStore, ObjectStore

SECRETS = Secrets(tokens="t" * 64, tickets="k" * 64, links="l" * 64, claims="c" * 64)
LOGO = layout.training_image("acme", "logo", 1, "png")


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.from_settings(Settings(data_dir=tmp_path), SECRETS)


@pytest.fixture
def acme(store: ObjectStore) -> BrandStore:
    store.check()
    return store.brand("acme")


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_object_lies_where_the_layout_says(acme: BrandStore, objects: Path) -> None:
    acme.write(LOGO, b"x")
    assert files_below(objects) == ["training-data/acme/logo-001.png"]


def test_nobody_else_on_the_machine_may_read_an_object(acme: BrandStore, objects: Path) -> None:
    acme.write(LOGO, b"x")
    path = objects / "training-data/acme/logo-001.png"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_link_to_another_brands_file_is_not_followed(acme: BrandStore, store: ObjectStore, objects: Path) -> None:
    secret = layout.training_image("globex", "logo", 1, "png")
    store.brand("globex").write(secret, b"canary")
    (objects / "training-data/acme").mkdir()
    os.symlink(objects / "training-data/globex/logo-001.png", objects / "training-data/acme/logo-001.png")
    for attempt in (
        acme.read,
        acme.open_stream,
        acme.exists,
        acme.size,
        acme.delete,
        lambda key: acme.write(key, b"!"),
    ):
        with pytest.raises(NotFound):
            attempt(LOGO)
    assert acme.list("training-data") == []
    assert store.brand("globex").read(secret) == b"canary"


def test_a_brands_folder_that_links_to_another_brands_is_not_entered(
    acme: BrandStore, store: ObjectStore, objects: Path
) -> None:
    store.brand("globex").write(layout.training_image("globex", "logo", 1, "png"), b"canary")
    os.symlink(objects / "training-data/globex", objects / "training-data/acme")
    with pytest.raises(NotFound):
        acme.read(LOGO)
    with pytest.raises(NotFound):
        acme.write(layout.training_image("acme", "logo", 2, "png"), b"!")
    assert acme.list("training-data") == []
    assert files_below(objects) == ["training-data/globex/logo-001.png"]


def test_a_link_to_another_file_of_the_same_brand_is_not_followed(acme: BrandStore, objects: Path) -> None:
    acme.write(LOGO, b"x")
    os.symlink(objects / "training-data/acme/logo-001.png", objects / "training-data/acme/logo-002.png")
    with pytest.raises(NotFound):
        acme.read(layout.training_image("acme", "logo", 2, "png"))


def test_a_data_directory_behind_a_link_is_used(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "home")
    store = ObjectStore.from_settings(Settings(data_dir=tmp_path / "home"), SECRETS)
    store.check()
    store.brand("acme").write(LOGO, b"x")
    assert store.brand("acme").read(LOGO) == b"x"


def test_a_folder_with_spaces_and_percent_signs_is_used(tmp_path: Path) -> None:
    url = (tmp_path / "my objects 100%").as_uri()
    store = ObjectStore.from_settings(Settings(data_dir=tmp_path, storage_url=url), SECRETS)
    store.check()
    assert (tmp_path / "my objects 100%").is_dir()


def test_what_is_not_ours_is_not_listed(acme: BrandStore, objects: Path) -> None:
    acme.write(LOGO, b"x")
    (objects / "training-data/acme/.DS_Store").write_bytes(b"x")
    (objects / "training-data/acme/Odd Name.PNG").write_bytes(b"x")
    assert acme.list("training-data") == [LOGO]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "disk is full; free space"), (errno.EROFS, "read-only"), (errno.EACCES, "rights")],
)
def test_a_write_that_fails_leaves_the_old_object_and_no_draft(
    acme: BrandStore, objects: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    acme.write(LOGO, b"old")
    real_write = backends._write_synced

    def fails_half_way(path: Path, data: bytes) -> None:
        real_write(path, data[: len(data) // 2])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(backends, "_write_synced", fails_half_way)
    with pytest.raises(StorageError, match=remedy) as told:
        acme.write(LOGO, b"new and longer")
    assert str(objects) not in str(told.value)
    assert acme.read(LOGO) == b"old"
    assert files_below(objects) == ["training-data/acme/logo-001.png"]


def test_a_really_full_disk_leaves_nothing_half_written(acme: BrandStore, objects: Path) -> None:
    """The kernel's own refusal, by a limit on a file's size in a process of its own."""
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from onbrand.config import Settings\nfrom onbrand.secrets_file import Secrets\n"
        "from onbrand.errors import StorageError\n"
        "from onbrand.storage import layout\n"
        "from onbrand.storage.store import ObjectStore\n"
        "secrets = Secrets(tokens='', tickets='', links='', claims='')\n"
        "store = ObjectStore.from_settings(Settings(data_dir=Path(sys.argv[1])), secrets)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    store.brand('acme').write(layout.training_image('acme', 'logo', 1, 'png'), b'x' * 100_000)\n"
        "except StorageError as problem:\n"
        "    print(problem.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(objects.parent)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": "platform"},
    )
    assert done.stdout.strip() == "storage_error"
    assert files_below(objects) == []


def test_a_folder_that_cannot_be_made_is_a_clear_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "objects").write_text("a file in the way")
    store = ObjectStore.from_settings(Settings(data_dir=tmp_path), SECRETS)
    with pytest.raises(ConfigurationError, match="cannot be written") as told:
        store.check()
    assert told.value.param == "storage_url"


def test_a_file_where_a_folder_should_be_is_told_and_kept(acme: BrandStore, objects: Path) -> None:
    (objects / "training-data/acme").write_text("in the way")
    with pytest.raises(StorageError, match="move it away"):
        acme.write(LOGO, b"x")
    assert files_below(objects) == ["training-data/acme"]


@pytest.mark.skipif(os.geteuid() == 0, reason="rights do not bind root")
def test_a_folder_without_rights_is_a_clear_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir(mode=0o500)
    store = ObjectStore.from_settings(Settings(data_dir=tmp_path), SECRETS)
    with pytest.raises(ConfigurationError, match="rights"):
        store.check()


def test_the_check_leaves_no_object(acme: BrandStore, objects: Path) -> None:
    assert files_below(objects) == []


def test_drafts_of_dead_processes_are_swept_and_young_ones_are_not(store: ObjectStore, objects: Path) -> None:
    store.check()
    old, young = objects / ".drafts/old", objects / ".drafts/young"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (0, 0))
    store.check()
    assert files_below(objects) == [".drafts/young"]


@pytest.mark.parametrize(
    "url",
    [
        "objects",
        "file://host/objects",
        "file:relative",
        "http://example.test/",
        "s3://bucket/folder",
        "s3://Odd_Name",
        "",
    ],
)
def test_an_address_that_is_no_store_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="ONBRAND_STORAGE_URL"):
        backends.open_backend(Settings(data_dir=tmp_path, storage_url=url or "memory://"), SECRETS)


def test_a_key_made_by_hand_is_checked_again(acme: BrandStore) -> None:
    key = object.__new__(Key)
    object.__setattr__(key, "bucket", "training-data")
    object.__setattr__(key, "name", "acme/../../outside.txt")
    with pytest.raises(NotFound):
        acme.write(key, b"!")


def test_the_path_is_checked_even_where_the_pattern_is_not(store: ObjectStore, objects: Path) -> None:
    """The second lock alone: what the backend refuses if the first lock were taken away."""
    store.check()
    for name in ("acme/../globex/x.png", "acme//x.png", "acme/./x.png", "acme/../../../../etc/passwd", "globex/x.png"):
        with pytest.raises(NotFound):
            store.backend.must_lie_in("training-data", name, "acme")
    store.backend.must_lie_in("training-data", "acme/x.png", "acme")
