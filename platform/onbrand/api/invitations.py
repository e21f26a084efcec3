"""Routes of invitations: an admin invites an email address; that address's account accepts or declines once.

The account uses the token that the admin hands over, or the invitation's id if its address is verified.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from onbrand.api.authorization import Admin, Person, UserRoute
from onbrand.api.idempotency import OnlyOnce
from onbrand.api.input import Input
from onbrand.api.lists import Listed, Paging, listed
from onbrand.services import brands, invitations

router = APIRouter(tags=["invitations"], route_class=UserRoute)


class NewInvitation(Input):
    """The address to invite, the role it gets, and how long it can accept."""

    email: str = Field(max_length=320)
    role: brands.Role = "member"
    days: int = Field(7, ge=1, le=invitations.DAYS_MAX, description="How long it can be accepted.")


class Acceptance(Input):
    """The token of the invitation to accept or decline."""

    token: str = Field(max_length=200, repr=False)


@router.post("/v1/brands/{brand_id}/invitations", status_code=201, response_model=invitations.NewInvitation)
async def invite(body: NewInvitation, caller: Admin, once: OnlyOnce) -> JSONResponse:
    """Invite an address. Hand `token` over: it is shown only once, and a repeated call returns null for it."""
    most = caller.state.settings.limits.open_invitations
    return await once.answer_secret(
        caller,
        201,
        lambda: invitations.invite(caller.session, caller.brand_id, body.email, body.role, body.days, most),
        "token",
    )


@router.get("/v1/brands/{brand_id}/invitations", response_model=Listed)
async def list_invitations(caller: Admin, paging: Paging) -> dict[str, Any]:
    """The brand's invitations without their tokens."""
    return listed(await invitations.list_invitations(caller.session, caller.brand_id, paging.limit, paging.cursor))


@router.delete("/v1/brands/{brand_id}/invitations/{invitation_id}", status_code=204, response_class=Response)
async def revoke_invitation(invitation_id: UUID, caller: Admin) -> None:
    """End an invitation that was not accepted."""
    await invitations.revoke(caller.session, caller.brand_id, str(invitation_id))


@router.get("/v1/invitations", response_model=Listed)
async def list_received(caller: Person, paging: Paging) -> dict[str, Any]:
    """Open invitations to the caller's verified address, newest first."""
    return listed(await invitations.list_received(caller.session, paging.limit, paging.cursor))


@router.post("/v1/invitations/accept", status_code=201)
async def accept(body: Acceptance, caller: Person) -> brands.Brand:
    """Become a member of the brand that invites the address of the caller's account."""
    return await invitations.accept(caller.session, body.token)


@router.post("/v1/invitations/decline", status_code=204, response_class=Response)
async def decline(body: Acceptance, caller: Person) -> None:
    """End an invitation to the address of the caller's account."""
    await invitations.decline(caller.session, body.token)


@router.post("/v1/invitations/{invitation_id}/accept", status_code=201)
async def accept_received(invitation_id: UUID, caller: Person) -> brands.Brand:
    """Become a member of the brand that invites the caller's verified address."""
    return await invitations.accept_received(caller.session, str(invitation_id))


@router.post("/v1/invitations/{invitation_id}/decline", status_code=204, response_class=Response)
async def decline_received(invitation_id: UUID, caller: Person) -> None:
    """End an invitation to the caller's verified address."""
    await invitations.decline_received(caller.session, str(invitation_id))
