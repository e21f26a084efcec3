"""Training pictures: an upload is stored whole or not at all, captions have versions, admins delete."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any, Literal

import anyio.to_thread
from psycopg.types.json import Jsonb

from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import Conflict, Forbidden
from onbrand.filenames import own_name
from onbrand.sandbox.results import shown
from onbrand.services.asset_checks import Checked, ObjectKind, _must_be_caption
from onbrand.services.audit import write_audit_line
from onbrand.services.pagination import Page, Row, forbidden_as_not_found, known_id, must_be_there, page_of
from onbrand.services.storage_quota import must_have_fitted, must_not_be_full
from onbrand.storage.layout import Key, training_image
from onbrand.storage.store import BrandStore

_ASSET = """
select t.id, t.brand_id, t.user_id, t.name, t.type, t.object, t.object_name, t.metadata, t.content_type,
  t.bytes, t.width, t.height, t.sha256, t.created_at, c.caption, c.version as caption_version
from app.brand_assets t left join lateral (
  select ac.caption, ac.version from app.asset_captions ac
  where ac.brand_id = t.brand_id and ac.asset_id = t.id order by ac.version desc limit 1) c on true
"""


class Asset(Row):
    """A training picture. `[brand]` in its caption stands for a job's trigger word."""

    id: str
    brand_id: str
    user_id: str
    name: str
    type: Literal["image"]
    object: ObjectKind
    object_name: str
    caption: str
    caption_version: int
    metadata: dict[str, Any]
    content_type: str
    bytes: int
    width: int
    height: int
    sha256: str
    created_at: datetime

    @property
    def key(self) -> Key:
        """The key of its bytes in the store."""
        return Key("training-data", self.object_name)


async def store_checked(
    session: Session,
    store: BrandStore,
    brand_id: str,
    user_id: str,
    checked: list[Checked],
    limits: Limits | None = None,
) -> list[Asset]:
    """Store checked pictures and their rows, all or none.

    Raises:
        Conflict: a picture is stored already, or occurs twice.
        TooLarge: the brand or the caller has too much stored.
        NotFound: not the caller's brand.
    """
    limits = limits or Limits()
    await _must_be_new(session, brand_id, checked)
    async with forbidden_as_not_found("brand"):
        await must_not_be_full(session, brand_id, sum(len(one.image.bytes) for one in checked), limits)
        keys = await _take_keys(session, brand_id, checked)
        ids = [await _insert(session, brand_id, user_id, *each) for each in zip(checked, keys, strict=True)]
    for key, one in zip(keys, checked, strict=True):
        session.on_rollback(partial(anyio.to_thread.run_sync, store.delete, key))
        await anyio.to_thread.run_sync(store.write, key, one.image.bytes, one.image.content_type)
    await write_audit_line(session, brand_id, "asset.upload", {"asset_ids": ids})
    await must_have_fitted(session, brand_id, limits)
    rows = {row["id"]: Asset.of(row) for row in await session.all(f"{_ASSET} where t.id = any(%s::uuid[])", [ids])}
    return [rows[asset_id] for asset_id in ids]


async def list_assets(session: Session, brand_id: str, limit: int = 20, cursor: str | None = None) -> Page[Asset]:
    """The brand's pictures, newest first."""
    return await page_of(session, Asset, _ASSET, brand_id, limit, cursor)


async def get_asset(session: Session, brand_id: str, asset_id: str) -> Asset:
    """One picture's row. Raises NotFound."""
    asset_id = known_id(asset_id, "asset")
    row = await session.maybe(f"{_ASSET} where t.brand_id = %s and t.id = %s", [brand_id, asset_id])
    return Asset.of(must_be_there(row, "asset"))


async def set_caption(
    session: Session, brand_id: str, user_id: str, asset_id: str, caption: str, limits: Limits | None = None
) -> Asset:
    """Store a new version of the caption; older ones stay. Raises NotFound, InvalidInput, Conflict (two at once)."""
    caption = _must_be_caption(caption, limits or Limits())
    asset = await get_asset(session, brand_id, asset_id)
    try:
        await _insert_caption(session, brand_id, user_id, asset.id, asset.caption_version + 1, caption)
    except Conflict:
        raise Conflict("somebody else is changing this caption; look at it again", param="caption") from None
    await write_audit_line(
        session, brand_id, "asset.recaption", {"asset_id": asset.id, "version": asset.caption_version + 1}
    )
    return await get_asset(session, brand_id, asset_id)


async def delete_asset(session: Session, store: BrandStore, brand_id: str, asset_id: str) -> None:
    """Delete row and bytes. Raises NotFound, Forbidden (members), Conflict (an open job uses it)."""
    asset = await get_asset(session, brand_id, asset_id)
    num_deleted = await session.run(
        "delete from app.brand_assets where brand_id = %s and id = %s", [brand_id, asset.id]
    )
    if num_deleted == 0:
        raise Forbidden("only an admin of the brand may delete training data")
    await session.run(
        "delete from storage.objects where bucket_id = %s and name = %s", [asset.key.bucket, asset.object_name]
    )
    await anyio.to_thread.run_sync(store.delete, asset.key)
    await write_audit_line(session, brand_id, "asset.delete", {"asset_id": asset.id})


async def _must_be_new(session: Session, brand_id: str, checked: list[Checked]) -> None:
    """Raise Conflict naming a file whose picture is stored already, or occurs twice."""
    digests = [one.image.sha256 for one in checked]
    rows = await session.all(
        "select sha256, object_name from app.brand_assets where brand_id = %s and sha256 = any(%s)",
        [brand_id, digests],
    )
    there = {row["sha256"]: row["object_name"].split("/", 1)[1] for row in rows}
    for index, digest in enumerate(digests):
        name = shown(checked[index].upload.filename)
        if digest in there:
            raise Conflict(f"{name} is there already, as {there[digest]}", param="files")
        if digest in digests[:index]:
            first = checked[digests.index(digest)].upload.filename
            raise Conflict(f"{name} is the same picture as {shown(first)}", param="files")


async def _take_keys(session: Session, brand_id: str, checked: list[Checked]) -> list[Key]:
    """A new key for each file: ``acme/logo-001.jpg``. Numbers are never reused."""
    following = {}
    for kind, count in sorted(Counter(one.upload.object for one in checked).items()):
        row = await session.one("select private.next_number(%s, %s, %s) as first", [brand_id, f"asset:{kind}", count])
        following[kind] = row["first"]
    keys = []
    for one in checked:
        keys.append(training_image(brand_id, one.upload.object, following[one.upload.object], one.image.ext))
        following[one.upload.object] += 1
    return keys


async def _insert(session: Session, brand_id: str, user_id: str, checked: Checked, key: Key) -> str:
    file, image = checked.upload, checked.image
    row = await session.one(
        "insert into app.brand_assets (brand_id, user_id, name, object, object_name, sha256, content_type, bytes,"
        " width, height, metadata, features) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) returning id",
        [
            brand_id, user_id, _plain_name(file.filename), file.object, key.name, image.sha256, image.content_type,
            len(image.bytes), image.width, image.height, Jsonb(dict(file.metadata)),
            Jsonb(asdict(image.features)),
        ],
    )  # fmt: skip
    await session.run(
        "insert into storage.objects (bucket_id, name, user_id, content_type, bytes) values (%s, %s, %s, %s, %s)",
        [key.bucket, key.name, user_id, image.content_type, len(image.bytes)],
    )
    await _insert_caption(session, brand_id, user_id, row["id"], 1, checked.caption)
    return row["id"]


async def _insert_caption(
    session: Session, brand_id: str, user_id: str, asset_id: str, version: int, caption: str
) -> None:
    await session.run(
        "insert into app.asset_captions (brand_id, asset_id, version, caption, user_id) values (%s, %s, %s, %s, %s)",
        [brand_id, asset_id, version, caption, user_id],
    )


def _plain_name(filename: str) -> str:
    """The file's own name: no folders, at most 255 characters."""
    return own_name(filename).strip()[:255] or "image"
