"""Routes compatible with OpenAI's Images API, for its unchanged client: `/v1/images/generations` and `/v1/models`.

A model id is `{brand_id}/{model}`, or `{model}` with a key or token of one brand. A family's name selects its base.
"""

from __future__ import annotations

import base64
import re
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field, ValidationError

from onbrand.api import generation_lifecycle
from onbrand.api.authorization import AnyReader, AppStateDep, BrandAccess, BrandCaller, TokenHolder, UserRoute
from onbrand.api.files import links_to
from onbrand.api.idempotency import OnlyOnce
from onbrand.api.input import Input
from onbrand.api.openai_stream import StreamRequest, streamed, why_none
from onbrand.api.problems import as_own_error
from onbrand.brand import Scope
from onbrand.errors import (
    InvalidInput,
    NotFound,
    Unavailable,
)
from onbrand.services import generation_parameters, generations, models

router = APIRouter(prefix="/v1", tags=["openai"], route_class=UserRoute)

_WAIT_SECONDS = 300
_OPENAI_NAMES = {
    "num_images": "n",
    "width": "size",
    "height": "size",
    "model_type": "model",
    "num_previews": "partial_images",
}
_SIZE = re.compile(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})")


class ImagesRequest(Input):
    """The supported fields of OpenAI's request, and Onbrand's own."""

    prompt: str
    model: str
    n: int | None = None
    size: str | None = Field(None, description="`WIDTHxHEIGHT`, or `auto` for the base's own.")
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, description="0 to 100, for jpeg and webp.")
    user: str | None = Field(None, max_length=200, description="Accepted and not kept.")
    safety_identifier: str | None = Field(None, max_length=200, description="Accepted and not kept.")
    quality: Literal["auto", "standard", "low", "medium", "high"] | None = Field(
        None, description="Steps: half of the base's own for `low`, half as many again for `high`, else as many."
    )
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    stream: bool | None = Field(None, description="Answer with OpenAI's events, for one picture.")
    partial_images: int | None = Field(None, ge=0, le=3, description="Previews in the stream, about so many.")
    seed: int | None = None
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    lora_scale: float | None = None
    more_models: tuple[generation_parameters.ModelUse, ...] | None = Field(
        None, min_length=1, max_length=3, description="Adapters of the same brand that are added to `model`."
    )
    sampler: str | None = None
    exclusive: bool | None = None


@router.post("/images/generations", response_model=None)
async def generate(
    body: ImagesRequest, scope: TokenHolder, state: AppStateDep, once: OnlyOnce, request: Request
) -> JSONResponse | StreamingResponse:
    """Draw images and return them, or stream events while they are drawn."""
    brand_id, model = split_model(body.model, scope)
    access = BrandAccess(scope, brand_id, state, "generate")
    _must_be_streamable(body)
    wanted = _as_new_generation(body, model, state.settings.families)
    try:
        begun = await generation_lifecycle.begin(access, wanted, once)
    except InvalidInput as problem:
        raise _named_as_openai_does(problem) from None
    if body.stream:
        num_partial, quality = body.partial_images or 0, body.quality or "auto"
        stream_request = StreamRequest(begun.id, num_partial, quality, abandon=once.key is None)
        return streamed(access, stream_request, _WAIT_SECONDS)
    generation = await generation_lifecycle.until_done(access, begun, _WAIT_SECONDS, request, abandon=once.key is None)
    await _must_be_completed(access, generation, abandon=once.key is None)
    async with access.open() as caller:
        data = await _image_data(caller, generation, body.response_format or "url")
    cut = {"cut": [each.model_dump() for each in generation.cut]} if generation.cut else {}
    return JSONResponse({"created": int(generation.created_at.timestamp()), "data": data, **cut})


@router.get("/models")
async def list_models(
    caller: AnyReader,
    limit: Annotated[int, Query(ge=1, le=models.REACHED_MAX)] = models.REACHED_MAX,
    cursor: Annotated[str | None, Query(max_length=500)] = None,
) -> dict[str, Any]:
    """Every adapter and base that this token may use, by brand; at most 1,000 on a page."""
    found = await models.list_reached(caller.session, caller.state.settings.families, limit, cursor)
    data = [_described(caller.scope, model) for model in found.data]
    return {"object": "list", "data": data, "has_more": found.has_more, "next_cursor": found.next_cursor}


@router.get("/models/{model:path}")
async def get_model(model: str, scope: TokenHolder, state: AppStateDep) -> dict[str, Any]:
    """One model by its id in the list."""
    try:
        brand_id, name = split_model(model, scope)
    except InvalidInput:
        raise NotFound("there is no such model") from None
    async with BrandAccess(scope, brand_id, state, "read").open() as member:
        if name in state.settings.families:
            return _described(scope, models.Reached(brand_id=brand_id, name=name, is_base=True))
        found = await models.get_model(member.session, member.brand_id, name)
    return _described(scope, models.Reached(brand_id=brand_id, name=found.name, created_at=found.created_at))


def split_model(model: str, scope: Scope) -> tuple[str, str]:
    """Brand and model of a model id. Raises InvalidInput if neither the id nor the token names a brand."""
    brand_id, slash, name = model.partition("/")
    if slash and name:
        return brand_id, name
    if scope.brand_id is None or not brand_id:
        raise InvalidInput("model must be brand_id/model; GET /v1/models lists them", param="model")
    return scope.brand_id, brand_id


def _as_new_generation(
    body: ImagesRequest, model: str, families: tuple[str, ...]
) -> generation_parameters.NewGeneration:
    width, height = _sides(body.size)
    fields: dict[str, Any] = {
        "prompt": body.prompt,
        **_models_of_body(body, model, families),
        "num_images": body.n,
        "width": width,
        "height": height,
        "output_format": body.output_format,
        "output_compression": body.output_compression,
        "quality": None if body.quality in ("auto", "standard") else body.quality,
        "num_previews": body.partial_images,
        "seed": body.seed,
        "negative_prompt": body.negative_prompt,
        "num_inference_steps": body.num_inference_steps,
        "guidance_scale": body.guidance_scale,
        "true_cfg_scale": body.true_cfg_scale,
        "sampler": body.sampler,
        "exclusive": body.exclusive,
    }
    try:
        return generation_parameters.NewGeneration(
            **{name: value for name, value in fields.items() if value is not None}
        )
    except ValidationError as problem:
        raise as_own_error([_in_openai_words(fault) for fault in problem.errors()]) from None


def _models_of_body(body: ImagesRequest, model: str, families: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a generation that select `model`, its scale, and the adapters that are added to it."""
    if not body.more_models:
        named = {"model_type": model} if model in families else {"model": model}
        return {**named, "lora_scale": body.lora_scale}
    if model in families:
        raise InvalidInput("more_models are added to an adapter; name one in model", param="more_models")
    first = {"model": model, "scale": 1.0 if body.lora_scale is None else body.lora_scale}
    return {"models": [first, *(use.model_dump() for use in body.more_models)]}


def _must_be_streamable(body: ImagesRequest) -> None:
    """Raise InvalidInput for fields that contradict `stream`."""
    if not body.stream:
        if body.partial_images:
            raise InvalidInput("partial_images come in a stream; send stream: true", param="partial_images")
        return
    if body.n not in (None, 1):
        raise InvalidInput("a stream is of one picture; leave n out", param="n")
    if body.response_format == "url":
        raise InvalidInput("a stream holds the picture itself; leave response_format out", param="response_format")


def _named_as_openai_does(problem: InvalidInput) -> InvalidInput:
    """The error with OpenAI's name for the field."""
    name = _OPENAI_NAMES.get(problem.param or "")
    if name is None:
        return problem
    message = problem.message.replace(str(problem.param), name, 1) if name == "n" else f"{name}: {problem.message}"
    return type(problem)(message, **{**problem.fields, "param": name})


def _in_openai_words(fault: Any) -> dict[str, Any]:
    """pydantic's finding with OpenAI's name for the field."""
    name, *rest = fault["loc"]
    return {**fault, "loc": ("body", _OPENAI_NAMES.get(str(name), name), *rest)}


def _sides(size: str | None) -> tuple[int | None, int | None]:
    if size in (None, "auto"):
        return None, None
    found = _SIZE.fullmatch(str(size))
    if found is None:
        raise InvalidInput("size must be WIDTHxHEIGHT in pixels, or 'auto'", param="size")
    return int(found[1]), int(found[2])


async def _must_be_completed(access: BrandAccess, generation: generations.Generation, *, abandon: bool) -> None:
    if generation.status == "completed":
        return
    if generation.status in ("failed", "canceled"):
        raise why_none(generation)
    if abandon:
        await generation_lifecycle.give_up(access, generation.id)
    raise Unavailable(f"the pictures were not done within {_WAIT_SECONDS} s; try again", retry_after=10)


async def _image_data(
    caller: BrandCaller, generation: generations.Generation, response_format: str
) -> list[dict[str, Any]]:
    keys = [image.key for image in generation.images]
    if response_format == "url":
        links = await links_to(caller, keys, "image.link", {"generation_id": generation.id})
        return [{"url": link.url} for link in links]
    data = [await anyio.to_thread.run_sync(caller.store.read, key) for key in keys]
    return [{"b64_json": base64.b64encode(each).decode()} for each in data]


def _described(scope: Scope, model: models.Reached) -> dict[str, Any]:
    return {
        "id": model.name if scope.brand_id is not None else f"{model.brand_id}/{model.name}",
        "object": "model",
        "created": int(model.created_at.timestamp()) if model.created_at else 0,
        "owned_by": "onbrand" if model.is_base else model.brand_id,
    }
