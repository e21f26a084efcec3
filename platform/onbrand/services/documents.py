"""Documents of a brand: guidelines, voice and tone. Each upload of a name is its next version; admins delete."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Literal

import anyio.to_thread

from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import Conflict, Forbidden, InvalidInput, TooLarge, UnsupportedMedia
from onbrand.sandbox.checker import Checker
from onbrand.sandbox.incoming_files import Content, size_of
from onbrand.sandbox.results import CleanDocument, shown
from onbrand.services.audit import write_audit_line
from onbrand.services.pagination import Page, Row, forbidden_as_not_found, known_id, must_be_there, page_of, page_where
from onbrand.services.storage_quota import must_have_fitted, must_not_be_full
from onbrand.storage.layout import INCOMING, Key
from onbrand.storage.layout import document as document_key
from onbrand.storage.store import BrandStore
from onbrand.visible import hidden_in

_EXTENSIONS: dict[str, Literal["pdf", "md"]] = {"pdf": "pdf", "md": "md", "markdown": "md"}
_NAME_CHARS_MAX = 60
_TITLE_CHARS_MAX = 200
_VERSIONS = "select t.* from app.documents t"
_NEWEST = """
select t.* from (
  select distinct on (d.brand_id, d.name) d.* from app.documents d order by d.brand_id, d.name, d.version desc) t
"""


@dataclass(frozen=True, slots=True)
class Checked:
    """A document that passed its check: rewritten, with a name that is valid as a key."""

    name: str
    title: str = field(repr=False)
    clean: CleanDocument = field(repr=False)


class Document(Row):
    """One version of a document. All versions have the same `name`, which also names their objects."""

    id: str
    brand_id: str
    user_id: str
    name: str
    version: int
    title: str
    object_name: str
    content_type: str
    bytes: int
    num_pages: int | None
    sha256: str
    created_at: datetime

    @property
    def key(self) -> Key:
        """The key of its bytes in the store."""
        return Key("brand-documents", self.object_name)


async def check(checker: Checker, filename: str, data: Content, limits: Limits, title: str | None = None) -> Checked:
    """Check and rewrite the document in a child process. Needs no transaction.

    Args:
        title: its displayed title, from which its name is made; None: the file's name without its extension.

    Raises:
        UnsupportedMedia, TooLarge, InvalidInput: it is not acceptable; the message says why.
        Unavailable: no child process can be started.
    """
    stem, ext = must_be_document_name(filename)
    title = _must_be_title(stem if title is None else title)
    name = _named(title)
    if size_of(data) > limits.document_bytes:
        raise TooLarge(f"{shown(filename)} has more than {limits.document_bytes} bytes", param="file")
    clean = await checker.run(checker.document, data, ext, filename)
    return Checked(name, title, clean)


def must_be_document_name(filename: str) -> tuple[str, Literal["pdf", "md"]]:
    """A file name's stem, and the type by its extension. Raises UnsupportedMedia unless it is PDF or Markdown."""
    stem, _, ext = filename.replace("\\", "/").rsplit("/", 1)[-1].rpartition(".")
    if ext.lower() not in _EXTENSIONS:
        raise UnsupportedMedia(f"{shown(filename)} is neither a .pdf nor a .md", param="file")
    return stem, _EXTENSIONS[ext.lower()]


def _must_be_title(title: str) -> str:
    title = title.strip()
    if not 1 <= len(title) <= _TITLE_CHARS_MAX or hidden_in(title):
        raise InvalidInput(f"a title has 1 to {_TITLE_CHARS_MAX} characters that can be seen", param="title")
    return title


def _named(title: str) -> str:
    """The name made from a title: ``brand-guidelines`` from `Brand Guidelines`."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_NAME_CHARS_MAX].strip("-")
    if not name or name == INCOMING:
        raise InvalidInput("a title needs letters or digits from a to z, and is not 'incoming'", param="title")
    return name


async def store_checked(
    session: Session, store: BrandStore, brand_id: str, user_id: str, checked: Checked, limits: Limits | None = None
) -> Document:
    """Store a checked document as the next version of its name.

    Raises:
        Conflict: the newest version has the same content.
        TooLarge: the brand or the caller has too much stored.
        NotFound: not the caller's brand.
    """
    clean, limits = checked.clean, limits or Limits()
    async with forbidden_as_not_found("brand"):
        await must_not_be_full(session, brand_id, len(clean.bytes), limits)
        taken = await session.one(
            "select private.next_number(%s, %s, 1) as version", [brand_id, f"document:{checked.name}"]
        )
        await _must_be_new(session, brand_id, checked)
        key = document_key(brand_id, checked.name, clean.ext, taken["version"])
        row = await session.one(
            "insert into app.documents (brand_id, user_id, name, version, title, object_name, content_type, bytes,"
            " num_pages, sha256) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) returning *",
            [
                brand_id, user_id, checked.name, taken["version"], checked.title, key.name, clean.content_type,
                len(clean.bytes), clean.num_pages, clean.sha256,
            ],
        )  # fmt: skip
        await session.run(
            "insert into storage.objects (bucket_id, name, user_id, content_type, bytes) values (%s, %s, %s, %s, %s)",
            [key.bucket, key.name, user_id, clean.content_type, len(clean.bytes)],
        )
    session.on_rollback(partial(anyio.to_thread.run_sync, store.delete, key))
    await anyio.to_thread.run_sync(store.write, key, clean.bytes, clean.content_type)
    made = Document.of(row)
    await write_audit_line(session, brand_id, "document.create", {"document_id": made.id, "version": made.version})
    await must_have_fitted(session, brand_id, limits)
    return made


async def _must_be_new(session: Session, brand_id: str, checked: Checked) -> None:
    newest = await session.maybe(
        "select version, sha256 from app.documents where brand_id = %s and name = %s order by version desc limit 1",
        [brand_id, checked.name],
    )
    if newest is not None and newest["sha256"] == checked.clean.sha256:
        raise Conflict(f"version {newest['version']} of {checked.name} is the same document", param="file")


async def list_documents(session: Session, brand_id: str, limit: int = 20, cursor: str | None = None) -> Page[Document]:
    """The newest version of each document, newest first."""
    return await page_of(session, Document, _NEWEST, brand_id, limit, cursor)


async def list_versions(
    session: Session, brand_id: str, document_id: str, limit: int = 20, cursor: str | None = None
) -> Page[Document]:
    """All versions of the document that has this version id, newest first. Raises NotFound."""
    document = await get_document(session, brand_id, document_id)
    select = f"{_VERSIONS} where t.brand_id = %(brand_id)s and t.name = %(name)s"
    return await page_where(session, Document, select, {"brand_id": brand_id, "name": document.name}, limit, cursor)


async def get_document(session: Session, brand_id: str, document_id: str) -> Document:
    """One version. Raises NotFound."""
    document_id = known_id(document_id, "document")
    row = await session.maybe(f"{_VERSIONS} where t.brand_id = %s and t.id = %s", [brand_id, document_id])
    return Document.of(must_be_there(row, "document"))


async def delete_document(session: Session, store: BrandStore, brand_id: str, document_id: str) -> None:
    """Delete row and bytes of one version; its number is never reused. Raises NotFound, Forbidden (members)."""
    document = await get_document(session, brand_id, document_id)
    num_deleted = await session.run(
        "delete from app.documents where brand_id = %s and id = %s", [brand_id, document.id]
    )
    if num_deleted == 0:
        raise Forbidden("only an admin of the brand may delete documents")
    await session.run(
        "delete from storage.objects where bucket_id = %s and name = %s", [document.key.bucket, document.object_name]
    )
    await anyio.to_thread.run_sync(store.delete, document.key)
    await write_audit_line(
        session, brand_id, "document.delete", {"document_id": document.id, "version": document.version}
    )
