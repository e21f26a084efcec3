"""Routes of generations (requests for images) and of the generated images."""

from __future__ import annotations

import re
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from onbrand.api import events, generation_lifecycle
from onbrand.api.authorization import (
    BrandCaller,
    GenerateAccess,
    GenerateCaller,
    ReadAccess,
    ReadCaller,
    UserRoute,
)
from onbrand.api.files import Link, link_to
from onbrand.api.idempotency import OnlyOnce, as_json
from onbrand.api.lists import Listed, Paging, listed
from onbrand.services import generation_parameters, generations, images
from onbrand.services.events import ENDED_STATES

router = APIRouter(prefix="/v1/brands/{brand_id}", tags=["generations"], route_class=UserRoute)

WAIT_SECONDS_MAX = 60
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,6})\"?(?:$|[,;\s])")


async def _wait_seconds(
    prefer: Annotated[str | None, Header(description="`wait=N`: answer when done, at most after N seconds.")] = None,
) -> int:
    """N of `Prefer: wait=N` (RFC 7240), at most 60; 0 for any other preference."""
    found = _WAIT.search(prefer or "")
    return min(WAIT_SECONDS_MAX, int(found[1])) if found else 0


WaitSeconds = Annotated[int, Depends(_wait_seconds)]


@router.post(
    "/generations",
    status_code=202,
    response_model=generations.Generation,
    responses={201: {"model": generations.Generation, "description": "Done within `Prefer: wait`."}},
)
async def create_generation(
    body: generation_parameters.NewGeneration,
    access: GenerateAccess,
    once: OnlyOnce,
    wait: WaitSeconds,
    request: Request,
) -> JSONResponse:
    """Draw images: 201 if they are done within `Prefer: wait=N`, else 202 with the generation in progress."""
    begun = await generation_lifecycle.begin(access, body, once)
    generation = await generation_lifecycle.until_done(access, begun, wait, request, abandon=once.key is None)
    headers = {"Location": f"/v1/brands/{access.brand_id}/generations/{generation.id}"}
    if wait:
        headers["Preference-Applied"] = f"wait={wait}"
    status = 201 if generation.status in ENDED_STATES else 202
    return JSONResponse(as_json(generation), status, headers=headers)


@router.get("/generations", response_model=Listed)
async def list_generations(caller: ReadCaller, paging: Paging) -> dict[str, Any]:
    """The brand's generations."""
    return listed(await generations.list_generations(caller.session, caller.brand_id, paging.limit, paging.cursor))


@router.get("/generations/{generation_id}")
async def get_generation(generation_id: UUID, caller: ReadCaller) -> generations.Generation:
    """The current state of one generation."""
    return await generations.get_generation(caller.session, caller.brand_id, str(generation_id))


@router.post("/generations/{generation_id}/cancel", response_model=generations.Generation)
async def cancel_generation(generation_id: UUID, access: GenerateAccess, once: OnlyOnce) -> JSONResponse:
    """Cancel an own generation; its rows on the accelerator are freed at the next step."""
    done = await generation_lifecycle.cancel(access, str(generation_id), once)
    return JSONResponse(done.body, done.status)


@router.get("/generations/{generation_id}/events", response_class=StreamingResponse, responses=events.OVER)
async def watch_generation(generation_id: UUID, access: ReadAccess, after: events.After) -> Response:
    """Progress and status as Server-Sent Events until the generation ends; for its own member also previews."""
    viewer = access.state.generation_tasks.viewer()

    async def look(caller: BrandCaller, after: int) -> events.Snapshot:
        generation = await generations.get_generation(caller.session, caller.brand_id, str(generation_id))
        seen = await generations.events(caller.session, caller.brand_id, str(generation_id), after)
        is_own = generation.user_id == caller.user_id
        previews = viewer.news(generation) if is_own else []
        return events.Snapshot(generation.status, list(seen), [("preview", preview.data) for preview in previews])

    return await events.stream(access, str(generation_id), after, look, viewer.close)


@router.get("/images", response_model=Listed)
async def list_images(caller: ReadCaller, paging: Paging) -> dict[str, Any]:
    """The brand's generated images."""
    return listed(await images.list_images(caller.session, caller.brand_id, paging.limit, paging.cursor))


@router.get("/images/{image_id}")
async def get_image(image_id: UUID, caller: ReadCaller) -> images.Image:
    """One image's row, with its receipt."""
    return await images.get_image(caller.session, caller.brand_id, str(image_id))


@router.get("/images/{image_id}/content")
async def link_image(image_id: UUID, caller: ReadCaller) -> Link:
    """A signed link to the image."""
    image = await images.get_image(caller.session, caller.brand_id, str(image_id))
    return await link_to(caller, "generated-content", image.object_name, "image.link", {"image_id": image.id})


@router.delete("/images/{image_id}", status_code=204, response_class=Response)
async def delete_image(image_id: UUID, caller: GenerateCaller) -> None:
    """Delete an own image."""
    await images.delete_image(caller.session, caller.store, caller.brand_id, str(image_id))
