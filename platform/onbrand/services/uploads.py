"""Direct uploads to the store: announced, sent to a signed link, checked, made into assets or documents.

Uploaded bytes lie in the brand's `incoming` folder and are never served; only the re-encoded results are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Literal

import anyio.to_thread
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict, Field, field_validator

from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import Conflict, Forbidden, InvalidInput, NotFound, OnbrandError, TooLarge, UnsupportedMedia
from onbrand.filenames import is_litter
from onbrand.sandbox.checker import Checker
from onbrand.sandbox.results import is_zip, shown
from onbrand.services import asset_checks, assets, documents
from onbrand.services.audit import write_audit_line
from onbrand.services.pagination import Page, Row, forbidden_as_not_found, known_id, must_be_there, page_of
from onbrand.services.storage_quota import must_have_room_to_send
from onbrand.storage.layout import Bucket, Key, incoming_file
from onbrand.storage.links import Announced, UploadLink
from onbrand.storage.store import BrandStore, ObjectStore

UploadKind = Literal["image", "zip", "document"]
UploadStatus = Literal["pending", "completed", "refused", "canceled", "expired"]
BYTES_MAX = 256 * 2**20
"""Maximum bytes of the largest kind; the ingress accepts no larger body under a link."""

_MADE = """case when t.kind {of} 'document' then array(select uo.{column} from app.upload_objects uo
    where uo.brand_id = t.brand_id and uo.upload_id = t.id order by uo.index)::text[] else '{{}}' end"""
_UPLOAD = f"""
select t.*, {_MADE.format(of="<>", column="asset_id")} as asset_ids,
  {_MADE.format(of="=", column="document_id")} as document_ids
from app.uploads t
"""


@dataclass(frozen=True, slots=True)
class _Kind:
    """Bucket and content types of a kind of upload."""

    bucket: Bucket
    content_types: tuple[str, ...]


_KINDS: Mapping[str, _Kind] = {
    "image": _Kind("training-data", ("image/png", "image/jpeg", "image/webp")),
    "zip": _Kind("training-data", ("application/zip",)),
    "document": _Kind("brand-documents", ("application/pdf", "text/markdown")),
}
_DOCUMENT_TYPES = {"pdf": "application/pdf", "md": "text/markdown"}


class NewUpload(BaseModel):
    """An upload to announce.

    Args:
        bytes: the exact size.
        sha256: of the bytes, hex; other bytes are refused.
        caption: for an image, or a zip's images without their own; None: ``photo of [brand] logo`` (by its object).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: UploadKind
    filename: str = Field(min_length=1, max_length=255)
    content_type: str
    bytes: int = Field(ge=1)
    sha256: str | None = None
    object: asset_checks.ObjectKind = "other"
    caption: str | None = Field(default=None, repr=False)
    metadata: dict[str, Any] = Field(default_factory=dict, repr=False)

    @field_validator("content_type")
    @classmethod
    def _content_type_is_a_media_type(cls, text: str) -> str:
        return text.partition(";")[0].strip().lower()


class Upload(Row):
    """An announced upload and its result."""

    id: str
    brand_id: str
    user_id: str
    kind: UploadKind
    filename: str
    content_type: str
    bytes: int
    sha256: str | None
    object: asset_checks.ObjectKind
    caption: str | None = Field(repr=False)
    metadata: dict[str, Any] = Field(repr=False)
    status: UploadStatus
    error: dict[str, Any] | None
    asset_ids: list[str]
    document_ids: list[str]
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None

    @property
    def key(self) -> Key:
        """The key at which its bytes arrive."""
        return incoming_file(_KINDS[self.kind].bucket, self.brand_id, self.id)

    @property
    def announced(self) -> Announced:
        """The only content that its link accepts."""
        return Announced(self.content_type, self.bytes, self.sha256)


class Expired(Row):
    """An upload whose bytes are to be removed."""

    brand_id: str
    upload_id: str
    kind: UploadKind

    @property
    def key(self) -> Key:
        return incoming_file(_KINDS[self.kind].bucket, self.brand_id, self.upload_id)


async def create_upload(
    session: Session,
    store: BrandStore,
    brand_id: str,
    user_id: str,
    new: NewUpload,
    limits: Limits,
    link_seconds: int,
) -> tuple[Upload, UploadLink]:
    """Announce an upload; the link accepts the announced content, once.

    Raises:
        UnsupportedMedia, TooLarge, InvalidInput: it would be refused later anyway; `param` names the field.
        TooLarge, TooManyRequests: the brand or the caller has too many bytes, or too many open uploads.
        NotFound: not the caller's brand.
    """
    must_be_announceable(new, limits)
    async with forbidden_as_not_found("brand"):
        await must_have_room_to_send(session, brand_id, new.bytes, limits)
        row = await session.one(
            "insert into app.uploads (brand_id, user_id, kind, filename, content_type, bytes, sha256, object, caption,"
            " metadata) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) returning id",
            [
                brand_id, user_id, new.kind, new.filename, new.content_type, new.bytes, new.sha256, new.object,
                new.caption, Jsonb(new.metadata),
            ],
        )  # fmt: skip
    upload = await get_upload(session, brand_id, row["id"])
    link = await anyio.to_thread.run_sync(store.upload_link, upload.key, upload.announced, link_seconds)
    await write_audit_line(session, brand_id, "upload.create", {"upload_id": upload.id, "bytes": upload.bytes})
    return upload, link


async def list_uploads(session: Session, brand_id: str, limit: int = 20, cursor: str | None = None) -> Page[Upload]:
    """The brand's uploads of the last day, newest first."""
    return await page_of(session, Upload, _UPLOAD, brand_id, limit, cursor)


async def get_upload(session: Session, brand_id: str, upload_id: str) -> Upload:
    """One upload as it is now. Raises NotFound."""
    row = await session.maybe(
        f"{_UPLOAD} where t.brand_id = %s and t.id = %s", [brand_id, known_id(upload_id, "upload")]
    )
    return Upload.of(must_be_there(row, "upload"))


async def get_own_upload(session: Session, brand_id: str, user_id: str, upload_id: str) -> Upload:
    """One upload of the caller's. Raises NotFound; Forbidden for another member's."""
    upload = await get_upload(session, brand_id, upload_id)
    if upload.user_id != user_id:
        raise Forbidden("only who began an upload may complete or cancel it")
    return upload


async def read_arrived(store: BrandStore, upload: Upload) -> bytes:
    """The bytes that arrived. Raises Conflict if none have arrived yet: the upload stays open."""
    try:
        return await anyio.to_thread.run_sync(partial(store.read, upload.key, max_bytes=BYTES_MAX))
    except NotFound:
        raise Conflict("nothing has arrived yet; send the file to the upload's link first") from None


def must_be_as_announced(upload: Upload, data: bytes) -> None:
    """Raise InvalidInput unless the bytes match the announcement: not every store checks them on arrival."""
    if len(data) != upload.bytes:
        raise InvalidInput(f"{len(data)} bytes arrived, {upload.bytes} were announced; upload it anew", param="bytes")
    if upload.sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise InvalidInput("the bytes that arrived do not have the announced sha256; upload it anew", param="sha256")


Checked = list[asset_checks.Checked] | documents.Checked


async def check(checker: Checker, upload: Upload, data: bytes, limits: Limits) -> Checked:
    """Check and re-encode `data` for the store. Needs no session. Raises UnsupportedMedia, TooLarge, InvalidInput."""
    if upload.kind == "document":
        return await documents.check(checker, upload.filename, data, limits)
    if is_zip(data) != (upload.kind == "zip"):
        raise UnsupportedMedia(f"{shown(upload.filename)} is not what it was announced to be", param="kind")
    file = asset_checks.Upload(upload.filename, data, upload.caption, upload.object, upload.metadata)
    checked = await asset_checks.check(checker, [file], limits)
    if upload.kind == "image" and checked[0].image.content_type != upload.content_type:
        raise UnsupportedMedia(f"{shown(upload.filename)} is no {upload.content_type}", param="content_type")
    return checked


async def complete_upload(
    session: Session, store: BrandStore, upload: Upload, checked: Checked, limits: Limits | None = None
) -> Upload:
    """Store the checked content. An upload is completed once; a repeated call returns the same result.

    Raises:
        Conflict: it ended otherwise meanwhile, or its content is stored already.
        TooLarge: the brand or the caller has too much stored.
    """
    if not await _end(session, upload, "completed"):
        return must_be_completed(await get_upload(session, upload.brand_id, upload.id))
    if isinstance(checked, list):
        stored = await assets.store_checked(session, store, upload.brand_id, upload.user_id, checked, limits)
        column, made_ids = "asset_id", [asset.id for asset in stored]
    else:
        document = await documents.store_checked(session, store, upload.brand_id, upload.user_id, checked, limits)
        column, made_ids = "document_id", [document.id]
    for index, made_id in enumerate(made_ids):
        await session.run(
            f"insert into app.upload_objects (brand_id, upload_id, index, {column}) values (%s, %s, %s, %s)",
            [upload.brand_id, upload.id, index, made_id],
        )
    return await get_upload(session, upload.brand_id, upload.id)


async def refuse_upload(session: Session, upload: Upload, problem: OnbrandError) -> None:
    """End it as refused, with the reason; no effect if it has ended already."""
    error = {"code": problem.code, "message": problem.message, "param": problem.param}
    if await _end(session, upload, "refused", error):
        await write_audit_line(
            session, upload.brand_id, "upload.refuse", {"upload_id": upload.id, "code": problem.code}
        )


async def cancel_upload(session: Session, brand_id: str, user_id: str, upload_id: str) -> Upload:
    """End one's own open upload. Raises NotFound, Forbidden, Conflict (it has ended)."""
    upload = await get_own_upload(session, brand_id, user_id, upload_id)
    if not await _end(session, upload, "canceled"):
        raise Conflict(f"this upload is {upload.status} already")
    await write_audit_line(session, brand_id, "upload.cancel", {"upload_id": upload.id})
    return upload


def must_be_completed(upload: Upload) -> Upload:
    """The upload if it is completed. Raises the error of a refused one, Conflict for any other status."""
    if upload.status == "completed":
        return upload
    if upload.status == "refused":
        raise _as_it_was_refused(upload.error or {})
    raise Conflict(f"this upload is {upload.status}; begin another")


async def discard(store: BrandStore, key: Key) -> None:
    """Overwrite the uploaded bytes by an empty object, which blocks a late use of the link until it is swept."""
    await anyio.to_thread.run_sync(store.write, key, b"")


async def sweep(session: Session, store: ObjectStore) -> int:
    """Delete the bytes of old uploads, in the dispatcher's transaction; failures are retried. Returns their number."""
    rows = await session.all("select * from private.sweep_uploads()")
    for row in rows:
        expired = Expired.of(row)
        await anyio.to_thread.run_sync(store.brand(expired.brand_id).delete, expired.key)
    return len(rows)


def must_be_announceable(new: NewUpload, limits: Limits) -> None:
    """Refuse an upload before it is sent, if it would be refused afterwards."""
    kind = _KINDS[new.kind]
    if new.content_type not in kind.content_types:
        raise UnsupportedMedia(
            f"content_type of a {new.kind} must be one of {', '.join(kind.content_types)}", param="content_type"
        )
    most = bytes_max(new, limits)
    if new.bytes > most:
        raise TooLarge(f"the file has {new.bytes} bytes; the limit is {most}", param="bytes")
    Announced(new.content_type, new.bytes, new.sha256)
    asset_checks.must_be_filename(new.filename, "filename")
    if is_litter(new.filename):
        raise InvalidInput(
            f"{shown(new.filename)} is kept by a system beside files; send the file itself", param="filename"
        )
    if new.kind == "document":
        _must_be_a_document(new)
    else:
        asset_checks.must_be_fine(asset_checks.Upload(new.filename, b"", new.caption, new.object, new.metadata), limits)


def _must_be_a_document(new: NewUpload) -> None:
    given = {"caption": new.caption is not None, "object": new.object != "other", "metadata": bool(new.metadata)}
    for name in (name for name, is_given in given.items() if is_given):
        raise InvalidInput(f"a document has no {name}; leave it out", param=name)
    try:
        _, ext = documents.must_be_document_name(new.filename)
    except UnsupportedMedia as problem:
        raise UnsupportedMedia(problem.message, param="filename") from None
    if new.content_type != _DOCUMENT_TYPES[ext]:
        raise UnsupportedMedia(f"content_type of a .{ext} is {_DOCUMENT_TYPES[ext]}", param="content_type")


def bytes_max(new: NewUpload, limits: Limits) -> int:
    """Maximum bytes of such a file."""
    by_type = {
        "application/zip": limits.zip_bytes,
        "application/pdf": limits.document_bytes,
        "text/markdown": limits.markdown_bytes,
    }
    return min(BYTES_MAX, by_type.get(new.content_type, limits.upload_bytes))


async def _end(session: Session, upload: Upload, status: UploadStatus, error: dict[str, Any] | None = None) -> bool:
    """End the upload; True if this call ended it. Of two at once, the second waits for the first."""
    num_ended = await session.run(
        "update app.uploads set status = %s, error = %s, ended_at = clock_timestamp()"
        " where brand_id = %s and id = %s and status = 'pending'",
        [status, None if error is None else Jsonb(error), upload.brand_id, upload.id],
    )
    return num_ended == 1


def _as_it_was_refused(error: Mapping[str, Any]) -> OnbrandError:
    """Rebuild the error of the refusal."""
    kinds = (UnsupportedMedia, TooLarge, InvalidInput, Conflict)
    kind: type[OnbrandError] = next((each for each in kinds if each.code == error.get("code")), Conflict)
    fields = {"param": error["param"]} if error.get("param") else {}
    return kind(str(error.get("message", "this upload was refused; begin another")), **fields)
