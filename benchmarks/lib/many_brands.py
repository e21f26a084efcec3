"""A temporary database with many brands, for benchmarks of row-level security.

Row n of every table belongs to brand n modulo the number of brands, so that each brand's rows are scattered.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from fastapi import FastAPI

from onbrand.app import create_app
from onbrand.brand import Scope
from onbrand.config import Settings
from onbrand.db.embedded import EmbeddedDatabase, start
from onbrand.db.session import Database
from onbrand.internal.generation import RenderEvent, RenderRequest
from onbrand.secrets_file import Secrets, load_secrets
from onbrand.services.identity import TokenIssuer
from onbrand.storage.store import ObjectStore

_BRAND = "'brand-' || lpad((1 + n %% {brands})::text, 4, '0')"
_ALL, _TENTH, _BRANDS = "rows", "tenth", "brands"
_SCALAR = {"id": "md5('{kind}-' || n)::uuid", "brand": _BRAND, "user": "md5('member-' || (1 + n %% {brands}))::uuid"}
_AT = "timestamptz '2026-01-01' + n * interval '1 second'"
_SHA = "encode(sha256(n::text::bytea), 'hex')"
_SUBJECT = "md5('{kind}-' || (n %% {tenth}))::uuid"
FILLINGS: dict[str, tuple[str, dict[str, str]]] = {
    "app.brand_assets": (_ALL, {
        "id": "md5('asset-' || n)::uuid", "name": "'logo.png'", "object": "'logo'", "user_id": _SCALAR["user"],
        "object_name": _BRAND + " || '/logo-' || n || '.png'", "sha256": _SHA, "content_type": "'image/png'",
        "bytes": "1000", "width": "64", "height": "64", "created_at": _AT,
    }),
    "app.asset_captions": (_ALL, {
        "asset_id": "md5('asset-' || n)::uuid", "version": "1", "caption": "'photo of [brand] logo ' || n",
        "user_id": _SCALAR["user"],
    }),
    "app.lora_training_jobs": (_TENTH, {
        "id": "md5('job-' || n)::uuid", "user_id": _SCALAR["user"], "name": "'a job'", "model_type": "'sd15'",
        "status": "'completed'", "progress": "100", "provider": "'ray'", "created_at": _AT, "completed_at": _AT,
        "model_id": "md5('model-' || n)::uuid",
    }),
    "app.job_assets": (_ALL, {
        "job_id": _SUBJECT.replace("{kind}", "job"), "asset_id": "md5('asset-' || n)::uuid",
    }),
    "app.models": (_TENTH, {
        "id": "md5('model-' || n)::uuid", "job_id": "md5('job-' || n)::uuid", "user_id": _SCALAR["user"],
        "model_type": "'sd15'", "version": "1 + n / {brands}",
        "object_name": _BRAND + " || '/sd15-lora-v' || (1 + n / {brands}) || '.safetensors'", "sha256": _SHA,
        "bytes": "1000", "rank": "8", "trigger_word": "'zilgo'", "base_revision": "'r'", "created_at": _AT,
    }),
    "app.generations": (_TENTH, {
        "id": "md5('generation-' || n)::uuid", "user_id": _SCALAR["user"], "model_id": "md5('model-' || n)::uuid",
        "model_type": "'sd15'", "model_name": "'sd15-lora-v1'", "prompt": "'photo of [brand] logo on a billboard'",
        "num_images": "10", "width": "64", "height": "64", "seed": "n", "num_inference_steps": "8",
        "guidance_scale": "7", "true_cfg_scale": "1", "lora_scale": "1", "output_format": "'png'",
        "status": "'completed'", "progress": "100", "created_at": _AT, "completed_at": _AT,
    }),
    "app.generation_adapters": (_TENTH, {
        "generation_id": "md5('generation-' || n)::uuid", "index": "0", "model_id": "md5('model-' || n)::uuid",
        "model_name": "'sd15-lora-v1'", "sha256": _SHA, "scale": "1",
    }),
    "app.brand_limits": (_BRANDS, {"weight": "1", "max_waiting_pictures": "128", "slot_quota": "8"}),
    "app.generated_images": (_ALL, {
        "id": "md5('image-' || n)::uuid", "generation_id": _SUBJECT.replace("{kind}", "generation"),
        "model_id": _SUBJECT.replace("{kind}", "model"), "user_id": _SCALAR["user"], "index": "n / {tenth}",
        "seed": "n", "object_name": _BRAND + " || '/2026-01-01-' || n || '.png'", "content_type": "'image/png'",
        "width": "64", "height": "64", "bytes": "1000", "sha256": _SHA, "created_at": _AT,
    }),
    "app.job_events": (_ALL, {
        "job_id": "case when n / {tenth} < 5 then " + _SUBJECT.replace("{kind}", "job") + " end",
        "generation_id": "case when n / {tenth} >= 5 then " + _SUBJECT.replace("{kind}", "generation") + " end",
        "seq": "1 + n / {tenth}", "at": _AT, "kind": "case n / {tenth} when 4 then 'log' else 'progress' end",
        "data": "jsonb_build_object('progress', 50, 'metrics', jsonb_build_object('step', n / {tenth}, 'loss', 0.5),"
        " 'code', 'judged_best', 'facts', jsonb_build_object('step', n / {tenth}, 'loss', 0.5))",
    }),
    "storage.objects": (_ALL, {
        "bucket_id": "'training-data'", "name": _BRAND + " || '/logo-' || n || '.png'", "user_id": _SCALAR["user"],
        "content_type": "'image/png'", "bytes": "1000", "created_at": _AT,
    }),
    "audit.events": (_ALL, {
        "seq": "1 + n / {brands}", "at": _AT, "actor": "'user'", "user_id": _SCALAR["user"],
        "action": "'asset.upload'", "detail": "jsonb_build_object('asset_id', md5('asset-' || n))",
        "prev": "case when n >= {brands} then sha256(n::text::bytea) end", "hash": "sha256((n + 1)::text::bytea)",
    }),
    "app.api_keys": (_TENTH, {
        "id": "md5('key-' || n)::uuid", "user_id": _SCALAR["user"], "name": "'a key'", "hash": _SHA,
        "scopes": "array['read', 'upload', 'train', 'generate', 'manage']", "created_at": _AT,
    }),
    "app.invitations": (_TENTH, {
        "id": "md5('invitation-' || n)::uuid", "user_id": "md5('admin-' || (1 + n %% {brands}))::uuid",
        "email": "'invited-' || n || '@example.com'", "role": "'member'", "hash": _SHA, "created_at": _AT,
        "expires_at": _AT + " + interval '7 days'",
    }),
    "app.uploads": (_TENTH, {
        "id": "md5('upload-' || n)::uuid", "user_id": _SCALAR["user"], "kind": "'image'", "filename": "'logo.png'",
        "content_type": "'image/png'", "bytes": "1000", "status": "'completed'", "created_at": _AT,
        "expires_at": _AT + " + interval '1 hour'", "ended_at": _AT,
    }),
    "app.upload_objects": (_TENTH, {
        "upload_id": "md5('upload-' || n)::uuid", "index": "0", "asset_id": "md5('asset-' || n)::uuid",
    }),
    "app.documents": (_TENTH, {
        "id": "md5('document-' || n)::uuid", "user_id": _SCALAR["user"], "name": "'guidelines'",
        "version": "1 + n / {brands}", "title": "'Guidelines'", "sha256": _SHA, "bytes": "1000", "created_at": _AT,
        "object_name": _BRAND + " || '/guidelines-v' || (1 + n / {brands}) || '.pdf'", "num_pages": "1",
        "content_type": "'application/pdf'",
    }),
}  # fmt: skip
"""For each table: the number of rows, and its columns except brand_id as SQL over n."""
GENERATED_BRAND = frozenset({"storage.objects"})
"""Tables with brand_id as a generated column."""
EMPTY = frozenset({"app.brand_users", "app.numbers", "app.idempotency_keys", "app.brand_usage"})
"""Tables with brand_id that are filled elsewhere, or that no list reads."""
WRITERS = {"audit.events": "onbrand_definer"}
"""Tables into which only one role may insert."""


@dataclass(frozen=True)
class ManyBrands:
    """A filled database and the settings of a platform on it.

    Args:
        settings, secrets: of a platform on this database.
        num_rows: rows of each large table.
    """

    settings: Settings
    secrets: Secrets
    database: EmbeddedDatabase
    num_rows: int
    num_brands: int

    def brand(self, number: int) -> str:
        """The id of brand 1, 2, ..."""
        return f"brand-{number:04}"

    def scope(self, role: str, number: int) -> Scope:
        """The scope of a caller. `member`, `admin`: of that brand; `agency`: a member of it and nine others; `key`: its
        API key; `page`: the member with a browser session."""
        if role == "key":
            user = known_id("member", number)
            return Scope(user, self.brand(number), known_id("key", number - 1), frozenset({"read"}), purpose="read")
        if role == "page":
            return Scope(known_id("member", number), session_id=known_id("session", number - 1))
        return Scope(known_id(role, number))

    def things(self, number: int) -> dict[str, str]:
        """An object of that brand for each name in route paths."""
        row = number - 1
        ids = {name: known_id(name, row) for name in _NAMED}
        return {f"{name}_id": value for name, value in ids.items()} | {
            "brand_id": self.brand(number),
            "user_id": known_id("member2", number),
            "session_id": known_id("session", row),
            "model": ids["model"],
        }

    def token(self, scope: Scope) -> str:
        """A bearer token of a user."""
        return TokenIssuer(self.secrets.tokens).issue(scope.user_id, scope.brand_id)[0]

    def app(self, db: Database) -> FastAPI:
        """The users' app on this database; it cannot generate images."""
        store = ObjectStore.from_settings(self.settings, self.secrets)
        return create_app(self.settings, self.secrets, db, store, _Nobody())


_NAMED = ("asset", "job", "model", "generation", "image", "key", "invitation", "upload", "document")


class _Nobody:
    """An image generator that is never called."""

    async def generate(self, family: str, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        raise NotImplementedError
        yield

    async def cancel(self, family: str, generation_id: str) -> None:
        raise NotImplementedError


def known_id(kind: str, number: int) -> str:
    """The id of the `number`-th object of a kind in the filled tables."""
    return str(uuid.UUID(hashlib.md5(f"{kind}-{number}".encode(), usedforsecurity=False).hexdigest()))


@contextmanager
def many_brands(num_rows: int, num_brands: int) -> Iterator[ManyBrands]:
    """A database with `num_rows` rows in each large table, for `num_brands` brands. SIGTERM also stops it."""
    with tempfile.TemporaryDirectory(prefix="onbrand-benchmark-") as folder, _ended_by_sigterm():
        settings = Settings(data_dir=Path(folder))
        database = start(settings)
        try:
            fill(database.owner_url, num_rows, num_brands)
            yield ManyBrands(settings, load_secrets(settings), database, num_rows, num_brands)
        finally:
            database.stop()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the database server, a process of its own, is stopped."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fill(owner_url: str, num_rows: int, num_brands: int) -> None:
    """Fill all tables with brand_id. Raises ValueError for an unknown table or an invalid number of rows."""
    if num_rows % (10 * num_brands):
        raise ValueError("the number of rows must be a multiple of ten times the number of brands")
    numbers = {_ALL: num_rows, _TENTH: num_rows // 10, _BRANDS: num_brands}
    with psycopg.connect(owner_url) as connection:
        must_be_known(connection)
        connection.execute("set session_replication_role = replica")  # triggers and foreign keys would take minutes
        _fill_people(connection, num_brands)
        for table, (count, columns) in FILLINGS.items():
            if connection.execute("select to_regclass(%s)", [table]).fetchone() != (None,):
                _fill_table(connection, table, numbers[count], columns, numbers)
        connection.commit()
        connection.autocommit = True
        connection.execute("vacuum analyze")


def must_be_known(connection: psycopg.Connection[Any]) -> None:
    """Raise ValueError for tables with brand_id that are not in `FILLINGS` or `EMPTY`."""
    rows = connection.execute(
        "select c.oid::regclass::text from pg_class c join pg_attribute a on a.attrelid = c.oid"
        " where a.attname = 'brand_id' and not a.attisdropped and c.relkind in ('r', 'p')"
    ).fetchall()
    unknown = {row[0] for row in rows} - set(FILLINGS) - EMPTY
    if unknown:
        raise ValueError(f"say in benchmarks/lib/many_brands.py how to fill {', '.join(sorted(unknown))}")


def _fill_people(connection: psycopg.Connection[Any], num_brands: int) -> None:
    numbers: Mapping[str, int] = {"brands": num_brands}
    connection.execute(
        "insert into identity.users (id, email) select md5(w || '-' || b)::uuid, w || '-' || b || '@example.com'"
        " from generate_series(1, %(brands)s) b, unnest(array['admin', 'member', 'member2', 'agency']) w",
        numbers,
    )
    connection.execute(
        "insert into identity.sessions (id, user_id, hash, idle, expires_at)"
        " select md5('session-' || (b - 1))::uuid, md5('member-' || b)::uuid, encode(sha256(b::text::bytea), 'hex'),"
        " interval '1 day', now() + interval '1 day' from generate_series(1, %(brands)s) b",
        numbers,
    )
    connection.execute(
        "insert into app.brands (id, name, user_id)"
        " select 'brand-' || lpad(b::text, 4, '0'), 'Brand ' || b, md5('admin-' || b)::uuid"
        " from generate_series(1, %(brands)s) b",
        numbers,
    )
    connection.execute(
        "insert into app.brand_users (brand_id, user_id, role)"
        " select 'brand-' || lpad(b::text, 4, '0'), md5(w || '-' || b)::uuid,"
        " case w when 'admin' then w else 'member' end"
        " from generate_series(1, %(brands)s) b, unnest(array['admin', 'member', 'member2']) w"
        " union all"
        " select distinct 'brand-' || lpad((1 + (b + i) %% %(brands)s)::text, 4, '0'), md5('agency-' || b)::uuid,"
        " 'member' from generate_series(1, %(brands)s) b, generate_series(-1, 8) i",
        numbers,
    )


def _fill_table(
    connection: psycopg.Connection[Any], table: str, count: int, columns: Mapping[str, str], numbers: Mapping[str, int]
) -> None:
    said = dict(columns) if table in GENERATED_BRAND else {"brand_id": _BRAND, **columns}
    values = ", ".join(said.values()).replace("%%", "%").format(**numbers)
    statement = f"insert into {table} ({', '.join(said)}) select {values} from generate_series(0, {count - 1}) n"
    connection.execute("select set_config('role', %s, true)", [WRITERS.get(table, "none")])
    connection.execute(statement)  # type: ignore[arg-type]
    connection.execute("select set_config('role', 'none', true)")
