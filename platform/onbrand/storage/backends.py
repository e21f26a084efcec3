"""Storage backends: a local directory or an S3 endpoint, both through fsspec.

A backend knows buckets and names, not brands. `BrandStore` decides which names may be used.
"""

from __future__ import annotations

import os
import re
import secrets as randomness
import time
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from onbrand.addresses import path_of_file_url
from onbrand.config import Settings
from onbrand.errors import ConfigurationError, Conflict, NotFound, StorageError
from onbrand.folders import must_be_closed_to_others
from onbrand.secrets_file import Secrets
from onbrand.storage.fsspec_backend import FsspecBackend, as_storage_error
from onbrand.storage.layout import BUCKETS, Bucket, Key
from onbrand.storage.links import Announced, UploadLink, sign_link, sign_upload
from onbrand.storage.s3 import S3Backend

_PROBE = ".probe"
_DRAFTS = ".drafts"
_DRAFT_SECONDS_MAX = 3600
_BUCKET_PREFIX = re.compile(r"(?:[a-z0-9][a-z0-9.-]{0,40})?")


class Draft:
    """An object being uploaded. It is written in pieces outside the buckets and invisible until `keep`."""

    def __init__(self, path: Path, target: Path) -> None:
        self.num_bytes = 0
        self._path, self._target = path, target
        with as_storage_error("written"):
            _make_folder(path.parent)
            _make_folder(target.parent)
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def write(self, piece: bytes) -> None:
        """Append a piece. Raises StorageError."""
        with as_storage_error("written"):
            self._file.write(piece)
        self.num_bytes += len(piece)

    def keep(self) -> None:
        """Publish the draft as the object, atomically. Raises Conflict if it exists: a link fills its key once."""
        with as_storage_error("written"):
            self._file.flush()
            os.fsync(self._file.fileno())
            try:
                os.link(self._path, self._target)
            except FileExistsError:
                raise _filled() from None
            _sync_folder(self._target.parent)

    def drop(self) -> None:
        """Close and remove the draft; an object that was published with `keep` stays."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def open_backend(settings: Settings, secrets: Secrets) -> Backend:
    """The backend of `settings.objects_url`. Raises ConfigurationError for an address that is neither file nor S3."""
    url = settings.objects_url
    if url.startswith("file:"):
        return LocalBackend(path_of_file_url(url, "storage_url"), secrets.links, settings.url)
    parts = urlsplit(url)
    if parts.scheme == "s3" and not parts.path.strip("/") and _BUCKET_PREFIX.fullmatch(parts.netloc):
        return S3Backend(settings, parts.netloc)
    raise ConfigurationError(
        "ONBRAND_STORAGE_URL must be file:///absolute/folder, s3:// or s3://prefix- (a prefix of the buckets' names)",
        param="storage_url",
    )


class LocalBackend(FsspecBackend):
    """A directory with a folder per bucket, on one machine or on a file system that all nodes share.

    Args:
        secret: signs links, which begin with `base_url`.
    """

    def __init__(self, folder: Path, secret: str, base_url: str) -> None:
        super().__init__(fsspec.filesystem("file", skip_instance_cache=True))
        self.folder = Path(os.path.realpath(folder))
        self._secret, self._base_url = secret, base_url

    def root(self, bucket: str) -> str:
        return str(self.folder / bucket)

    def path(self, bucket: str, name: str) -> str:
        return f"{self.folder}/{bucket}/{name}"

    def must_lie_in(self, bucket: Bucket, name: str, folder: str) -> None:
        """Raise NotFound if symbolic links or dots in the name lead out of `folder` or to another file."""
        path = self.path(bucket, name)
        inside = os.path.commonpath([self.path(bucket, folder), os.path.realpath(path)]) == self.path(bucket, folder)
        if not inside or os.path.realpath(path) != path:
            raise NotFound("there is no such object")

    def write(self, bucket: Bucket, name: str, data: bytes, content_type: str) -> None:
        """Write a draft outside the buckets, sync it, and rename it into place: readers see all of it or none."""
        target = Path(self.path(bucket, name))
        draft = self.folder / _DRAFTS / randomness.token_hex(16)
        with as_storage_error("written"):
            try:
                _make_folder(draft.parent)
                _make_folder(target.parent)
                _write_synced(draft, data)
                os.replace(draft, target)
                _sync_folder(target.parent)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise

    def link(self, key: Key, name: str, seconds: int) -> str:
        return sign_link(key, "GET", seconds, self._secret, self._base_url)

    def upload_link(self, key: Key, name: str, announced: Announced, seconds: int) -> UploadLink:
        return sign_upload(key, announced, seconds, self._secret, self._base_url)

    def draft(self, bucket: Bucket, name: str) -> Draft:
        target = Path(self.path(bucket, name))
        if target.exists():
            raise _filled()
        return Draft(self.folder / _DRAFTS / randomness.token_hex(16), target)

    def check(self) -> None:
        try:
            for bucket in BUCKETS:
                self.write(bucket, _PROBE, b"onbrand", "text/plain")
                self.delete(bucket, _PROBE)
        except StorageError as problem:
            raise ConfigurationError(
                f"the object folder {self.folder} cannot be written: {problem.fields['remedy']}", param="storage_url"
            ) from None
        must_be_closed_to_others(self.folder, "storage_url")
        for draft in (self.folder / _DRAFTS).iterdir():  # of processes that died; younger ones may still be in use
            if time.time() - draft.stat().st_mtime > _DRAFT_SECONDS_MAX:
                draft.unlink(missing_ok=True)


Backend = LocalBackend | S3Backend


def _filled() -> Conflict:
    return Conflict("something has arrived under this link already; begin another upload")


def _make_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
