"""Common parts of returned rows: frozen, ids as text, pages with opaque cursors, one error for absence."""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from onbrand.db.session import Session
from onbrand.errors import Forbidden, InvalidInput, NotFound

PAGE_MAX = 100
_BEFORE_ALL = ("infinity", "ffffffff-ffff-ffff-ffff-ffffffffffff")


class Row(BaseModel):
    """A row as a caller sees it; its JSON is the API's object."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls.model_validate(dict(row))


R = TypeVar("R", bound=Row)


class Page(BaseModel, Generic[R]):
    """One page of a list, newest first; `next_cursor` requests the next page."""

    model_config = ConfigDict(frozen=True)

    object: Literal["list"] = "list"
    data: list[R]
    has_more: bool
    next_cursor: str | None = None


async def page_of(
    session: Session, kind: type[R], select: str, brand_id: str, limit: int, cursor: str | None
) -> Page[R]:
    """A page of `select`, a statement up to its FROM clause, with a table `t` that has brand_id.

    Raises InvalidInput for a limit outside 1 to 100, or an invalid cursor.
    """
    select = f"{select} where t.brand_id = %(brand_id)s"
    return await page_where(session, kind, select, {"brand_id": brand_id}, limit, cursor)


async def page_where(
    session: Session, kind: type[R], select: str, params: Mapping[str, Any], limit: int, cursor: str | None
) -> Page[R]:
    """A page of `select`, a statement up to and with its WHERE clause, with a table `t` that has created_at and id.

    It may also use `%(at)s` and `%(after)s` (the cursor's position, or one before all rows) and `%(limit)s` (rows to
    read). PostgreSQL keeps the plan only because the condition has no alternative and the limit is no parameter.

    Raises InvalidInput for a limit outside 1 to 100, or an invalid cursor.
    """
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidInput(f"limit must be 1 to {PAGE_MAX}", param="limit")
    at, after = _place(cursor) if cursor else _BEFORE_ALL
    rows = await session.all(
        f"{select} and (t.created_at, t.id) < (%(at)s::timestamptz, %(after)s::uuid)"
        f" order by t.created_at desc, t.id desc limit {limit + 1:d}",
        {**params, "at": at, "after": after, "limit": limit + 1},
    )
    more = len(rows) > limit
    last = rows[limit - 1] if more else None
    return Page[R](
        data=[kind.of(row) for row in rows[:limit]],
        has_more=more,
        next_cursor=_cursor(last) if last else None,
    )


def _cursor(row: Mapping[str, Any]) -> str:
    place = json.dumps([row["created_at"].isoformat(), str(row["id"])])
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _place(cursor: str) -> tuple[str, str]:
    from datetime import datetime

    try:
        at, after = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return datetime.fromisoformat(at).isoformat(), str(uuid.UUID(after))
    except (binascii.Error, ValueError, TypeError, AttributeError):
        raise InvalidInput("the cursor is not one that a list of ours gave", param="cursor") from None


def known_id(text: str, what: str) -> str:
    """`text` as a UUID. Raises NotFound for any other text, since it identifies nothing."""
    try:
        return str(uuid.UUID(text))
    except (ValueError, AttributeError, TypeError):
        raise NotFound(f"there is no such {what}") from None


def must_be_there(row: Mapping[str, Any] | None, what: str) -> Mapping[str, Any]:
    """The row. Raises NotFound, with the same message for another brand's row and a missing one."""
    if row is None:
        raise NotFound(f"there is no such {what}")
    return row


@asynccontextmanager
async def forbidden_as_not_found(what: str = "brand") -> AsyncIterator[None]:
    """Turn the database's refusal of a foreign brand into NotFound."""
    try:
        yield
    except Forbidden:
        raise NotFound(f"there is no such {what}") from None
