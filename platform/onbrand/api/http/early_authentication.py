"""Authenticates a request once, before its body is read, and applies the caller's limits of concurrent requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request

from onbrand.api.authentication import scope_of
from onbrand.api.http import middleware
from onbrand.api.http.bytes_in_progress import BytesInProgress
from onbrand.api.http.concurrency_limits import ConcurrencyLimits
from onbrand.brand import Scope

if TYPE_CHECKING:
    from onbrand.api.authorization import AppState

CALLER = "onbrand.caller"
"""Key of the caller's `Scope` in a request's ASGI scope, after authentication."""


async def authenticated(request: Request, state: AppState) -> Scope:
    """The caller's scope; the request may now send a body up to its path's limit.

    Raises Unauthenticated, CrossSiteRefused, or TooManyRequests if the caller has too many requests or body bytes in
    progress.
    """
    known = request.scope.get(CALLER)
    if isinstance(known, Scope):
        return known
    found = await scope_of(request, state)
    callers: ConcurrencyLimits = request.app.state.callers
    middleware.hold(request.scope, callers.held(found.holder))
    bodies: BytesInProgress = request.app.state.bodies
    middleware.hold(request.scope, bodies.held(found.user_id, middleware.expected_bytes(request.scope)))
    middleware.admit(request.scope)
    request.scope[CALLER] = found
    return found
