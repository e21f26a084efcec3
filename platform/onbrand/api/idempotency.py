"""`Idempotency-Key`: a repeated POST returns the first response and is not executed again.

A key belongs to a caller and a brand, is kept for 24 hours, and covers path and body.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import anyio.to_thread
from fastapi import Depends, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile

from onbrand.api.authorization import BrandCaller, Caller
from onbrand.api.forms import READ_FORM
from onbrand.api.http.early_authentication import authenticated
from onbrand.errors import InvalidInput
from onbrand.fair_turns import QueueOwner
from onbrand.services import idempotency

_HEADER = "Idempotency-Key"
_KEY_CHARS_MAX = 255


@dataclass(frozen=True, slots=True)
class Done:
    """A response, and whether it was made now (`is_fresh`) or is a stored one."""

    status: int
    body: Any
    is_fresh: bool


@dataclass(frozen=True, slots=True)
class Once:
    """The request's idempotency key (None without one), and the digest that it covers."""

    key: str | None
    route: str
    request_sha256: str

    async def do(
        self, caller: Caller, status: int, act: Callable[[], Awaitable[BaseModel | Mapping[str, Any]]]
    ) -> Done:
        """Run `act`, or return the stored response if this key was used before."""
        if self.key is None:
            return Done(status, as_json(await act()), True)
        brand_id = caller.brand_id if isinstance(caller, BrandCaller) else None
        call = idempotency.CallKey(
            caller.user_id, brand_id, self.key, self.route, self.request_sha256, caller.scope.key_id
        )
        earlier = await idempotency.claim(caller.session, call)
        if earlier is not None:
            return Done(earlier.status, earlier.body, False)
        body = as_json(await act())
        await idempotency.remember(caller.session, call, status, body)
        return Done(status, body, True)

    async def answer(
        self, caller: Caller, status: int, act: Callable[[], Awaitable[BaseModel | Mapping[str, Any]]]
    ) -> JSONResponse:
        """`do` as an HTTP response."""
        done = await self.do(caller, status, act)
        return JSONResponse(done.body, done.status)

    async def answer_secret(
        self, caller: Caller, status: int, act: Callable[[], Awaitable[BaseModel]], field: str
    ) -> JSONResponse:
        """`answer` for a body with a secret `field`: only the first response has it; the stored one has null there."""
        secret: dict[str, Any] = {}

        async def without() -> dict[str, Any]:
            body = as_json(await act())
            secret[field] = body[field]
            return body | {field: None}

        done = await self.do(caller, status, without)
        return JSONResponse(done.body | secret, done.status, headers={"Cache-Control": "no-store"})


def as_json(thing: BaseModel | Mapping[str, Any]) -> Any:
    """A model or mapping as plain JSON types."""
    if isinstance(thing, BaseModel):
        return thing.model_dump(mode="json")
    return {name: as_json(value) if isinstance(value, BaseModel) else value for name, value in thing.items()}


async def _once(
    request: Request,
    key: Annotated[str | None, Header(alias=_HEADER, description="Makes a repeated call happen once.")] = None,
) -> Once:
    route = f"{request.method} {request.scope['route'].path}"
    if key is None:
        return Once(None, route, "")
    if not 1 <= len(key) <= _KEY_CHARS_MAX or not key.isprintable():
        raise InvalidInput(f"{_HEADER} must be 1 to {_KEY_CHARS_MAX} printable characters", param=_HEADER)
    return Once(key, route, await _digest(request))


async def _digest(request: Request) -> str:
    """SHA-256 of path and body; of a form, its fields and files, since multipart boundaries differ between calls."""
    digest = hashlib.sha256(str(request.scope["path"]).encode("utf-8", "surrogateescape"))
    form: FormData | None = request.scope.get(READ_FORM)
    if form is not None:
        user_id = (await authenticated(request, request.app.state.onbrand)).user_id
        async with request.app.state.hashing.take(QueueOwner(user_id)):
            facts = await anyio.to_thread.run_sync(_form_facts, form)
        digest.update(json.dumps(facts).encode())
    else:
        digest.update(b"\n" + await request.body())
    return digest.hexdigest()


def _form_facts(form: FormData) -> list[tuple[str, ...]]:
    """Names and values of fields, names and SHA-256 of files. Takes seconds: run it in a thread."""
    facts: list[tuple[str, ...]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            value.file.seek(0)
            digest = hashlib.file_digest(value.file, "sha256")  # type: ignore[arg-type]
            facts.append((name, value.filename or "", digest.hexdigest()))
            value.file.seek(0)
        else:
            facts.append((name, value))
    return facts


OnlyOnce = Annotated[Once, Depends(_once)]
