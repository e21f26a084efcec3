"""The base of the client's resources: requests for one kind of object."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

from onbrand.client import accounts, objects
from onbrand.client.errors import ConnectionFailed
from onbrand.client.events import read_events
from onbrand.client.object_bases import ApiModel, Attached

if TYPE_CHECKING:
    from onbrand.client.client import Onbrand


A = TypeVar("A", bound=ApiModel)
BrandLike = str | accounts.Brand
_STREAM_RETRIES = 5


def brand_path(brand: BrandLike, *rest: str) -> str:
    """The path ``/v1/brands/acme/assets/...``, with every segment quoted."""
    return "/".join(["/v1/brands", *(quote(part, safe="") for part in (id_of(brand), *rest))])


def id_of(brand: BrandLike) -> str:
    """The id of a brand that is given as an object or by its id."""
    return brand.id if isinstance(brand, accounts.Brand) else brand


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None; the platform's defaults apply to the others."""
    return {name: value for name, value in fields.items() if value is not None}


class Resource:
    """Base class of the API's resources, bound to a client."""

    def __init__(self, client: Onbrand) -> None:
        self._client = client
        self._transport = client.transport

    def _read(self, kind: type[A], body: Any) -> A:
        thing = kind.model_validate(body)
        return thing.attach(self._client) if isinstance(thing, Attached) else thing

    def _get(self, kind: type[A], path: str) -> A:
        return self._read(kind, self._transport.json("GET", path))

    def _post(self, kind: type[A], path: str, body: Any = None, **parts: Any) -> A:
        return self._read(kind, self._transport.json("POST", path, json=body, **parts))

    def _pages(
        self, kind: type[A], path: str, limit: int | None = None, cursor: str | None = None, **asked: Any
    ) -> Iterator[A]:
        """All objects of a list; pages of `limit` objects are fetched lazily."""
        while True:
            page = self._transport.json("GET", path, params={"limit": limit, "cursor": cursor, **asked})
            yield from (self._read(kind, item) for item in page["data"])
            cursor = page.get("next_cursor")
            if not page.get("has_more") or cursor is None:
                return

    def _events(self, path: str, after: int | None) -> Iterator[objects.Event]:
        """Events until the job has ended; a broken stream resumes after the last event."""
        left = _STREAM_RETRIES
        while True:
            headers = {"accept": "text/event-stream"} | ({"last-event-id": str(after)} if after is not None else {})
            try:
                with self._transport.lines(path, headers) as lines:
                    for event in read_events(lines):
                        yield event
                        after, left = event.id, _STREAM_RETRIES
                        if event.kind == "status" and event.data.get("status") in ("completed", "failed", "canceled"):
                            return
            except ConnectionFailed:
                if left == 0:
                    raise
            if left == 0:
                return
            left -= 1
            time.sleep(0.2)


class BrandResource(Resource, Generic[A]):
    """Base class for objects of one `kind`, at ``/v1/brands/{brand}/{name}``."""

    kind: type[A]
    name: str

    def list(self, brand: BrandLike) -> Iterator[A]:
        """All of the brand."""
        return self._pages(self.kind, brand_path(brand, self.name))

    def get(self, brand: BrandLike, id: str) -> A:
        return self._get(self.kind, brand_path(brand, self.name, id))

    def _do(self, brand: BrandLike, id: str, verb: str) -> A:
        return self._post(self.kind, brand_path(brand, self.name, id, verb))

    def _change(self, brand: BrandLike, id: str, **fields: str) -> A:
        return self._read(self.kind, self._transport.json("PATCH", brand_path(brand, self.name, id), json=fields))

    def _delete(self, brand: BrandLike, id: str) -> None:
        self._transport.send("DELETE", brand_path(brand, self.name, id))


class FileResource(BrandResource[A]):
    """Base class for objects with a file."""

    def link(self, brand: BrandLike, id: str) -> objects.Link:
        """A signed link to the file."""
        return self._get(objects.Link, brand_path(brand, self.name, id, "content"))

    def delete(self, brand: BrandLike, id: str) -> None:
        self._delete(brand, id)
