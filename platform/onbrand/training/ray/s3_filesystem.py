"""A file system for Ray Train with one run's folder on S3. It gets session credentials with the job's ticket.

It is sent between processes without secrets: each process fetches credentials at first use and renews them before they
expire. It implements only the calls that Ray Train makes, and needs no rights outside the run's folder: it does not
inspect buckets or create parent folders, and it finds files by listing, as S3 refuses a HEAD of a missing object.
"""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, BinaryIO, cast

import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

from onbrand.internal.client import SystemClient
from onbrand.storage.credentials import session_client
from onbrand.storage.s3_clients import put_in_parts
from onbrand.training.dispatch.tickets import TicketSource

RENEW_BEFORE = timedelta(seconds=300)
PART_BYTES = 128 * 2**20
_IN_MEMORY_BYTES = 32 * 2**20
_MISSING = ("NoSuchKey", "404")
_REFUSED = ("AccessDenied", "403", "ExpiredToken", "InvalidAccessKeyId")


def run_filesystem(tickets: TicketSource, system_url: str) -> PyFileSystem:
    """The file system for Ray Train's `RunConfig`; paths are `bucket/key`."""
    return PyFileSystem(RunFiles(tickets, system_url))


class RunFiles(FileSystemHandler):
    """The handler that pyarrow calls.

    Raises OSError (also FileNotFoundError, PermissionError) for errors of S3, and the errors of the internal routes if
    it gets no credentials: NotFound or Conflict if the job is gone or has ended, Unavailable.
    """

    def __init__(self, tickets: TicketSource, system_url: str) -> None:
        super().__init__()
        self._tickets, self._system_url = tickets, system_url
        self._lock = threading.Lock()
        self._client: Any = None
        self._renew_at = datetime.min.replace(tzinfo=UTC)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RunFiles, (self._tickets, self._system_url))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunFiles) and self.__reduce__() == other.__reduce__()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "RunFiles(...)"

    def get_type_name(self) -> str:
        return "onbrand-run"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        bucket, key = _split(selector.base_dir)
        start = f"{key}/" if key else ""
        found = list(self._entries(bucket, start, selector.recursive))
        if not found and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        return found

    def create_dir(self, path: str, recursive: bool) -> None:
        """Do nothing, as S3 has no folders."""

    def delete_dir(self, path: str) -> None:
        self.delete_dir_contents(path, missing_dir_ok=True)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        bucket, key = _split(path)
        names = [name for name, _ in self._objects(bucket, f"{key}/")]
        if not names and not missing_dir_ok:
            raise FileNotFoundError(path)
        for name in names:
            self._call("delete_object", Bucket=bucket, Key=name)

    def delete_root_dir_contents(self) -> None:
        raise PermissionError("a run's files are all that may be deleted")

    def delete_file(self, path: str) -> None:
        bucket, key = _split(path)
        self._call("delete_object", Bucket=bucket, Key=key)

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        with self._body(src) as body:
            self._put(dest, body)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self._body(path), mode="r")

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Upload(self, path), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("objects cannot be appended to")

    def _info(self, path: str) -> FileInfo:
        bucket, key = _split(path)
        for name, size in self._objects(bucket, key):
            if name == key:
                return FileInfo(path, FileType.File, size=size)
            if name.startswith(f"{key}/"):
                return FileInfo(path, FileType.Directory)
        return FileInfo(path, FileType.NotFound)

    def _entries(self, bucket: str, start: str, recursive: bool) -> Iterator[FileInfo]:
        """Files and folders below `start`; folders are the parts of names before a slash."""
        folders: set[str] = set()
        for name, size in self._objects(bucket, start):
            *parents, last = name.removeprefix(start).split("/")
            for depth in range(1, len(parents) + 1) if recursive else [1] if parents else []:
                folder = start + "/".join(parents[:depth])
                if folder not in folders:
                    folders.add(folder)
                    yield FileInfo(f"{bucket}/{folder}", FileType.Directory)
            if last and (recursive or not parents):
                yield FileInfo(f"{bucket}/{name}", FileType.File, size=size)

    def _objects(self, bucket: str, prefix: str) -> Iterator[tuple[str, int]]:
        """Name and size of every object whose name begins with `prefix`, in order."""
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
            yield from ((each["Key"], int(each["Size"])) for each in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _body(self, path: str) -> BinaryIO:
        bucket, key = _split(path)
        answer = self._call("get_object", Bucket=bucket, Key=key)
        file = _spool()
        with _as_os_error(path):
            for piece in answer["Body"].iter_chunks(2**20):
                file.write(piece)
        file.seek(0)
        return file

    def _put(self, path: str, body: BinaryIO) -> None:
        bucket, key = _split(path)
        size = body.seek(0, io.SEEK_END)
        body.seek(0)
        if size <= PART_BYTES:
            self._call("put_object", Bucket=bucket, Key=key, Body=body)
        else:
            pieces = iter(partial(body.read, PART_BYTES), b"")
            put_in_parts(self._call, {"Bucket": bucket, "Key": key}, pieces)  # S3 takes at most 5 GB per request

    def _call(self, name: str, **arguments: Any) -> Any:
        client = self._session()
        with _as_os_error(f"{arguments['Bucket']}/{arguments.get('Key', arguments.get('Prefix', ''))}"):
            return getattr(client, name)(**arguments)

    def _session(self) -> Any:
        """An S3 client with valid credentials; renews those that expire soon."""
        with self._lock:
            if datetime.now(UTC) >= self._renew_at:
                with SystemClient(self._system_url, self._tickets.newest()) as platform:
                    given = platform.credentials()
                if given is None:
                    raise PermissionError("the platform keeps no runs on S3; do its settings and the job's differ?")
                self._client, self._renew_at = session_client(given), given.expires_at - RENEW_BEFORE
            return self._client


class _Upload:
    """Buffers writes and uploads them on close: completely or not at all."""

    def __init__(self, files: RunFiles, path: str) -> None:
        self._files, self._path, self._draft = files, path, _spool()
        self.closed = False

    def write(self, data: bytes) -> int:
        return self._draft.write(data)

    def flush(self) -> None:
        """Do nothing, as the object is uploaded on close."""

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            with self._draft:
                self._files._put(self._path, self._draft)


class _Draft(tempfile.SpooledTemporaryFile[bytes]):
    """Closed when garbage-collected, as pyarrow does not always close files that it has read."""

    def __del__(self) -> None:
        self.close()


def _spool() -> BinaryIO:
    return cast(BinaryIO, _Draft(_IN_MEMORY_BYTES))


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.strip("/").partition("/")
    return bucket, key


@contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    """Convert errors of S3 to the errors that pyarrow and Ray Train handle."""
    try:
        yield
    except ClientError as problem:
        code = str(problem.response.get("Error", {}).get("Code", "Unknown"))
        if code in _MISSING:
            raise FileNotFoundError(path) from None
        kind = PermissionError if code in _REFUSED else OSError
        raise kind(f"the store answered {code} for {path}") from None
    except BotoCoreError as problem:
        raise OSError(f"the store cannot be reached ({type(problem).__name__})") from None
