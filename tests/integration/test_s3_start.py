"""The check of an S3 at the start: it tries every operation in use, names a failure in one line, and leaves nothing."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import httpx
import pytest

from onbrand.errors import ConfigurationError, Conflict, StorageError
from onbrand.storage.layout import BUCKETS, incoming_file
from onbrand.storage.links import Announced
from onbrand.storage.s3 import S3Backend
from onbrand.storage.s3_upload_methods import Way
from onbrand.storage.store import ObjectStore
from tests.s3.ceph import CephS3
from tests.s3.gateway import Manners, gateway
from tests.stores import SECRETS, s3_settings

INCOMING = incoming_file("training-data", "acme", "0f1e2d3c-0000-4000-8000-000000000001")
WHAT = Announced("image/png", 4)
Opened = Callable[..., ObjectStore]


@pytest.fixture(scope="module")
def buckets(s3_server: CephS3, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Buckets that are there already, for all stores of this file."""
    settings = s3_settings(s3_server, tmp_path_factory.mktemp("data"))
    ObjectStore.from_settings(settings, SECRETS).check()
    return settings.objects_url


@pytest.fixture
def store_of(s3_server: CephS3, buckets: str, tmp_path: Path) -> Iterator[Opened]:
    """Opens a store whose S3 has these manners, with these changes of the settings."""
    with ExitStack() as running:

        def open_store(manners: Manners | None = None, **changes: object) -> ObjectStore:
            endpoint = running.enter_context(gateway(s3_server.endpoint, manners or Manners(takes_forms=True)))
            settings = s3_settings(s3_server, tmp_path, **{"s3_endpoint": endpoint, "storage_url": buckets, **changes})
            return ObjectStore.from_settings(settings, SECRETS)

        yield open_store


def way_of(store: ObjectStore) -> Way:
    return cast(S3Backend, store.backend).way()


def left_in(store: ObjectStore) -> list[str]:
    return [name for bucket in BUCKETS for name in cast(S3Backend, store.backend).names(bucket, "")]


@pytest.mark.parametrize("region", ["auto", "fr-par", "nyc3", "garage", "us-east-1-gov", "RegionOne"])
def test_a_store_of_any_region_is_used(store_of: Opened, region: str) -> None:
    store = store_of(region=region)
    store.check()
    link = store.brand("acme").upload_link(INCOMING, WHAT, 60)
    assert httpx.post(link.url, data=dict(link.fields), files={"file": b"sent"}).is_success
    assert store.brand("acme", region).read(INCOMING) == b"sent"
    store.brand("acme").delete(INCOMING)


def test_a_region_that_is_none_is_said_by_its_setting(s3_server: CephS3, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="ONBRAND_REGION"):
        ObjectStore.from_settings(s3_settings(s3_server, tmp_path, region="eu west"), SECRETS)


@pytest.mark.parametrize(
    ("manners", "way"),
    [
        (Manners(takes_forms=True), Way("POST")),
        (Manners(takes_forms=True, is_strict=False), Way("POST")),
        (Manners(), Way("PUT", is_once=True)),
        (Manners(refuses=("if-none-match",)), Way("PUT", is_once=False)),
    ],
    ids=["forms", "forms that obey nobody", "no forms", "no forms and no conditions"],
)
def test_the_start_finds_the_way_in_and_leaves_nothing(store_of: Opened, manners: Manners, way: Way) -> None:
    store = store_of(manners)
    before = left_in(store)
    store.check()
    assert way_of(store) == way
    assert left_in(store) == before


@pytest.mark.parametrize(("wanted", "method"), [("form", "POST"), ("put", "PUT"), ("none", None)])
def test_a_setting_chooses_the_way(store_of: Opened, wanted: str, method: str | None) -> None:
    store = store_of(s3_uploads=wanted)
    store.check()
    assert way_of(store).method == method


@pytest.mark.parametrize(
    ("manners", "said"),
    [
        (Manners(is_strict=False), "POST form: the store answered 501.*PUT: the store copies what x-amz-copy-source"),
        (Manners(is_strict=False, drops=("x-amz-copy-source",)), "PUT: the store obeys x-amz-acl"),
        (Manners(is_strict=False, drops=("x-amz-copy-source", "x-amz-acl")), "PUT: the store obeys x-amz-grant-read"),
        (Manners(refuses=("PUT /",)), "cannot be used: writing an object failed.*s3:PutObject"),
        (Manners(refuses=("content-length%3B",)), "POST form: .*501.*PUT: the store answered 501"),
        (Manners(refuses=("GET /",)), "reading an object failed.*s3:GetObject"),
        (Manners(refuses=("list-type",)), "listing by prefix failed.*s3:ListBucket"),
        (Manners(refuses=("response-content",)), "by a presigned link failed.*501.*ONBRAND_S3_ENDPOINT"),
        (Manners(refuses=("uploads",)), "writing in parts failed.*NotImplemented"),
        (Manners(refuses=("partNumber",)), "writing in parts failed.*NotImplemented"),
        (Manners(refuses=("DELETE /",)), "deleting an object failed.*s3:DeleteObject"),
        (Manners(ignores=("DELETE /",)), "deleting an object failed.*still there"),
        (Manners(refuses=("HEAD /",)), "cannot be used"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_a_store_lacks_is_said_at_the_start_in_one_line(store_of: Opened, manners: Manners, said: str) -> None:
    store = store_of(manners)
    with pytest.raises(ConfigurationError, match=said) as told:
        store.check()
    assert "\n" not in told.value.message
    assert str(s3_secret(store)) not in told.value.message


def s3_secret(store: ObjectStore) -> object:
    return cast(S3Backend, store.backend).fs.secret


def test_what_was_tried_is_removed_also_when_it_fails(store_of: Opened) -> None:
    for manners in (Manners(refuses=("uploads",)), Manners(is_strict=False)):
        store = store_of(manners)
        before = left_in(store)
        with pytest.raises(ConfigurationError):
            store.check()
        assert left_in(store) == before


def test_a_bucket_that_everybody_reads_is_refused(store_of: Opened) -> None:
    store = store_of(storage_url=f"s3://open{uuid.uuid4().hex[:8]}-")
    store.check()
    backend = cast(S3Backend, store.backend)
    anyone = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:GetObject",'
    policy = f'{anyone}"Resource":"arn:aws:s3:::{backend.root("models")}/*"}}]}}'
    backend.fs.call_s3("put_bucket_policy", Bucket=backend.root("models"), Policy=policy)
    with pytest.raises(ConfigurationError, match=r"models .*everybody may read it.*block public access"):
        store.check()


def test_a_store_that_takes_no_files_by_link_says_so(store_of: Opened) -> None:
    store = store_of(s3_uploads="none")
    store.check()
    with pytest.raises(Conflict, match="as a form"):
        store.brand("acme").upload_link(INCOMING, WHAT, 60)


def test_a_way_that_is_not_fit_is_no_way_also_without_a_check(store_of: Opened) -> None:
    """A process that did not make the check finds out for itself; callers learn nothing of the store."""
    store = store_of(Manners(is_strict=False))
    with pytest.raises(StorageError, match="send them to the API") as told:
        store.brand("acme").upload_link(INCOMING, WHAT, 60)
    assert "127.0.0.1" not in told.value.message


def test_a_process_tries_once(store_of: Opened) -> None:
    manners = Manners()
    store = store_of(manners)
    store.check()
    num_asked = len(manners.seen)
    for _ in range(3):
        store.brand("acme").upload_link(INCOMING, WHAT, 60)
    assert len(manners.seen) == num_asked
