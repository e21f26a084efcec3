"""API keys: brand-bound credentials that act for the admin who made them, within their scopes.

A key is `ob_<id>_<secret>`, shown once; only the secret's SHA-256 is kept (256 random bits need no slow hash).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import Field

from onbrand.brand import KEY_SCOPES, KeyScope, Scope
from onbrand.db.session import Session
from onbrand.errors import Forbidden, InvalidInput, Unauthenticated
from onbrand.services import audit, brands
from onbrand.services.pagination import Page, Row, known_id, must_be_there, page_of
from onbrand.visible import must_be_name

PREFIX = "ob_"
_TOKEN = re.compile(r"ob_([0-9a-f]{32})_([0-9a-f]{64})")
_COLUMNS = (
    "t.id, t.brand_id, t.user_id, t.name, t.prefix, t.scopes, t.created_at, t.expires_at, t.last_used_at, t.revoked_at"
)


class ApiKey(Row):
    """A key without its secret. `prefix` is the key's beginning, enough to recognise it."""

    id: str
    brand_id: str
    user_id: str
    name: str
    prefix: str
    scopes: tuple[KeyScope, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class NewApiKey(ApiKey):
    """A new key with its secret, shown to its maker once."""

    key: str | None = Field(repr=False)


async def create_key(
    session: Session, brand_id: str, name: str, scopes: Sequence[str], expires_at: datetime | None = None
) -> NewApiKey:
    """Make a key of the caller's in one brand; its `key` is not available later.

    Args:
        scopes: of read, upload, train, generate, manage; manage covers the admins' actions.

    Raises:
        InvalidInput: an invalid name, no or unknown scopes, or an end that is not in the future.
        Forbidden: the caller is not an admin, or is a key.
    """
    await brands.must_be_admin(session, brand_id, "make keys")
    secret = secrets.token_hex(32)
    row = await session.one(
        "insert into app.api_keys as t (brand_id, user_id, name, hash, scopes, expires_at)"
        f" values (%s, private.uid(), %s, %s, %s, %s) returning {_COLUMNS}",
        [brand_id, must_be_name(name), _hash_of(secret), _must_be_scopes(scopes), _must_be_ahead(expires_at)],
    )
    await audit.write_audit_line(session, brand_id, "key.create", {"key_id": row["id"], "scopes": list(row["scopes"])})
    return NewApiKey.of({**row, "key": f"{PREFIX}{row['id'].replace('-', '')}_{secret}"})


async def list_keys(session: Session, brand_id: str, limit: int = 20, cursor: str | None = None) -> Page[ApiKey]:
    """All keys of the brand for an admin, one's own for a member; newest first, revoked ones too."""
    return await page_of(session, ApiKey, f"select {_COLUMNS} from app.api_keys t", brand_id, limit, cursor)


async def get_key(session: Session, brand_id: str, key_id: str) -> ApiKey:
    """One key: any of the brand's for an admin, one's own for a member. Raises NotFound."""
    row = await session.maybe(
        f"select {_COLUMNS} from app.api_keys t where t.brand_id = %s and t.id = %s",
        [brand_id, known_id(key_id, "key")],
    )
    return ApiKey.of(must_be_there(row, "key"))


async def revoke_key(session: Session, brand_id: str, key_id: str) -> None:
    """Revoke a key at once and permanently; repeating is allowed. Raises NotFound, Forbidden."""
    key_id = known_id(key_id, "key")
    await brands.must_be_admin(session, brand_id, "revoke keys")
    await get_key(session, brand_id, key_id)
    num_revoked = await session.run(
        "update app.api_keys set revoked_at = now() where brand_id = %s and id = %s and revoked_at is null",
        [brand_id, key_id],
    )
    if num_revoked:
        await audit.write_audit_line(session, brand_id, "key.revoke", {"key_id": key_id})


@dataclass(frozen=True, slots=True)
class KeyCredential:
    """A key's id and the SHA-256 of its secret, as the database stores them."""

    key_id: str
    sha256: str = field(repr=False)


def credential_of(token: str) -> KeyCredential:
    """The credential of a key as its holder sends it. Raises Unauthenticated for anything else."""
    parts = _TOKEN.fullmatch(token)
    if not parts:
        raise _unknown()
    return KeyCredential(known_id(parts[1], "key"), _hash_of(parts[2]))


async def scope_of(session: Session, credential: KeyCredential) -> Scope:
    """The scope of a key; `session` is anonymous (`anon`).

    Raises Unauthenticated for a key that is invalid, was revoked, has expired, or whose maker left the brand.
    """
    row = await session.maybe(
        "select brand_id, user_id, scopes from private.find_key(%s, %s)", [credential.key_id, credential.sha256]
    )
    if row is None:
        raise _unknown()
    return Scope(row["user_id"], row["brand_id"], credential.key_id, frozenset(row["scopes"]))


def _unknown() -> Unauthenticated:
    return Unauthenticated("this key is unknown, revoked or expired; ask an admin of the brand for another")


def must_be_in_person(scope: Scope, verb: str) -> None:
    """Raise Forbidden for a key; `verb` completes "a key cannot ..."."""
    if not scope.is_in_person:
        raise Forbidden(f"a key cannot {verb}; log in")


def _hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _must_be_scopes(scopes: Sequence[str]) -> list[str]:
    if unknown := [scope for scope in scopes if scope not in KEY_SCOPES]:
        raise InvalidInput(f"{unknown[0][:40]!r} is no scope; scopes are {', '.join(KEY_SCOPES)}", param="scopes")
    if not scopes:
        raise InvalidInput(f"name at least one scope of {', '.join(KEY_SCOPES)}", param="scopes")
    return [scope for scope in KEY_SCOPES if scope in scopes]


def _must_be_ahead(expires_at: datetime | None) -> datetime | None:
    if expires_at is not None and (expires_at.tzinfo is None or expires_at <= datetime.now(UTC)):
        raise InvalidInput("expires_at must be a time in the future, with its zone", param="expires_at")
    return expires_at
