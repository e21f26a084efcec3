"""Routes of brands and their members."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from onbrand.api.authorization import Admin, AnyReader, ManageCaller, Person, ReadCaller, UserRoute
from onbrand.api.idempotency import OnlyOnce
from onbrand.api.input import Input
from onbrand.api.lists import Listed, Paging, listed
from onbrand.errors import InvalidInput
from onbrand.services import brands, invitations

router = APIRouter(prefix="/v1/brands", tags=["brands"], route_class=UserRoute)

Role = Literal["member", "admin"]


class NewBrand(Input):
    """A brand to create."""

    id: str = Field(description="2 to 63 of a-z, 0-9 and '-': the brand's folder in every bucket.")
    name: str = Field(min_length=1, max_length=200)
    home_region: str | None = Field(
        None, description="Where the brand's bytes stay; the platform's own region if left out."
    )


class NewMember(Input):
    """The address to invite, and the role it gets."""

    email: str = Field(max_length=320)
    role: Role = "member"


class NewRole(Input):
    """A member's new role."""

    role: Role


@router.post("", status_code=201, response_model=brands.Brand)
async def create_brand(body: NewBrand, caller: Person, once: OnlyOnce) -> JSONResponse:
    """Create a brand; the caller becomes its admin."""
    region = caller.state.settings.region
    if body.home_region not in (None, region):
        raise InvalidInput(f"this platform keeps bytes in {region} only", param="home_region")
    most = caller.state.settings.limits.brands_per_account
    return await once.answer(caller, 201, lambda: brands.create_brand(caller.session, body.id, body.name, region, most))


@router.get("", response_model=Listed)
async def list_brands(caller: AnyReader, paging: Paging) -> dict[str, Any]:
    """The caller's brands, by id."""
    return listed(await brands.list_brands(caller.session, paging.limit, paging.cursor))


@router.get("/{brand_id}")
async def get_brand(caller: ReadCaller) -> brands.Brand:
    """One brand, with the caller's role in it."""
    return await brands.get_brand(caller.session, caller.brand_id)


@router.post("/{brand_id}/members", status_code=201, response_model=invitations.NewInvitation)
async def add_member(body: NewMember, caller: Admin, once: OnlyOnce) -> JSONResponse:
    """Invite an address for seven days, as `POST .../invitations`; its account becomes a member when it accepts."""
    most = caller.state.settings.limits.open_invitations
    return await once.answer_secret(
        caller,
        201,
        lambda: invitations.invite(caller.session, caller.brand_id, body.email, body.role, most_open=most),
        "token",
    )


@router.get("/{brand_id}/members", response_model=Listed)
async def list_members(caller: ReadCaller, paging: Paging) -> dict[str, Any]:
    """The brand's members: an admin sees all, other members see only themselves."""
    return listed(await brands.list_members(caller.session, caller.brand_id, paging.limit, paging.cursor))


@router.patch("/{brand_id}/members/{user_id}")
async def set_role(user_id: UUID, body: NewRole, caller: Admin) -> brands.Member:
    """Change a member's role. A brand keeps at least one admin."""
    return await brands.set_role(caller.session, caller.brand_id, str(user_id), body.role)


@router.delete("/{brand_id}/members/me", status_code=204, response_class=Response)
async def leave(caller: ManageCaller) -> None:
    """Leave the brand at once; the last admin cannot."""
    await brands.leave(caller.session, caller.brand_id)


@router.delete("/{brand_id}/members/{user_id}", status_code=204, response_class=Response)
async def remove_member(user_id: UUID, caller: ManageCaller) -> None:
    """Remove a member at once. Admins may remove anyone but the last admin; others only themselves."""
    await brands.remove_member(caller.session, caller.brand_id, str(user_id))
