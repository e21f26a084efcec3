"""Uploads directly to the platform's store, for large files and for pages without a token: `client.uploads`."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from onbrand.client import objects
from onbrand.client.errors import InvalidArgument
from onbrand.client.files import File, as_part
from onbrand.client.resource_bases import BrandLike, BrandResource, brand_path, given

_TYPES = {
    ".zip": "application/zip",
    ".pdf": "application/pdf",
    ".md": "text/markdown",
    ".webp": "image/webp",
} | dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "image/jpeg")
_KINDS = {"application/zip": "zip", "application/pdf": "document", "text/markdown": "document"}


class Uploads(BrandResource[objects.Upload]):
    """Uploads directly to the platform's store."""

    kind, name = objects.Upload, "uploads"

    def upload(
        self,
        brand: BrandLike,
        file: File,
        caption: str | None = None,
        *,
        object: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> objects.Upload:
        """Announce, send and complete one file: a picture, a zip of pictures, a PDF or a markdown document.

        Returns the completed upload, with its ``asset_ids`` or ``document_ids``. Raises RequestRefused if the platform
        refuses the file.
        """
        name, data, _ = as_part(file)
        upload = self.create(
            brand,
            name,
            content_type=content_type_of(name),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            caption=caption,
            object=object,
            metadata=metadata,
        )
        self.send(upload, data)
        return self.complete(brand, upload.id)

    def create(
        self,
        brand: BrandLike,
        filename: str,
        *,
        content_type: str,
        bytes: int,
        kind: str | None = None,
        sha256: str | None = None,
        caption: str | None = None,
        object: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> objects.Upload:
        """Announce a file; the result's `send` has the link to send it to, valid for some minutes.

        Args:
            kind: ``image``, ``zip`` or ``document``; None derives it from `content_type`.
        """
        body = given(
            kind=kind or _KINDS.get(content_type, "image"),
            filename=filename,
            content_type=content_type,
            bytes=bytes,
            sha256=sha256,
            caption=caption,
            object=object,
            metadata=None if metadata is None else dict(metadata),
        )
        path = brand_path(brand, "uploads")
        return self._post(objects.Upload, path, body, idempotency_key=idempotency_key)

    def send(self, upload: objects.Upload, data: bytes) -> None:
        """Send the announced bytes to the upload's link. No token is sent; the link is sufficient."""
        if upload.send is None:
            raise InvalidArgument(f"upload {upload.id} has no link; only `create` gives one")
        how = upload.send
        self._transport.send_file(how.method, how.url, data, headers=how.headers, fields=how.fields)

    def complete(self, brand: BrandLike, upload_id: str) -> objects.Upload:
        """Let the platform check the uploaded file and make assets or a document of it. May be repeated."""
        return self._do(brand, upload_id, "complete")

    def cancel(self, brand: BrandLike, upload_id: str) -> None:
        """End an own upload that is not completed."""
        self._delete(brand, upload_id)


def content_type_of(name: str) -> str:
    """The content type by the file's extension. Raises InvalidArgument for an unsupported one."""
    suffix = PurePath(name).suffix.lower()
    found = _TYPES.get(suffix) or mimetypes.guess_type(f"x{suffix}")[0]
    if found not in {*_KINDS, "image/png", "image/jpeg", "image/webp"}:
        raise InvalidArgument(f"{name} is no PNG, JPEG, WEBP, zip, PDF or markdown file by its name")
    return str(found)
