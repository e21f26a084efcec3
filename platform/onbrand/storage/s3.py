"""The backend for S3: four buckets at one endpoint. `s3_check` tests them at start."""

from __future__ import annotations

import logging
import os
import threading
from functools import partial
from typing import Any, NoReturn

import fsspec
from fsspec.asyn import sync

from onbrand.config import Settings
from onbrand.errors import ConfigurationError, NotFound, StorageError
from onbrand.storage.fsspec_backend import FsspecBackend, as_storage_error, missing_as_not_found
from onbrand.storage.layout import BUCKETS, SHOWN_TYPES, Bucket, Key
from onbrand.storage.links import Announced, UploadLink
from onbrand.storage.s3_check import check_bucket
from onbrand.storage.s3_clients import botocore_options
from onbrand.storage.s3_upload_choice import decide
from onbrand.storage.s3_upload_methods import Way, must_be_open, put_parameters, upload_form, upload_put

log = logging.getLogger(__name__)


class S3Backend(FsspecBackend):
    """Objects on S3. Without configured keys, credentials come from AWS's own chain.

    Args:
        prefix: common prefix of all bucket names.
    """

    def __init__(self, settings: Settings, prefix: str) -> None:
        super().__init__(fsspec.filesystem("s3", **_s3_options(settings)))
        self.prefix = prefix
        self.endpoint = settings.s3_endpoint or "AWS"
        self.constraint = None if settings.s3_endpoint or settings.region == "us-east-1" else settings.region
        self._wanted = settings.s3_uploads
        self._decided: Way | None = None
        self._deciding = threading.Lock()

    def root(self, bucket: str) -> str:
        return f"{self.prefix}{bucket}"

    def path(self, bucket: str, name: str) -> str:
        return f"{self.prefix}{bucket}/{name}"

    def must_lie_in(self, bucket: Bucket, name: str, folder: str) -> None:
        """Raise NotFound for a name that s3fs would read as another bucket, another key or a version of a key."""
        place, key, version = self.fs.split_path(self.path(bucket, name))
        normal = os.path.normpath(name)
        if (place, key, version, normal) != (self.root(bucket), name, None, name) or not name.startswith(f"{folder}/"):
            raise NotFound("there is no such object")

    def write(self, bucket: Bucket, name: str, data: bytes, content_type: str) -> None:
        """Write an object; S3 shows it only when all of it has arrived."""
        with as_storage_error("written"):
            self.fs.pipe_file(self.path(bucket, name), data, ContentType=content_type)

    def link(self, key: Key, name: str, seconds: int) -> str:
        """A presigned link. It fixes type and disposition: browsers save all but pictures, whatever the stored type."""
        is_shown = key.content_type in SHOWN_TYPES
        with as_storage_error("linked"):
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
        """An upload link by the method that this store supports. Raises Conflict if it supports none, StorageError."""
        try:
            way = must_be_open(self.way())
        except ConfigurationError as problem:
            log.error("%s", problem.message)
            raise StorageError("files cannot go straight to the store now; send them to the API as a form") from None
        return self.upload_link_by(way, key.bucket, name, announced, seconds)

    def upload_link_by(self, way: Way, bucket: Bucket, name: str, announced: Announced, seconds: int) -> UploadLink:
        """A form with a signed policy, or a presigned PUT whose headers are all signed."""
        if way.method == "POST":
            sign = partial(self._signed, "generate_presigned_post", self.root(bucket), name)
            return upload_form(announced, seconds, sign)
        given = {"Bucket": self.root(bucket), "Key": name, **put_parameters(announced, way)}
        url = self._signed("generate_presigned_url", "put_object", given, seconds)
        return upload_put(url, announced, way, seconds)

    def way(self) -> Way:
        """The upload method of this store, found once by trial. Raises ConfigurationError if it supports none."""
        with self._deciding:
            if self._decided is None:
                self._decided = decide(self, self._wanted)
            return self._decided

    def _signed(self, how: str, *given: Any) -> Any:
        """The result of a signing method of the S3 client, which is asynchronous."""

        async def sign() -> Any:
            return await getattr(await self.fs.set_session(), how)(*given)

        with as_storage_error("linked"):
            return sync(self.fs.loop, sign)

    def draft(self, bucket: Bucket, name: str) -> NoReturn:
        """Raises NotFound: S3 receives uploads itself, so there are no drafts here."""
        raise NotFound("there is no such object")

    def check(self) -> None:
        """Test all operations on each bucket and the upload method. Raises ConfigurationError with a remedy."""
        for bucket in BUCKETS:
            check_bucket(self, bucket)
        self.way()

    def make_if_missing(self, bucket: Bucket) -> None:
        """Create a missing bucket. AWS requires the region, except us-east-1; gateways know only their own."""
        if self._is_there(bucket):
            return
        place = {"CreateBucketConfiguration": {"LocationConstraint": self.constraint}} if self.constraint else {}
        with as_storage_error("made"):
            self.fs.call_s3("create_bucket", Bucket=self.root(bucket), **place)

    def _is_there(self, bucket: Bucket) -> bool:
        try:
            with as_storage_error("read"), missing_as_not_found():
                self.fs.call_s3("head_bucket", Bucket=self.root(bucket))
        except NotFound:
            return False
        return True


def _s3_options(settings: Settings) -> dict[str, Any]:
    return {
        "key": settings.s3_access_key,
        "secret": settings.s3_secret_key,
        "endpoint_url": settings.s3_endpoint,
        "client_kwargs": {"region_name": settings.region},
        "config_kwargs": {"signature_version": "s3v4"} | botocore_options(settings.s3_endpoint),
        "use_listings_cache": False,
        "skip_instance_cache": True,
    }
