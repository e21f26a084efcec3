"""Routes of a brand's API keys. Only a logged-in admin creates one; it is limited to its scopes and shown once."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, Field

from onbrand.api.authorization import AdminUserOnly, ManageCaller, UserRoute
from onbrand.api.idempotency import OnlyOnce
from onbrand.api.input import Input
from onbrand.api.lists import Listed, Paging, listed
from onbrand.brand import KeyScope
from onbrand.services import keys

router = APIRouter(prefix="/v1/brands/{brand_id}/keys", tags=["keys"], route_class=UserRoute)


class NewKey(Input):
    """A key to create."""

    name: str = Field(min_length=1, max_length=200)
    scopes: list[KeyScope] = Field(min_length=1, max_length=10, description="`manage` is what admins may.")
    expires_at: AwareDatetime | None = Field(None, description="When it ends; never if left out.")


@router.post("", status_code=201, response_model=keys.NewApiKey)
async def create_key(body: NewKey, caller: AdminUserOnly, once: OnlyOnce) -> JSONResponse:
    """Create a key that acts for the caller in this brand. `key` is shown only once; a repeated call returns null."""
    return await once.answer_secret(
        caller,
        201,
        lambda: keys.create_key(caller.session, caller.brand_id, body.name, body.scopes, body.expires_at),
        "key",
    )


@router.get("", response_model=Listed)
async def list_keys(caller: ManageCaller, paging: Paging) -> dict[str, Any]:
    """The brand's keys without their secrets: an admin sees all, other members see their own."""
    return listed(await keys.list_keys(caller.session, caller.brand_id, paging.limit, paging.cursor))


@router.get("/{key_id}")
async def get_key(key_id: UUID, caller: ManageCaller) -> keys.ApiKey:
    """One key without its secret."""
    return await keys.get_key(caller.session, caller.brand_id, str(key_id))


@router.delete("/{key_id}", status_code=204, response_class=Response)
async def revoke_key(key_id: UUID, caller: AdminUserOnly) -> None:
    """Revoke a key at once and permanently."""
    await keys.revoke_key(caller.session, caller.brand_id, str(key_id))
