"""Published adapters: list, look at, download in two formats, import, delete. Only the system makes them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from onbrand.api.caller import Admin, Member
from onbrand.api.files import Link, link_to
from onbrand.api.lists import Listed, Paging, listed
from onbrand.families.kohya import kohya_name
from onbrand.services import models

router = APIRouter(prefix="/v1/brands/{brand_id}/models", tags=["models"])

_KOHYA_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get("", response_model=Listed)
async def list_models(caller: Member, paging: Paging) -> dict[str, Any]:
    """The brand's adapters."""
    return listed(await models.list_models(caller.session, caller.brand_id, paging.limit, paging.cursor))


@router.get("/{model}")
async def get_model(model: str, caller: Member) -> models.Model:
    """One adapter, by id or by name (`flux-lora-v2`)."""
    return await models.get_model(caller.session, caller.brand_id, model)


@router.get("/{model}/download", response_model=Link, responses=_KOHYA_RESPONSE)
async def download_model(model: str, caller: Member, format: models.FileFormat = "diffusers") -> Link | Response:
    """A signed link to the safetensors file; with `format=kohya` the same adapter as kohya's trainers name it, at once.

    Asking is recorded.
    """
    found = await models.get_model(caller.session, caller.brand_id, model)
    if format == "diffusers":
        return await link_to(caller, "models", found.object_name, "model.download", {"model_id": found.id})
    data = await models.read_kohya(caller.session, caller.store, found)
    headers = {"Content-Disposition": f'attachment; filename="{kohya_name(found.name)}"', "Cache-Control": "no-store"}
    return Response(data, media_type="application/octet-stream", headers=headers)


@router.delete("/{model}", status_code=204, response_class=Response)
async def delete_model(model: str, caller: Admin) -> None:
    """Delete the adapter and its weights; pictures made with it stay."""
    await models.delete_model(caller.session, caller.store, caller.brand_id, model)
