"""The signed parts of a presigned PUT, and the stores that are refused because their links allow unsigned parts.

tests/integration/test_s3_start.py uses a real S3. The store here checks no signature and obeys every request.
"""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import httpx
import pytest

from onbrand.config import Settings
from onbrand.errors import ConfigurationError, StorageError
from onbrand.secrets_file import Secrets
from onbrand.storage.backends import open_backend
from onbrand.storage.layout import Bucket, Key
from onbrand.storage.links import Announced, UploadLink
from onbrand.storage.s3 import S3Backend
from onbrand.storage.s3_check import check_bucket
from onbrand.storage.s3_upload_choice import decide
from onbrand.storage.s3_upload_methods import Way, upload_put

WHAT = Announced("image/png", 18, "a" * 64)


@pytest.fixture
def backend(tmp_path: Path) -> S3Backend:
    """A backend that signs without a request."""
    settings = Settings(
        data_dir=tmp_path, storage_url="s3://t-", s3_endpoint="http://127.0.0.1:9", s3_access_key="a", s3_secret_key="b"
    )
    return cast(S3Backend, open_backend(settings, Secrets(tokens="t", tickets="k", links="l", claims="00" * 32)))


@pytest.mark.parametrize("is_once", [True, False])
@pytest.mark.parametrize("sha256", ["a" * 64, None])
def test_every_header_of_a_presigned_put_is_signed(backend: S3Backend, is_once: bool, sha256: str | None) -> None:
    announced = Announced("image/png", 18, sha256)
    link = backend.upload_link_by(Way("PUT", is_once), "training-data", "acme/incoming/1", announced, 60)
    query = httpx.URL(link.url).params
    wanted = {"content-length", "content-type"}
    wanted |= {"x-amz-checksum-sha256"} if sha256 else set()
    wanted |= {"if-none-match"} if is_once else set()
    assert {name.lower() for name in link.headers} == wanted
    assert set(query["X-Amz-SignedHeaders"].split(";")) == wanted | {"host"}
    assert query["X-Amz-Expires"] == "60"


class _NoParts:
    def call_s3(self, *asked: object, **more: object) -> Any:
        raise StorageError("nothing is written in parts here")


class Obedient:
    """A store that checks no signature and obeys every request."""

    endpoint = "http://obedient"

    def __init__(self, url: str) -> None:
        self._url = url
        self.fs = _NoParts()

    def root(self, bucket: str) -> str:
        return bucket

    def address(self, bucket: str, name: str) -> str:
        return f"{self._url}/{bucket}/{name}"

    def read(self, bucket: Bucket, name: str) -> bytes:
        return httpx.get(self.address(bucket, name)).content

    def size(self, bucket: Bucket, name: str) -> int:
        return len(self.read(bucket, name))

    def write(self, bucket: Bucket, name: str, data: bytes, content_type: str) -> None:
        httpx.put(self.address(bucket, name), content=data)

    def exists(self, bucket: Bucket, name: str) -> bool:
        return httpx.get(self.address(bucket, name)).is_success

    def delete(self, bucket: Bucket, name: str) -> None:
        httpx.delete(self.address(bucket, name))

    def names(self, bucket: Bucket, folder: str) -> Iterator[str]:
        yield from [f"{folder}/one"]

    def link(self, key: Key, name: str, seconds: int) -> str:
        return f"{self.address(key.bucket, name)}?signature=1"

    def make_if_missing(self, bucket: Bucket) -> None: ...

    def upload_link_by(self, way: Way, bucket: Bucket, name: str, announced: Announced, seconds: int) -> UploadLink:
        if way.method == "POST":
            return upload_put(f"{self._url}/forms", announced, way, seconds)
        return upload_put(f"{self.address(bucket, name)}?signature=1", announced, way, seconds)


class _Handler(BaseHTTPRequestHandler):
    objects: dict[str, bytes]
    checks_headers: bool

    def do_GET(self) -> None:
        data = self.objects.get(self.path.split("?")[0])
        self._say(404 if data is None else 200, data or b"")

    def do_DELETE(self) -> None:
        self.objects.pop(self.path.split("?")[0], None)
        self._say(204, b"")

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/forms" or (self.checks_headers and "signature" in self.path and not self._is_as_announced()):
            self._say(403, b"")
            return
        source = self.headers.get("x-amz-copy-source")
        self.objects[self.path.split("?")[0]] = self.objects[source] if source else data
        self._say(200, b"")

    def _is_as_announced(self) -> bool:
        import base64
        import hashlib

        said = base64.b64encode(hashlib.sha256(b"what was announced").digest()).decode()
        wanted = {"content-type": "image/png", "content-length": "18", "x-amz-checksum-sha256": said}
        return all(self.headers.get(name) == value for name, value in wanted.items())

    def _say(self, status: int, data: bytes) -> None:
        self.send_response_only(status)
        self.send_header("content-disposition", "attachment")
        if status != 204:
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if status != 204:
            self.wfile.write(data)


@pytest.fixture(params=[True, False], ids=["keeps to signed headers", "keeps to nothing"])
def obedient(request: pytest.FixtureRequest) -> Iterator[tuple[Obedient, bool]]:
    class Handler(_Handler):
        objects, checks_headers = {}, request.param

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Obedient(f"http://127.0.0.1:{server.server_address[1]}"), request.param
        finally:
            server.shutdown()
            thread.join()


def test_a_store_that_copies_for_whoever_asks_takes_no_put(obedient: tuple[Obedient, bool]) -> None:
    store, keeps_to_headers = obedient
    said = "copies what x-amz-copy-source names" if keeps_to_headers else "takes more bytes, which nobody signed"
    with pytest.raises(ConfigurationError, match=said):
        decide(store, "auto")


def test_a_bucket_that_everybody_reads_is_not_used(obedient: tuple[Obedient, bool]) -> None:
    store, _ = obedient
    with pytest.raises(ConfigurationError, match="everybody may read it without a link"):
        check_bucket(store, "training-data")
