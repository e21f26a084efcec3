"""A route class that checks a request in this order: its credential, the size of its JSON, its fields.

FastAPI reads and parses a body before it resolves credentials. This class refuses an invalid credential before a byte
of the body is read, and counts the values of a body before it is validated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from onbrand.api.http.json_bodies import must_be_few_values, must_have_known_fields
from onbrand.api.input import must_be_storable
from onbrand.config import Limits

Credential = Callable[[Request, Any], Awaitable[object]]


class Route(APIRoute):
    """A route that authenticates before it reads the body.

    Subclasses list the dependencies that check a credential. Each one that the route depends on is called with the
    request and `app.state.onbrand` first, and again by FastAPI.
    """

    credentials: ClassVar[tuple[Credential, ...]] = ()
    json_values: ClassVar[int | None] = None
    """The most names and values of a JSON body; None: the settings' limit."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        checks = [each for each in self.credentials if asks_for(self.dependant, each)]
        kind = None if self.body_field is None else self.body_field.field_info.annotation

        async def in_order(request: Request) -> Response:
            for check in checks:
                await check(request, request.app.state.onbrand)
            if kind is not None:
                await self._must_be_readable(request, kind)
            return await handle(request)

        return in_order

    async def _must_be_readable(self, request: Request, kind: Any) -> None:
        """Raise TooLarge for too many values, InvalidInput for unstorable text and fields that `kind` lacks."""
        limits: Limits = request.app.state.onbrand.settings.limits
        body = await request.body()
        must_be_few_values(body, self.json_values or limits.json_values, limits.json_levels)
        try:
            sent = await request.json() if body else None
        except (ValueError, RecursionError):
            return  # FastAPI reports invalid JSON
        must_be_storable(sent, "body")
        must_have_known_fields(kind, sent)


def asks_for(dependant: Dependant, call: Any) -> bool:
    """Whether `dependant` or one of its dependencies is `call`."""
    return dependant.call is call or any(asks_for(each, call) for each in dependant.dependencies)
