"""Who calls, found out once a request and before its body is read; and one caller's share of what goes on at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request

from onbrand.api import edge
from onbrand.api.bytes_under_way import BytesUnderWay
from onbrand.api.credentials import scope_of
from onbrand.api.shares import Shares
from onbrand.brand import Scope

if TYPE_CHECKING:
    from onbrand.api.caller import Parts

CALLER = "onbrand.caller"
"""Where a request's ASGI scope holds who calls, once that is known."""


async def authenticated(request: Request, parts: Parts) -> Scope:
    """The caller, who may now send a body of the address's full size.

    Raises Unauthenticated, CrossSiteRefused, or TooManyRequests for a caller with too many requests, or bytes of
    their bodies, under way.
    """
    known = request.scope.get(CALLER)
    if isinstance(known, Scope):
        return known
    found = await scope_of(request, parts)
    callers: Shares = request.app.state.callers
    edge.hold(request.scope, callers.held(found.holder))
    bodies: BytesUnderWay = request.app.state.bodies
    edge.hold(request.scope, bodies.held(found.user_id, edge.expected_bytes(request.scope)))
    edge.admit(request.scope)
    request.scope[CALLER] = found
    return found
