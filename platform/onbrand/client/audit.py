"""Reads and verifies a brand's audit record: `client.audit_events`."""

from __future__ import annotations

from collections.abc import Iterator

from onbrand.client import objects
from onbrand.client.audit_chain import Head, Verdict, check_chain
from onbrand.client.resource import BrandLike, Resource, brand_id_of, brand_path


class AuditEvents(Resource):
    """The audit record of a brand."""

    def list(self, brand: BrandLike, *, oldest_first: bool = False) -> Iterator[objects.AuditEvent]:
        """The brand's record, for its admins; newest first by default."""
        order = "asc" if oldest_first else None
        return self._pages(objects.AuditEvent, brand_path(brand, "audit-events"), 100, order=order)

    def verify(self, brand: BrandLike, head: Head | str | None = None) -> Verdict:
        """Read the whole record and verify its hash chain locally; it must contain `head` of an earlier verdict."""
        brand_id = brand_id_of(brand)
        anchor = Head.parse(head) if isinstance(head, str) else head
        return check_chain(brand_id, self.list(brand_id, oldest_first=True), anchor)
