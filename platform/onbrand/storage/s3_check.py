"""Tests of a bucket at start: every operation that Onbrand uses. Objects written by the tests are removed."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx

from onbrand.errors import ConfigurationError, OnbrandError, StorageError
from onbrand.storage.fsspec_backend import as_storage_error
from onbrand.storage.layout import Bucket, Key
from onbrand.storage.s3_clients import put_in_parts, stranger

if TYPE_CHECKING:
    from onbrand.storage.s3 import S3Backend

PROBES = ".probe"
"""The folder of test objects; no brand's name begins with a dot."""
_DATA = b"onbrand"
_SECONDS = 60
_REMEDY = "check ONBRAND_STORAGE_URL, ONBRAND_S3_ENDPOINT, ONBRAND_S3_ACCESS_KEY and ONBRAND_S3_SECRET_KEY"


def check_bucket(store: S3Backend, bucket: Bucket) -> None:
    """Test all operations that Onbrand uses. A failure raises ConfigurationError with a one-line message."""
    name = f"{PROBES}/{randomness.token_hex(8)}/one"
    with _explained(store, bucket, "it is missing and cannot be made", "make it, or give the key s3:CreateBucket"):
        store.make_if_missing(bucket)
    try:
        for what, remedy, attempt in _STEPS:
            with _explained(store, bucket, f"{what} failed", remedy):
                attempt(store, bucket, name)
    finally:
        for left in (name, f"{name}-parts"):
            with suppress(OnbrandError):
                store.delete(bucket, left)


def must_be(fact: bool, otherwise: str) -> None:
    """Raise StorageError with the text `otherwise` unless `fact` holds."""
    if not fact:
        raise StorageError(otherwise, remedy=otherwise)


def _read(store: S3Backend, bucket: Bucket, name: str) -> None:
    must_be(store.read(bucket, name) == _DATA, "it gave other bytes than were written")
    must_be(store.size(bucket, name) == len(_DATA), "it says another size than was written")


def _list(store: S3Backend, bucket: Bucket, name: str) -> None:
    listed = list(store.names(bucket, name.rpartition("/")[0]))
    must_be(listed == [name], "the list by prefix lacks what was just written")


def _link(store: S3Backend, bucket: Bucket, name: str) -> None:
    """A link works without credentials and keeps its type and disposition; without its signature access is refused."""
    url = store.link(Key(bucket, "probe-of-onbrand/probe.txt"), name, _SECONDS)
    with stranger() as client:
        answer = client.get(url)
        must_be(answer.status_code == 200 and answer.content == _DATA, f"it answered {answer.status_code} to a link")
        said = answer.headers.get("content-disposition", "")
        must_be(said.startswith("attachment"), "it ignores the type and disposition that a link says")
        bare = client.get(str(httpx.URL(url).copy_with(query=None)))
        must_be(not bare.is_success, "everybody may read it without a link; block public access")


def _write_in_parts(store: S3Backend, bucket: Bucket, name: str) -> None:
    """A multipart upload, as s3fs does for large objects."""
    where: dict[str, Any] = {"Bucket": store.root(bucket), "Key": f"{name}-parts"}
    with as_storage_error("written"):
        put_in_parts(store.fs.call_s3, where, [_DATA])
    must_be(store.read(bucket, f"{name}-parts") == _DATA, "it gave other bytes than were written")


def _delete(store: S3Backend, bucket: Bucket, name: str) -> None:
    for each in (name, f"{name}-parts"):
        store.delete(bucket, each)
        must_be(not store.exists(bucket, each), "an object that was deleted is still there")


_STEPS: tuple[tuple[str, str, Callable[[S3Backend, Bucket, str], None]], ...] = (
    ("writing an object", "give the key s3:PutObject", lambda store, *where: store.write(*where, _DATA, "text/plain")),
    ("reading an object", "give the key s3:GetObject", _read),
    ("listing by prefix", "give the key s3:ListBucket", _list),
    ("getting an object by a presigned link", "let ONBRAND_S3_ENDPOINT be an address that callers reach too", _link),
    ("writing in parts", "give the key s3:PutObject and s3:AbortMultipartUpload", _write_in_parts),
    ("deleting an object", "give the key s3:DeleteObject", _delete),
)


@contextmanager
def _explained(store: S3Backend, bucket: Bucket, failed: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (OnbrandError, httpx.HTTPError) as problem:
        known = problem.fields.get("remedy", problem.message) if isinstance(problem, OnbrandError) else None
        why = known or f"it cannot be reached ({type(problem).__name__})"
        raise ConfigurationError(
            f"the bucket {store.root(bucket)} at {store.endpoint} cannot be used: {failed} ({why}); {remedy}, "
            f"or {_REMEDY}",
            param="storage_url",
        ) from None
