"""The order in which a route looks at a request: the credential first, then the size of its JSON, then its fields.

FastAPI reads and parses a body before it asks who sends it. Here a caller without a good credential is told so before
a byte of the body is read, and nobody's body is validated before its values are counted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from onbrand.api.input import must_be_storable
from onbrand.api.json_bodies import must_be_few_values, must_have_known_fields
from onbrand.config import Limits

Credential = Callable[[Request, Any], Awaitable[object]]


class Route(APIRoute):
    """A route that authenticates before it reads.

    Subclasses name the dependencies that check a credential. Each is called with the request and `app.state.parts`
    where the route depends on it, and again by FastAPI.
    """

    credentials: ClassVar[tuple[Credential, ...]] = ()
    json_values: ClassVar[int | None] = None
    """Names and values that a JSON body may hold; None: as the settings' limits say."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        checks = [each for each in self.credentials if asks_for(self.dependant, each)]
        kind = None if self.body_field is None else self.body_field.field_info.annotation

        async def in_order(request: Request) -> Response:
            for check in checks:
                await check(request, request.app.state.parts)
            if kind is not None:
                await self._must_be_readable(request, kind)
            return await handle(request)

        return in_order

    async def _must_be_readable(self, request: Request, kind: Any) -> None:
        """Raise for too many values, for text that no database holds, and for fields that `kind` does not have."""
        limits: Limits = request.app.state.parts.settings.limits
        body = await request.body()
        must_be_few_values(body, self.json_values or limits.json_values, limits.json_levels)
        try:
            sent = await request.json() if body else None
        except (ValueError, RecursionError):
            return  # FastAPI says it better
        must_be_storable(sent, "body")
        must_have_known_fields(kind, sent)


def asks_for(dependant: Dependant, call: Any) -> bool:
    """Whether a dependency, or one of its own, is this one."""
    return dependant.call is call or any(asks_for(each, call) for each in dependant.dependencies)
