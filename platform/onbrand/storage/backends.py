"""Where bytes really lie: a local directory or anything that speaks S3, both through fsspec.

A backend knows buckets and names, not brands; `BrandStore` decides which name may be asked for.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import secrets as randomness
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import urlsplit

import fsspec
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.asyn import sync

from onbrand.addresses import path_of_file_url
from onbrand.config import Secrets, Settings
from onbrand.errors import ConfigurationError, Conflict, NotFound, OnbrandError, StorageError
from onbrand.folders import must_be_closed_to_others
from onbrand.storage.layout import BUCKETS, SHOWN_TYPES, Bucket, Key
from onbrand.storage.links import Announced, LinkSigner, UploadLink

_PROBE = ".probe"
_DRAFTS = ".drafts"
_DRAFT_SECONDS_MAX = 3600
_BUCKET_PREFIX = re.compile(r"(?:[a-z0-9][a-z0-9.-]{0,40})?")
_REMEDIES = {
    errno.ENOSPC: "the disk is full; free space",
    errno.EDQUOT: "the disk quota is used up; free space",
    errno.EROFS: "the file system is read-only; mount it writable or choose another ONBRAND_STORAGE_URL",
    errno.EACCES: "the folder's rights forbid it; give this user read and write rights",
    errno.EPERM: "the folder's rights forbid it; give this user read and write rights",
    errno.ENOENT: "its bucket or folder is gone; start Onbrand again, which makes it anew",
    errno.ENOTDIR: "a file lies where a folder should be; move it away",
    errno.EISDIR: "a folder lies where a file should be; move it away",
    errno.EEXIST: "a file lies where a folder should be; move it away",
    errno.EIO: "the disk reports an input/output error; check it",
}


class Backend(Protocol):
    """What a store needs from the place where bytes lie. Names are relative to the bucket's root."""

    def read(self, bucket: Bucket, name: str) -> bytes: ...
    def open(self, bucket: Bucket, name: str) -> BinaryIO: ...
    def write(self, bucket: Bucket, name: str, data: bytes, content_type: str) -> None: ...
    def exists(self, bucket: Bucket, name: str) -> bool: ...
    def size(self, bucket: Bucket, name: str) -> int: ...
    def delete(self, bucket: Bucket, name: str) -> None: ...
    def names(self, bucket: Bucket, folder: str) -> Iterator[str]: ...
    def link(self, key: Key, name: str, seconds: int) -> str: ...
    def upload_link(self, key: Key, name: str, announced: Announced, seconds: int) -> UploadLink: ...
    def draft(self, bucket: Bucket, name: str) -> Draft: ...
    def must_lie_in(self, bucket: Bucket, name: str, folder: str) -> None: ...
    def check(self) -> None: ...


class Draft:
    """An object on its way: written piece by piece beside the buckets, seen by nobody until it is kept."""

    def __init__(self, path: Path, target: Path) -> None:
        self.num_bytes = 0
        self._path, self._target = path, target
        with _told("written"):
            _make_folder(path.parent)
            _make_folder(target.parent)
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def write(self, piece: bytes) -> None:
        with _told("written"):
            self._file.write(piece)
        self.num_bytes += len(piece)

    def keep(self) -> None:
        """Make it the object, whole and at once. Raises Conflict if there is one: a link fills its key once."""
        with _told("written"):
            self._file.flush()
            os.fsync(self._file.fileno())
            try:
                os.link(self._path, self._target)
            except FileExistsError:
                raise _filled() from None
            _sync_folder(self._target.parent)

    def drop(self) -> None:
        """End it; what was kept stays."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def open_backend(settings: Settings, secrets: Secrets) -> Backend:
    """The backend of `settings.objects_url`. Raises ConfigurationError for an address that is neither file nor S3."""
    url = settings.objects_url
    if url.startswith("file:"):
        return LocalBackend(path_of_file_url(url, "storage_url"), LinkSigner(secrets.links, settings.url))
    parts = urlsplit(url)
    if parts.scheme == "s3" and not parts.path.strip("/") and _BUCKET_PREFIX.fullmatch(parts.netloc):
        return S3Backend(settings, parts.netloc)
    raise ConfigurationError(
        "ONBRAND_STORAGE_URL must be file:///absolute/folder, s3:// or s3://prefix- (a prefix of the buckets' names)",
        param="storage_url",
    )


class FsspecBackend:
    """What both backends share; they differ in how a name becomes a path, and in how bytes are written and linked."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    def path(self, bucket: str, name: str) -> str:
        """Where fsspec finds `name`."""
        raise NotImplementedError

    def root(self, bucket: str) -> str:
        """Where fsspec finds the bucket."""
        raise NotImplementedError

    def read(self, bucket: Bucket, name: str) -> bytes:
        with _told("read"), _found():
            return cast(bytes, self.fs.cat_file(self.path(bucket, name)))

    def open(self, bucket: Bucket, name: str) -> BinaryIO:
        with _told("read"), _found():
            return cast(BinaryIO, self.fs.open(self.path(bucket, name), "rb"))

    def exists(self, bucket: Bucket, name: str) -> bool:
        with _told("read"), _found():
            return bool(self.fs.isfile(self.path(bucket, name)))

    def size(self, bucket: Bucket, name: str) -> int:
        with _told("read"), _found():
            facts = self.fs.info(self.path(bucket, name))
        if facts["type"] != "file":
            raise NotFound("there is no such object")
        return int(facts["size"])

    def delete(self, bucket: Bucket, name: str) -> None:
        try:
            with _told("deleted"), _found():
                self.fs.rm_file(self.path(bucket, name))
        except NotFound:
            return

    def names(self, bucket: Bucket, folder: str) -> Iterator[str]:
        root = self.root(bucket)
        try:
            with _told("listed"), _found():
                paths = self.fs.find(f"{root}/{folder}".rstrip("/"))
        except NotFound:
            return
        yield from (str(path).removeprefix(f"{root}/") for path in paths)


class LocalBackend(FsspecBackend):
    """A directory with a folder per bucket. For one machine or a file system that all nodes share."""

    def __init__(self, folder: Path, signer: LinkSigner) -> None:
        super().__init__(fsspec.filesystem("file", skip_instance_cache=True))
        self.folder = Path(os.path.realpath(folder))
        self.signer = signer

    def root(self, bucket: str) -> str:
        return str(self.folder / bucket)

    def path(self, bucket: str, name: str) -> str:
        return f"{self.folder}/{bucket}/{name}"

    def must_lie_in(self, bucket: Bucket, name: str, folder: str) -> None:
        """Refuse a name that links or dots lead out of `folder`, or to another file than it says."""
        path = self.path(bucket, name)
        inside = os.path.commonpath([self.path(bucket, folder), os.path.realpath(path)]) == self.path(bucket, folder)
        if not inside or os.path.realpath(path) != path:
            raise NotFound("there is no such object")

    def write(self, bucket: Bucket, name: str, data: bytes, content_type: str) -> None:
        """A draft beside the buckets is written, synced, and renamed into place: readers see all of it or none."""
        target = Path(self.path(bucket, name))
        draft = self.folder / _DRAFTS / randomness.token_hex(16)
        with _told("written"):
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
        return self.signer.sign(key, "GET", seconds)

    def upload_link(self, key: Key, name: str, announced: Announced, seconds: int) -> UploadLink:
        return self.signer.sign_upload(key, announced, seconds)

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
        self._sweep_drafts()

    def _sweep_drafts(self) -> None:
        """Drafts of processes that died while writing; younger ones may still be written."""
        for draft in (self.folder / _DRAFTS).iterdir():
            if time.time() - draft.stat().st_mtime > _DRAFT_SECONDS_MAX:
                draft.unlink(missing_ok=True)


class S3Backend(FsspecBackend):
    """Four buckets at an endpoint that speaks S3. Keys without credentials come from AWS's own chain."""

    def __init__(self, settings: Settings, prefix: str) -> None:
        super().__init__(fsspec.filesystem("s3", **_s3_options(settings)))
        self.prefix = prefix
        self.endpoint = settings.s3_endpoint or "AWS"
        self.constraint = None if settings.s3_endpoint or settings.region == "us-east-1" else settings.region

    def root(self, bucket: str) -> str:
        return f"{self.prefix}{bucket}"

    def path(self, bucket: str, name: str) -> str:
        return f"{self.prefix}{bucket}/{name}"

    def must_lie_in(self, bucket: Bucket, name: str, folder: str) -> None:
        """Refuse a name that s3fs would read as another bucket, another key or a version of a key."""
        place, key, version = self.fs.split_path(self.path(bucket, name))
        normal = os.path.normpath(name)
        if (place, key, version, normal) != (self.root(bucket), name, None, name) or not name.startswith(f"{folder}/"):
            raise NotFound("there is no such object")

    def write(self, bucket: Bucket, name: str, data: bytes, content_type: str) -> None:
        """S3 shows an object only when all of it has arrived."""
        with _told("written"):
            self.fs.pipe_file(self.path(bucket, name), data, ContentType=content_type)

    def link(self, key: Key, name: str, seconds: int) -> str:
        """Type and disposition are in the signature: what is no picture is saved as bytes, whatever was stored."""
        is_shown = key.content_type in SHOWN_TYPES
        with _told("linked"):
            return str(
                self.fs.url(
                    self.path(key.bucket, name),
                    seconds,
                    ResponseContentType=key.content_type if is_shown else "application/octet-stream",
                    ResponseContentDisposition=f'{"inline" if is_shown else "attachment"}; filename="{key.filename}"',
                    ResponseCacheControl=f"private, max-age={seconds}",
                )
            )

    def upload_link(self, key: Key, name: str, announced: Announced, seconds: int) -> UploadLink:
        """A POST with a signed policy, not a presigned PUT: gateways obey headers of a PUT that nobody signed.

        Ceph's copies any object of any brand for whoever adds ``x-amz-copy-source`` to one; a form has no such word.
        """
        fixed = {"Content-Type": announced.content_type}
        if announced.sha256 is not None:  # AWS checks it on arrival; a gateway that does not leaves it to `complete`
            fixed["x-amz-checksum-sha256"] = base64.b64encode(bytes.fromhex(announced.sha256)).decode()
        conditions = [["content-length-range", announced.bytes, announced.bytes], *({k: v} for k, v in fixed.items())]
        with _told("linked"):
            made = sync(self.fs.loop, self._post, self.root(key.bucket), name, fixed, conditions, seconds)
        ends = datetime.fromtimestamp(int(time.time()) + seconds, UTC)
        return UploadLink("POST", made["url"], ends, fields=made["fields"])

    async def _post(
        self, bucket: str, name: str, fields: dict[str, str], conditions: list[Any], seconds: int
    ) -> dict[str, Any]:
        client = await self.fs.set_session()
        made: dict[str, Any] = await client.generate_presigned_post(bucket, name, fields, conditions, seconds)
        return made

    def draft(self, bucket: Bucket, name: str) -> Draft:
        """S3 takes uploads itself; they never come through us."""
        raise NotFound("there is no such object")

    def check(self) -> None:
        for bucket in BUCKETS:
            try:
                self._probe(bucket)
            except OnbrandError as problem:
                raise ConfigurationError(
                    f"the bucket {self.root(bucket)} at {self.endpoint} cannot be used: "
                    f"{problem.fields.get('remedy', 'it is not there and could not be made')}; "
                    "check ONBRAND_STORAGE_URL, ONBRAND_S3_ENDPOINT, ONBRAND_S3_ACCESS_KEY and ONBRAND_S3_SECRET_KEY",
                    param="storage_url",
                ) from None

    def _probe(self, bucket: Bucket) -> None:
        if not self._is_there(bucket):
            self._make(bucket)
        self.write(bucket, _PROBE, b"onbrand", "text/plain")
        self.delete(bucket, _PROBE)

    def _is_there(self, bucket: Bucket) -> bool:
        try:
            with _told("read"), _found():
                self.fs.call_s3("head_bucket", Bucket=self.root(bucket))
        except NotFound:
            return False
        return True

    def _make(self, bucket: Bucket) -> None:
        """AWS wants its region named, except for us-east-1; gateways know only their own."""
        place = {"CreateBucketConfiguration": {"LocationConstraint": self.constraint}} if self.constraint else {}
        with _told("made"):
            self.fs.call_s3("create_bucket", Bucket=self.root(bucket), **place)


def _s3_options(settings: Settings) -> dict[str, Any]:
    config: dict[str, Any] = {
        "signature_version": "s3v4",
        "connect_timeout": 5,
        "read_timeout": 60,
        "retries": {"max_attempts": 4, "mode": "standard"},
    }
    if settings.s3_endpoint:
        # Gateways other than AWS often know neither virtual hosts nor the checksums that newer SDKs add.
        config["s3"] = {"addressing_style": "path"}
        config["request_checksum_calculation"] = "when_required"
        config["response_checksum_validation"] = "when_required"
    return {
        "key": settings.s3_access_key,
        "secret": settings.s3_secret_key,
        "endpoint_url": settings.s3_endpoint,
        "client_kwargs": {"region_name": settings.region},
        "config_kwargs": config,
        "use_listings_cache": False,
        "skip_instance_cache": True,
    }


@contextmanager
def _found() -> Iterator[None]:
    """A missing object, or a folder in its place, is NotFound."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFound("there is no such object") from None


@contextmanager
def _told(done: str) -> Iterator[None]:
    """Turn what the backends raise into our errors, without a path, a key or a secret in the text."""
    try:
        yield
    except OSError as problem:
        number = errno.ENOENT if isinstance(problem, FileNotFoundError) else problem.errno or 0
        remedy = _REMEDIES.get(number) or _s3_remedy(problem)
        raise StorageError(f"the object could not be {done}: {remedy}", remedy=remedy) from None
    except (BotoCoreError, ClientError) as problem:
        remedy = _s3_remedy(problem)
        raise StorageError(f"the object could not be {done}: {remedy}", remedy=remedy) from None


def _s3_remedy(problem: Exception) -> str:
    if isinstance(problem, PermissionError):
        return "the store refuses these credentials; give them read, write, delete and list rights on the bucket"
    if "NoCredentials" in type(problem).__name__:
        return "there are no credentials; set ONBRAND_S3_ACCESS_KEY and ONBRAND_S3_SECRET_KEY"
    if isinstance(problem, ConnectionError) or "Connect" in type(problem).__name__:
        return "the store cannot be reached; check its address and the network"
    cause = problem.__cause__ or problem
    answer = cause.response["Error"]["Code"] if isinstance(cause, ClientError) else type(cause).__name__
    return f"the store answered {answer}; try again, and look at the store's own log"


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
