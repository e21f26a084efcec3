"""The contract of a store, tested on a local directory and on a real S3."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import httpx
import pytest

from onbrand.config import Settings
from onbrand.errors import ConfigurationError, NotFound, TooLarge
from onbrand.storage import layout
from onbrand.storage.layout import BUCKETS, Key
from onbrand.storage.links import Announced
from onbrand.storage.store import BrandStore, ObjectStore
from tests.s3.ceph import CephS3
from tests.stores import SECRETS, Place, s3_settings

LOGO = layout.training_image("acme", "logo", 1, "png")
SECRET_LOGO = layout.training_image("globex", "logo", 1, "png")


@pytest.fixture(scope="module")
def settings(place: Place) -> Settings:
    return place.settings


@pytest.fixture
def store(place: Place) -> Iterator[ObjectStore]:
    """A store, empty at the start of each test."""
    yield place.store
    place.empty()


@pytest.fixture
def another_process(settings: Settings, store: ObjectStore) -> ObjectStore:
    """The same store, opened a second time."""
    return ObjectStore.from_settings(settings, SECRETS)


@pytest.fixture
def acme(store: ObjectStore) -> BrandStore:
    return store.brand("acme")


@pytest.fixture
def globex(store: ObjectStore) -> Iterator[BrandStore]:
    globex = store.brand("globex")
    globex.write(SECRET_LOGO, b"globex's canary")
    yield globex
    assert globex.read(SECRET_LOGO) == b"globex's canary"


def unchecked_key(bucket: str, name: str) -> Key:
    """A key that bypasses the checks, as hostile code in the process could make it."""
    key = object.__new__(Key)
    object.__setattr__(key, "bucket", bucket)
    object.__setattr__(key, "name", name)
    return key


def attempts(brand: BrandStore, key: Key) -> list[Callable[[], object]]:
    return [
        lambda: brand.read(key),
        lambda: brand.open_stream(key),
        lambda: brand.write(key, b"mine now"),
        lambda: brand.exists(key),
        lambda: brand.size(key),
        lambda: brand.delete(key),
        lambda: brand.link(key, 60),
        lambda: brand.upload_link(key, Announced("image/png", 1), 60),
        lambda: brand.receive(key),
    ]


@pytest.mark.parametrize("bucket", BUCKETS)
def test_what_was_written_is_read_by_another_process(
    acme: BrandStore, another_process: ObjectStore, bucket: layout.Bucket
) -> None:
    key = Key(bucket, "acme/notes-1.txt")
    acme.write(key, b"\x00bytes\xff")
    assert another_process.brand("acme").read(key) == b"\x00bytes\xff"


def test_a_missing_object_is_not_found(acme: BrandStore) -> None:
    assert not acme.exists(LOGO)
    for attempt in (acme.read, acme.open_stream, acme.size):
        with pytest.raises(NotFound):
            attempt(LOGO)


def test_a_folder_is_no_object(acme: BrandStore) -> None:
    acme.write(layout.sample_image("acme", "job-1", layout.Drawn("adapter", 100, 0), "png"), b"sample")
    folder = Key("generated-content", "acme/samples")
    assert not acme.exists(folder)
    with pytest.raises(NotFound):
        acme.read(folder)


def test_a_write_replaces_the_whole_object(acme: BrandStore) -> None:
    acme.write(LOGO, b"a long first version")
    acme.write(LOGO, b"short")
    assert acme.read(LOGO) == b"short"
    assert acme.size(LOGO) == 5


def test_an_empty_object_is_an_object(acme: BrandStore) -> None:
    acme.write(LOGO, b"")
    assert acme.exists(LOGO)
    assert acme.read(LOGO) == b""


def test_a_stream_gives_the_object_in_pieces(acme: BrandStore) -> None:
    acme.write(LOGO, b"0123456789")
    with acme.open_stream(LOGO) as stream:
        assert [stream.read(4), stream.read(4), stream.read(4)] == [b"0123", b"4567", b"89"]


def test_an_object_larger_than_asked_for_is_not_read(acme: BrandStore) -> None:
    acme.write(LOGO, b"0123456789")
    with pytest.raises(TooLarge, match="at most 9"):
        acme.read(LOGO, max_bytes=9)


def test_an_object_of_several_parts_arrives_whole(acme: BrandStore) -> None:
    data = os.urandom(1024) * (60 * 1024)
    key = layout.model_file("acme", "flux", 1)
    acme.write(key, data)
    assert acme.read(key) == data


def test_a_deletion_can_be_repeated(acme: BrandStore) -> None:
    acme.write(LOGO, b"x")
    acme.delete(LOGO)
    acme.delete(LOGO)
    assert not acme.exists(LOGO)


def test_a_listing_is_sorted_and_holds_only_the_prefix(acme: BrandStore) -> None:
    for number in (10, 2, 1):
        acme.write(layout.training_image("acme", "logo", number, "png"), b"x")
    acme.write(layout.training_image("acme", "product", 1, "jpg"), b"x")
    names = [key.name for key in acme.list("training-data", "logo-")]
    assert names == ["acme/logo-001.png", "acme/logo-002.png", "acme/logo-010.png"]


def test_a_listing_enters_folders(acme: BrandStore) -> None:
    sample = layout.sample_image("acme", "job-1", layout.Drawn("adapter", 100, 0), "png")
    picture = layout.generated_image("acme", date(2024, 12, 4), 1, "jpg")
    acme.write(sample, b"x")
    acme.write(picture, b"x")
    assert acme.list("generated-content") == [picture, sample]
    assert acme.list("generated-content", "samples/job-1/") == [sample]
    assert acme.list("generated-content", "samples/job-2/") == []


def test_a_listing_never_shows_a_brand_whose_name_begins_alike(store: ObjectStore) -> None:
    store.brand("acme-labs").write(layout.training_image("acme-labs", "logo", 1, "png"), b"x")
    assert store.brand("acme").list("training-data") == []


def test_a_listing_shows_at_once_what_another_process_wrote(another_process: ObjectStore, acme: BrandStore) -> None:
    assert acme.list("training-data") == []
    another_process.brand("acme").write(LOGO, b"x")
    assert acme.list("training-data") == [LOGO]


@pytest.mark.parametrize(
    "name",
    [
        "globex/logo-001.png",
        "acme/../globex/logo-001.png",
        "acme/./../globex/logo-001.png",
        "acme//logo-001.png",
        "acme/./logo-001.png",
        "/acme/logo-001.png",
        "../training-data/globex/logo-001.png",
        "acme/..",
        "acme/",
        "acme",
        "",
        "acme/logo\x00.png",
        "acme/logo\n.png",
        "acme/\u202egnp.exe",
        "acme/logo-001.png?versionId=1",
        "acme/%2e%2e/globex/logo-001.png",
        "acme\\..\\globex\\logo-001.png",
        "acme/Logo-001.png",
        "ACME/logo-001.png",
        "acme/*",
        "acme-labs/../globex/logo-001.png",
        "eu-west-1/globex/logo-001.png",
        ".drafts/0",
        ".probe",
        "globex/incoming/1",
        "acme/incoming/../../globex/incoming/1",
        "acme/incoming//1",
    ],
)
def test_a_key_that_is_not_plainly_the_brands_own_is_not_found(acme: BrandStore, globex: BrandStore, name: str) -> None:
    for attempt in attempts(acme, unchecked_key("training-data", name)):
        with pytest.raises(NotFound, match=r"^there is no such object$"):
            attempt()


@pytest.mark.parametrize("bucket", ["training-data/globex", "..", "", "secrets", "models/../training-data"])
def test_a_bucket_of_another_name_is_not_found(acme: BrandStore, bucket: str) -> None:
    for attempt in attempts(acme, unchecked_key(bucket, "acme/logo-001.png")):
        with pytest.raises(NotFound):
            attempt()


def test_another_brands_object_and_a_missing_one_get_the_same_answer(acme: BrandStore, globex: BrandStore) -> None:
    def answer(key: Key) -> str:
        with pytest.raises(NotFound) as told:
            acme.read(key)
        return repr((told.value.message, told.value.fields))

    assert answer(SECRET_LOGO) == answer(layout.training_image("acme", "logo", 999, "png"))


def test_two_regions_of_one_brand_are_two_places(store: ObjectStore) -> None:
    home, abroad = store.brand("acme"), store.brand("acme", region="eu-west-1")
    abroad.write(LOGO, b"stays in Europe")
    assert not home.exists(LOGO)
    assert home.list("training-data") == []
    assert abroad.list("training-data") == [LOGO]
    assert store.brand("acme", region="us-east-1").list("training-data") == []


def test_readers_see_the_old_or_the_new_bytes_and_nothing_between(acme: BrandStore) -> None:
    versions = [bytes([letter]) * 200_000 for letter in b"ab"]
    acme.write(LOGO, versions[0])
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(acme.read(LOGO))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(20):
        acme.write(LOGO, versions[turn % 2])
    stop.set()
    reader.join(30)
    assert seen
    assert seen <= set(versions)


# What only one of the two can do wrong.


def test_s3_keeps_the_content_type(s3_server: CephS3, tmp_path: Path) -> None:
    store = ObjectStore.from_settings(s3_settings(s3_server, tmp_path), SECRETS)
    store.check()
    store.brand("acme").write(LOGO, b"x", "image/png")
    answer = httpx.get(store.brand("acme").link(LOGO, 60))
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"s3_secret_key": "wrong" * 8}, "refuses these credentials"),
        ({"s3_endpoint": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
)
def test_s3_that_cannot_be_used_is_a_clear_error_at_the_start(
    s3_server: CephS3, tmp_path: Path, changes: dict[str, str], remedy: str
) -> None:
    store = ObjectStore.from_settings(s3_settings(s3_server, tmp_path, **changes), SECRETS)
    with pytest.raises(ConfigurationError, match=remedy) as told:
        store.check()
    assert told.value.param == "storage_url"
    assert "wrongwrong" not in str(told.value)


def test_s3_user_who_may_make_no_bucket_is_told_so(s3_server: CephS3, tmp_path: Path) -> None:
    name = f"u{uuid.uuid4().hex[:8]}"
    access_key, secret_key = s3_server.user(name, may_make_buckets=False)
    settings = s3_settings(s3_server, tmp_path, s3_access_key=access_key, s3_secret_key=secret_key)
    with pytest.raises(ConfigurationError, match="training-data"):
        ObjectStore.from_settings(settings, SECRETS).check()
