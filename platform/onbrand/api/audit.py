"""Route of a brand's audit record, for its admins. The record is append-only and hash-chained."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from onbrand.api.authorization import Admin, UserRoute
from onbrand.api.lists import Listed, Paging, listed
from onbrand.services import audit

router = APIRouter(prefix="/v1/brands/{brand_id}/audit-events", tags=["audit"], route_class=UserRoute)


@router.get("", response_model=Listed)
async def list_audit_events(
    caller: Admin,
    paging: Paging,
    order: Annotated[audit.Order, Query(description="`asc`: from the first line on, as the chain goes.")] = "desc",
) -> dict[str, Any]:
    """The brand's audit events (actor, action, time, object), newest first."""
    return listed(await audit.list_events(caller.session, caller.brand_id, paging.limit, paging.cursor, order))
