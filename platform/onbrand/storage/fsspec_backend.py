"""The common part of both backends: reading, listing and deleting through fsspec, with its errors mapped to ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from botocore.exceptions import BotoCoreError, ClientError

from onbrand.errors import NotFound, StorageError
from onbrand.storage.layout import Bucket

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


class FsspecBackend:
    """Base of both backends, which differ in paths, in how they write, and in their links."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs

    def path(self, bucket: str, name: str) -> str:
        """Where fsspec finds `name`."""
        raise NotImplementedError

    def root(self, bucket: str) -> str:
        """Where fsspec finds the bucket."""
        raise NotImplementedError

    def read(self, bucket: Bucket, name: str) -> bytes:
        """The object's bytes. Raises NotFound, StorageError."""
        with as_storage_error("read"), missing_as_not_found():
            return cast(bytes, self.fs.cat_file(self.path(bucket, name)))

    def open(self, bucket: Bucket, name: str) -> BinaryIO:
        """A readable stream of the object. Raises NotFound, StorageError."""
        with as_storage_error("read"), missing_as_not_found():
            return cast(BinaryIO, self.fs.open(self.path(bucket, name), "rb"))

    def exists(self, bucket: Bucket, name: str) -> bool:
        """Whether an object has this name; a folder is none. Raises StorageError."""
        with as_storage_error("read"), missing_as_not_found():
            return bool(self.fs.isfile(self.path(bucket, name)))

    def size(self, bucket: Bucket, name: str) -> int:
        """The object's size in bytes. Raises NotFound, StorageError."""
        with as_storage_error("read"), missing_as_not_found():
            facts = self.fs.info(self.path(bucket, name))
        if facts["type"] != "file":
            raise NotFound("there is no such object")
        return int(facts["size"])

    def delete(self, bucket: Bucket, name: str) -> None:
        """Remove the object; a missing one is no error. Raises StorageError."""
        try:
            with as_storage_error("deleted"), missing_as_not_found():
                self.fs.rm_file(self.path(bucket, name))
        except NotFound:
            return

    def names(self, bucket: Bucket, folder: str) -> Iterator[str]:
        """Names of all objects below `folder`; none if it is missing. Raises StorageError."""
        root = self.root(bucket)
        try:
            with as_storage_error("listed"), missing_as_not_found():
                paths = self.fs.find(f"{root}/{folder}".rstrip("/"))
        except NotFound:
            return
        yield from (str(path).removeprefix(f"{root}/") for path in paths)


@contextmanager
def missing_as_not_found() -> Iterator[None]:
    """Raise NotFound for a missing object and for a folder in its place."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFound("there is no such object") from None


@contextmanager
def as_storage_error(done: str) -> Iterator[None]:
    """Turn errors of the backends into StorageError, without a path, a key or a secret in the text."""
    try:
        yield
    except (OSError, BotoCoreError, ClientError) as problem:
        number = errno.ENOENT if isinstance(problem, FileNotFoundError) else getattr(problem, "errno", None)
        remedy = _REMEDIES.get(number or 0) or _s3_remedy(problem)
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
