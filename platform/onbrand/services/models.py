"""Published adapters: list, find by id or name, download (recorded), delete (admins only)."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, Literal, cast

import anyio.to_thread

from onbrand.adapter import AdapterRef
from onbrand.config import FamilyName
from onbrand.db.session import Session
from onbrand.errors import Forbidden, InvalidInput, NotAsPublished, NotFound
from onbrand.families.lora_kohya import kohya_file
from onbrand.services.audit import write_audit_line
from onbrand.services.pagination import Page, Row, known_id, must_be_there, page_of
from onbrand.storage.layout import Key, model_metadata
from onbrand.storage.store import BrandStore
from onbrand.visible import hidden_in

security_log = logging.getLogger("onbrand.security")

_NAME = re.compile(r"[a-z0-9]{1,10}-lora-v[1-9][0-9]{0,8}")
FileFormat = Literal["diffusers", "kohya"]
"""Formats of a download: the published file itself, or the same adapter under kohya's names."""
_MODEL = "select t.* from app.models t"
_PLACE = ("brand_id", "is_base", "age", "name")
REACHED_MAX = 1000
"""Maximum models on a page of `list_reached`."""


class Model(Row):
    """A published adapter: immutable, named by brand, family and version."""

    id: str
    brand_id: str
    job_id: str | None
    user_id: str
    name: str
    model_type: str
    version: int
    object_name: str
    sha256: str
    bytes: int
    rank: int
    trigger_word: str
    base_revision: str
    metrics: dict[str, Any]
    created_at: datetime

    @property
    def key(self) -> Key:
        """The key of its bytes in the store."""
        return Key("models", self.object_name)


def adapter_ref(model: Model) -> AdapterRef:
    """The adapter's reference for engines, by its content."""
    return AdapterRef(model.brand_id, model.id, model.model_type, model.version, model.sha256)


async def list_models(session: Session, brand_id: str, limit: int = 20, cursor: str | None = None) -> Page[Model]:
    """The brand's models, newest first."""
    return await page_of(session, Model, _MODEL, brand_id, limit, cursor)


async def get_model(session: Session, brand_id: str, name_or_id: str) -> Model:
    """One model, by its id or by its name (``flux-lora-v2``). Raises NotFound."""
    if _NAME.fullmatch(name_or_id):
        column = "name"
    else:
        column, name_or_id = "id", known_id(name_or_id, "model")
    row = await session.maybe(f"{_MODEL} where t.brand_id = %s and t.{column} = %s", [brand_id, name_or_id])
    return Model.of(must_be_there(row, "model"))


class Reached(Row):
    """A model that a credential reaches: an adapter of a brand, or a base under that brand."""

    brand_id: str
    name: str
    is_base: bool = False
    created_at: datetime | None = None


async def list_reached(session: Session, families: Sequence[str], limit: int, cursor: str | None) -> Page[Reached]:
    """The models of all brands that the session's credential reaches, by brand, newest first, then the bases.

    Raises InvalidInput for an invalid cursor.
    """
    after = _place_of(cursor) if cursor else [None] * 4
    rows = await session.all(
        "select * from private.my_models(%s, %s, %s, %s, %s, %s)", [list(families), *after, limit + 1]
    )
    more = len(rows) > limit
    place = json.dumps([rows[limit - 1][name] for name in _PLACE], default=str) if more else None
    return Page[Reached](
        data=[Reached.of(row) for row in rows[:limit]],
        has_more=more,
        next_cursor=base64.urlsafe_b64encode(place.encode()).decode() if place else None,
    )


def _place_of(cursor: str) -> list[Any]:
    try:
        brand_id, is_base, age, name = json.loads(base64.urlsafe_b64decode(cursor))
        return [_storable(brand_id), bool(is_base), Decimal(age), _storable(name)]
    except (ValueError, TypeError, ArithmeticError):
        raise InvalidInput("the cursor is not one that a list of ours gave", param="cursor") from None


def _storable(said: object) -> str:
    """`said` as text. Raises ValueError if it has characters that no name has."""
    if hidden_in(text := str(said)) is not None:
        raise ValueError("a character that no name has")
    return text


async def find_model_of_job(session: Session, brand_id: str, job_id: str) -> Model | None:
    """The model that a job published, or None."""
    row = await session.maybe(f"{_MODEL} where t.brand_id = %s and t.job_id = %s", [brand_id, job_id])
    return None if row is None else Model.of(row)


async def delete_model(session: Session, store: BrandStore, brand_id: str, name_or_id: str) -> None:
    """Delete row and bytes; its version is never reused. Raises NotFound, Forbidden."""
    model = await get_model(session, brand_id, name_or_id)
    num_deleted = await session.run("delete from app.models where brand_id = %s and id = %s", [brand_id, model.id])
    if num_deleted == 0:
        raise Forbidden("only an admin of the brand may delete models")
    await session.run(
        "delete from storage.objects where bucket_id = %s and name = %s", [model.key.bucket, model.object_name]
    )
    await write_metadata(session, store, brand_id)
    await anyio.to_thread.run_sync(store.delete, model.key)
    await write_audit_line(session, brand_id, "model.delete", {"model_id": model.id, "name": model.name})


async def read_weights(session: Session, store: BrandStore, brand_id: str, model_id: str) -> tuple[Model, bytes]:
    """Row and bytes of a model that the session may see (for a generation's ticket: a model of the generation).

    Raises NotFound; NotAsPublished, a security event, if the stored bytes differ from the published ones.
    """
    model = await get_model(session, brand_id, known_id(model_id, "model"))
    return model, await _as_published(store, model)


async def read_kohya(store: BrandStore, model: Model) -> bytes:
    """The adapter file under kohya's names. Hold no transaction meanwhile. Raises NotFound, NotAsPublished."""
    data = await _as_published(store, model)
    return await anyio.to_thread.run_sync(lambda: b"".join(kohya_file(data, cast(FamilyName, model.model_type))))


async def record_download(session: Session, model: Model) -> None:
    """Write a line to the brand's record: the caller downloads the file in kohya's format."""
    await write_audit_line(session, model.brand_id, "model.download", {"model_id": model.id, "format": "kohya"})


async def _as_published(store: BrandStore, model: Model) -> bytes:
    data = await anyio.to_thread.run_sync(store.read, model.key)
    digest = (await anyio.to_thread.run_sync(hashlib.sha256, data)).hexdigest()
    if digest != model.sha256:
        security_log.error("the stored bytes of model %s are not those that were published", model.id)
        raise NotAsPublished(f"the stored bytes of {model.name} are not those that were published; train it again")
    return data


async def write_metadata(session: Session, store: BrandStore, brand_id: str) -> None:
    """Write the brand's `metadata.json` from the current rows; a rollback restores the old one."""
    await session.run("select private.lock_brand('metadata', %s)", [brand_id])
    rows = await session.all(f"{_MODEL} where t.brand_id = %s order by t.model_type, t.version", [brand_id])
    names = ("id", "name", "model_type", "version", "object_name", "sha256", "bytes", "rank", "base_revision")
    versions = [{name: row[name] for name in names} | {"created_at": row["created_at"].isoformat()} for row in rows]
    text = json.dumps({"brand_id": brand_id, "models": versions}, indent=1) + "\n"
    key = model_metadata(brand_id)
    try:
        before = await anyio.to_thread.run_sync(store.read, key)
        session.on_rollback(partial(anyio.to_thread.run_sync, store.write, key, before))
    except NotFound:
        session.on_rollback(partial(anyio.to_thread.run_sync, store.delete, key))
    await anyio.to_thread.run_sync(store.write, key, text.encode(), key.content_type)
