"""Routes to sign up, log in and read the own account."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from onbrand.api import passwords
from onbrand.api.authorization import AnyUser, AppStateDep, Person, UserRoute
from onbrand.api.idempotency import as_json
from onbrand.api.input import Input
from onbrand.brand import must_be_brand_id
from onbrand.errors import Forbidden, InvalidInput
from onbrand.services import brands, identity

router = APIRouter(tags=["users"], route_class=UserRoute)


class SignUp(Input):
    """An email address and a password."""

    email: str = Field(max_length=320)
    password: str = Field(max_length=1000, repr=False)


class LogIn(SignUp):
    """An email address and a password, and optionally the only brand of the token."""

    brand_id: str | None = Field(None, description="Narrows the token to one brand.")


class OtherToken(Input):
    """A token of the outside issuer."""

    token: str = Field(max_length=20_000, repr=False)


@router.post("/v1/users", status_code=201)
async def sign_up(body: SignUp, request: Request, state: AppStateDep) -> identity.User:
    """Create an account."""
    if state.settings.sign_up == "closed":
        raise Forbidden("sign-up is closed here; ask the operator for an account")
    return await passwords.sign_up(request, state, body.email, body.password)


@router.post("/v1/tokens", status_code=201)
async def log_in(body: LogIn, request: Request, state: AppStateDep) -> JSONResponse:
    """Get a bearer token for email and password."""
    if body.brand_id is not None:
        must_be_brand_id(body.brand_id)
    user_id = await passwords.must_know_password(request, state, body.email, body.password)
    token = identity.token_of(state.issuer, user_id, body.brand_id)
    return JSONResponse(as_json(token), 201, headers={"Cache-Control": "no-store"})


@router.get("/v1/me")
async def me(caller: AnyUser) -> Any:
    """The credential's account, its brands, and the scopes of a key."""
    user = await identity.get_user(caller.session)
    mine = await brands.list_brands(caller.session)
    scope = caller.scope
    return as_json(user) | {
        "brand_id": scope.brand_id,
        "brands": [as_json(brand) for brand in mine.data],
        "has_more_brands": mine.has_more,
        "key_id": scope.key_id,
        "scopes": None if scope.scopes is None else sorted(scope.scopes),
    }


@router.post("/v1/me/identities", status_code=204, response_class=Response)
async def link_identity(body: OtherToken, caller: Person, state: AppStateDep) -> None:
    """Link the account to an outside issuer's account, whose token the body holds; either token then logs in."""
    if state.oidc is None:
        raise InvalidInput("no outside issuer's tokens are accepted here", param="token")
    await identity.link(caller.session, await state.oidc.verify(body.token))
