"""The form of list responses: `{"object": "list", "data": [...], "has_more": ..., "next_cursor": ...}`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import Depends, Query
from pydantic import BaseModel

from onbrand.api.authorization import AppStateDep
from onbrand.api.idempotency import as_json
from onbrand.api.input import must_be_storable
from onbrand.errors import InvalidInput

_LIMIT = 20


class Page(Protocol):
    """A page of a service's list; the cursor is opaque, and None on the last page."""

    @property
    def data(self) -> Any: ...
    @property
    def next_cursor(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class ListQuery:
    """The requested page of a list."""

    limit: int
    cursor: str | None


async def _list_query(
    state: AppStateDep,
    limit: Annotated[int, Query(description="Objects on a page.")] = _LIMIT,
    cursor: Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")] = None,
) -> ListQuery:
    most = state.settings.limits.page
    if not 1 <= limit <= most:
        raise InvalidInput(f"limit must be 1 to {most}", param="limit")
    must_be_storable(cursor, "cursor")
    return ListQuery(limit, cursor)


Paging = Annotated[ListQuery, Depends(_list_query)]


class Listed(BaseModel):
    """The shape of a list response, for the description of the API."""

    object: str = "list"
    data: list[dict[str, Any]]
    has_more: bool
    next_cursor: str | None


def listed(page: Page) -> dict[str, Any]:
    """A page as a list response."""
    return all_of(page.data) | {"has_more": page.next_cursor is not None, "next_cursor": page.next_cursor}


def all_of(things: Any) -> dict[str, Any]:
    """All `things` as one complete list response."""
    return {"object": "list", "data": [as_json(thing) for thing in things], "has_more": False, "next_cursor": None}
