"""Training pictures: an upload is stored whole or not at all, captions have versions, admins delete."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, Literal, get_args

import anyio.to_thread
from psycopg.types.json import Jsonb

from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import Conflict, Forbidden, InvalidInput, TooLarge, UnsupportedMedia
from onbrand.filenames import described, is_caption, is_litter, own_name
from onbrand.sandbox.checker import Checker
from onbrand.sandbox.incoming_files import Content, bytes_of, is_archive, size_of
from onbrand.sandbox.results import CleanImage, shown
from onbrand.services.brands import record
from onbrand.services.pagination import Page, Row, forbidden_as_not_found, known_id, must_be_there, page_of
from onbrand.services.storage_quota import must_have_fitted, must_not_be_full
from onbrand.storage.layout import Key, training_image
from onbrand.storage.store import BrandStore
from onbrand.visible import must_be_visible, text_of

ObjectKind = Literal["logo", "product", "person", "packaging", "other"]
FILES_PER_PICTURE = 4
"""Maximum files of a form per picture: the picture, its caption, and macOS's companion file of each."""
_METADATA_CHARS = 10_000
_ASSET = """
select t.id, t.brand_id, t.user_id, t.name, t.type, t.object, t.object_name, t.metadata, t.content_type,
  t.bytes, t.width, t.height, t.sha256, t.created_at, c.caption, c.version as caption_version
from app.brand_assets t left join lateral (
  select ac.caption, ac.version from app.asset_captions ac
  where ac.brand_id = t.brand_id and ac.asset_id = t.id order by ac.version desc limit 1) c on true
"""


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file before its check.

    Args:
        data: its bytes, or a file that is read later.
        caption: None becomes ``photo of [brand] logo`` (by its object).
    """

    filename: str
    data: Content = field(repr=False)
    caption: str | None = field(default=None, repr=False)
    object: str = "other"
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Checked:
    """A picture that passed its check: re-encoded, with a valid caption and valid fields."""

    upload: Upload
    image: CleanImage = field(repr=False)
    caption: str = field(repr=False)


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


async def check(checker: Checker, files: list[Upload], limits: Limits) -> list[Checked]:
    """Check and re-encode every file in a child process; a zip archive becomes its pictures. Needs no transaction.

    Raises:
        UnsupportedMedia, TooLarge, InvalidInput: a file, caption or field is not acceptable; the message names it.
        Unavailable: no child process can be started.
    """
    files = await _described(files, limits)
    _must_be_countable(files, limits)
    for file in files:
        must_be_fine(file, limits)
    checked: list[Checked] = []
    left = 2 * limits.unpacked_bytes
    for file in files:  # one archive at a time: its content stays in memory until it is checked
        pictures = await _unpacked(checker, file)
        _must_be_few(len(checked) + len(pictures), limits)
        captions = [must_be_fine(picture, limits) for picture in pictures]
        for caption in captions:
            checked.append(await _made_anew(checker, pictures.pop(0), caption))
            left -= len(checked[-1].image.bytes)
            if left < 0:
                raise TooLarge("the pictures are too large for one upload; send some of them in another", param="files")
    return checked


async def _made_anew(checker: Checker, picture: Upload, caption: str) -> Checked:
    image = await checker.run(checker.picture, picture.data, picture.filename)
    must_be_filename(picture.filename, "files")
    return Checked(replace(picture, data=b""), image, caption)


def _must_be_few(num_pictures: int, limits: Limits) -> None:
    if num_pictures > (most := max(limits.upload_files, limits.zip_files)):
        raise TooLarge(f"{num_pictures} pictures in one upload; the limit is {most}", param="files")


async def _described(files: list[Upload], limits: Limits) -> list[Upload]:
    """The pictures and archives among the files; the text files become their captions, as in an archive.

    Raises:
        InvalidInput: only system files, or a text file that is not a valid caption.
        UnsupportedMedia: a text file that is not the caption of exactly one picture.
    """
    kept = [file for file in files if not is_litter(file.filename.replace("\\", "/"))]
    if files and not kept:
        raise InvalidInput(f"{shown(files[0].filename)} is no picture: a system keeps it beside them", param="files")
    names = [file.filename for file in kept]
    texts = [index for index, file in enumerate(kept) if is_caption(file.filename) and not is_archive(file.data)]
    found = described(names, texts)
    for index in [*found.nobodys, *found.doubtful]:
        raise UnsupportedMedia(
            f"{shown(names[index])} is neither a picture nor the caption of exactly one picture of its name",
            param="files",
        )
    captions = {picture: await _caption_in(kept[text], limits) for picture, text in found.captions.items()}
    return [
        replace(file, caption=captions.get(index, file.caption))
        for index, file in enumerate(kept)
        if index not in texts
    ]


async def _caption_in(file: Upload, limits: Limits) -> str:
    """The caption in a text file. Raises InvalidInput, TooLarge."""
    if size_of(file.data) > 4 * limits.caption_chars + 16:
        raise TooLarge(f"{shown(file.filename)} has more than {limits.caption_chars} characters", param="files")
    try:
        text = text_of(await bytes_of(file.data))
    except ValueError as problem:
        raise InvalidInput(f"{shown(file.filename)} {problem}", param="files") from None
    return _must_be_caption(text, limits, f"the caption in {shown(file.filename)}", "files")


async def _unpacked(checker: Checker, file: Upload) -> list[Upload]:
    """The file itself, or an archive's pictures; the file's caption applies to those without their own."""
    if not is_archive(file.data):
        return [file]
    packed = await checker.run(checker.unpack, file.data, file.filename)
    return [
        replace(
            file, filename=one.filename, data=one.data, caption=file.caption if one.caption is None else one.caption
        )
        for one in packed
    ]


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
    await record(session, brand_id, "asset.upload", {"asset_ids": ids})
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
    await record(session, brand_id, "asset.recaption", {"asset_id": asset.id, "version": asset.caption_version + 1})
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
    await record(session, brand_id, "asset.delete", {"asset_id": asset.id})


def _must_be_countable(files: list[Upload], limits: Limits) -> None:
    if not files:
        raise InvalidInput("send at least one picture", param="files")
    if len(files) > limits.upload_files:
        raise TooLarge(f"{len(files)} files in one upload; the limit is {limits.upload_files}", param="files")


def must_be_fine(file: Upload, limits: Limits) -> str:
    """Check a file's fields and return its caption. Raises InvalidInput."""
    if file.object not in get_args(ObjectKind):
        raise InvalidInput(f"object must be one of {', '.join(get_args(ObjectKind))}", param="object")
    try:
        size = len(json.dumps(dict(file.metadata), allow_nan=False))
    except (TypeError, ValueError):
        raise InvalidInput("metadata must be a JSON object", param="metadata") from None
    if size > _METADATA_CHARS:
        raise InvalidInput(f"metadata has {size} characters; the limit is {_METADATA_CHARS}", param="metadata")
    what = "" if file.object == "other" else f" {file.object}"
    if file.caption is None:
        return _must_be_caption(f"photo of [brand]{what}", limits)
    return _must_be_caption(file.caption, limits, f"the caption of {shown(file.filename)}")


def _must_be_caption(caption: str, limits: Limits, what: str = "a caption", param: str = "captions") -> str:
    caption = caption.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not 1 <= len(caption) <= limits.caption_chars:
        raise InvalidInput(f"{what} must have 1 to {limits.caption_chars} characters; got {len(caption)}", param=param)
    must_be_visible(caption, what, param, lines=True)
    return caption


def must_be_filename(filename: str, param: str) -> None:
    """Raise InvalidInput for a name with invisible characters."""
    must_be_visible(own_name(filename), shown(filename), param)


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
