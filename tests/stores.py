"""A local directory and a real S3 as stores, and a stranger who holds links to them.

The ingress serves links of the local directory; S3 serves its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from onbrand.api import files, problems
from onbrand.api.http import middleware
from onbrand.config import Settings
from onbrand.secrets_file import Secrets
from onbrand.storage.fsspec_backend import FsspecBackend
from onbrand.storage.layout import BUCKETS
from onbrand.storage.links import UploadLink
from onbrand.storage.store import ObjectStore
from tests.s3.ceph import CephS3

SECRETS = Secrets(tokens="t" * 64, tickets="k" * 64, links="l" * 64, claims="c" * 64)


@dataclass(frozen=True)
class Place:
    """A store, and the client that uses its links."""

    name: str
    settings: Settings
    store: ObjectStore
    stranger: httpx.Client

    def send(self, link: UploadLink, data: bytes, **changed: Any) -> httpx.Response:
        """Send data by an upload link, with `changed` parts: url, method, headers, fields, content_type."""
        url, method = changed.get("url", link.url), changed.get("method", link.method)
        headers = {**link.headers, **changed.get("headers", {})}
        if link.method == "PUT":
            headers["Content-Type"] = changed.get("content_type", headers["Content-Type"])
            headers["Content-Length"] = str(len(data))
            return self.stranger.request(method, url, content=data, headers=headers)
        fields = {**link.fields, **changed.get("fields", {})}
        fields["Content-Type"] = changed.get("content_type", fields["Content-Type"])
        if method == "PUT":
            return self.stranger.request(method, url, content=data, headers=headers)
        return self.stranger.request(method, url, data=fields, files={"file": ("f", data)}, headers=headers)

    def empty(self) -> None:
        """Remove every object."""
        backend = cast(FsspecBackend, self.store.backend)
        for bucket in BUCKETS:
            for name in backend.names(bucket, ""):
                backend.delete(bucket, name)


def s3_settings(server: CephS3, folder: Path, **changes: object) -> Settings:
    """Settings of a separate store in the server: each test has buckets with its own prefix."""
    given = {
        "data_dir": folder,
        "storage_url": f"s3://t{uuid.uuid4().hex[:12]}-",
        "s3_endpoint": server.endpoint,
        "s3_access_key": server.admin[0],
        "s3_secret_key": server.admin[1],
    }
    return Settings(**{**given, **changes})


def settings_of(request: pytest.FixtureRequest, folder: Path, **changes: object) -> Settings:
    """Settings of the store that a fixture's parameter names: `local`, `s3`, or `s3-put` (which takes no forms)."""
    if request.param == "local":
        return Settings(data_dir=folder, **changes)  # type: ignore[arg-type]
    server = request.getfixturevalue("s3_server")
    if request.param == "s3-put":
        changes = {"s3_endpoint": request.getfixturevalue("s3_without_forms"), **changes}
    return s3_settings(server, folder, **changes)


@pytest.fixture(scope="module", params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Each place in turn."""
    with open_place(request.param, settings_of(request, tmp_path_factory.mktemp("data"))) as opened:
        yield opened


@pytest.fixture
def local_place(tmp_path: Path) -> Iterator[Place]:
    """The local directory, below `tmp_path`."""
    with open_place("local", Settings(data_dir=tmp_path)) as opened:
        yield opened


@pytest.fixture
def put_place(request: pytest.FixtureRequest, s3_server: CephS3, tmp_path: Path) -> Iterator[Place]:
    """The real S3 behind a gateway that takes no forms."""
    endpoint = request.getfixturevalue("s3_without_forms")
    with open_place("s3-put", s3_settings(s3_server, tmp_path, s3_endpoint=endpoint)) as opened:
        yield opened


@pytest.fixture
def s3_place(s3_server: CephS3, tmp_path: Path) -> Iterator[Place]:
    """The real S3."""
    with open_place("s3", s3_settings(s3_server, tmp_path)) as opened:
        yield opened


@contextmanager
def open_place(name: str, settings: Settings) -> Iterator[Place]:
    """Open and check a store, with a client for its links."""
    store = ObjectStore.from_settings(settings, SECRETS)
    store.check()
    with _stranger(name, settings, store) as stranger:
        yield Place(name, settings, store, stranger)


def _stranger(name: str, settings: Settings, store: ObjectStore) -> httpx.Client:
    if name != "local":
        return httpx.Client(timeout=10)
    app = FastAPI()
    problems.install(app)
    app.include_router(files.router)
    app.state.onbrand = SimpleNamespace(settings=settings, secrets=SECRETS, store=store)
    app.add_middleware(middleware.RequestMiddleware, body_limit=lambda method, path: 2**28)
    return TestClient(app, base_url=settings.url)
