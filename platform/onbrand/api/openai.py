"""The OpenAI Images face: `POST /v1/images/generations` and `GET /v1/models`, so that its client works unchanged.

A model is `{brand_id}/{model}`, or `{model}` with a key or token of one brand. A family's name is its base.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field, ValidationError

from onbrand.api import waiting
from onbrand.api.caller import Access, AnyReader, AppParts, BrandCaller, TokenHolder, in_brand
from onbrand.api.files import links_to
from onbrand.api.input import Input
from onbrand.api.once import OnlyOnce
from onbrand.api.problems import as_own_error
from onbrand.brand import Scope
from onbrand.errors import (
    AdapterRefused,
    BaseModelRefused,
    Canceled,
    InvalidInput,
    NotFound,
    OnbrandError,
    StorageError,
    Unavailable,
    of_code,
)
from onbrand.services import brands, images, models

router = APIRouter(prefix="/v1", tags=["openai"])

_WAIT_SECONDS = 300
_PAGE = 100
_OPENAI_NAMES = {"num_images": "n", "width": "size", "height": "size", "model_type": "model"}
_SIZE = re.compile(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})")


class ImagesRequest(Input):
    """OpenAI's fields that mean something here, and ours."""

    prompt: str
    model: str
    n: int | None = None
    size: str | None = Field(None, description="`WIDTHxHEIGHT`, or `auto` for the base's own.")
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    user: str | None = Field(None, max_length=200, description="Accepted and not kept.")
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    stream: Literal[False] | None = None
    seed: int | None = None
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    lora_scale: float | None = None
    more_models: tuple[images.ModelUse, ...] | None = Field(
        None, min_length=1, max_length=3, description="Adapters of the same brand that are added to `model`."
    )
    sampler: str | None = None
    exclusive: bool | None = None


@router.post("/images/generations")
async def generate(
    body: ImagesRequest, scope: TokenHolder, parts: AppParts, once: OnlyOnce, request: Request
) -> JSONResponse:
    """Draw pictures and answer with them."""
    brand_id, model = split_model(body.model, scope)
    access = Access(scope, brand_id, parts, "generate")
    wanted = _as_new_generation(body, model, parts.settings.families)
    generation_id = await waiting.begin(access, wanted, once)
    generation = await waiting.until_done(access, generation_id, _WAIT_SECONDS, request, abandon=once.key is None)
    await _must_be_completed(access, generation, abandon=once.key is None)
    async with access.open() as caller:
        data = await _pictures(caller, generation, body.response_format or "url")
    told = {"cut": [each.model_dump() for each in generation.cut]} if generation.cut else {}
    return JSONResponse({"created": int(generation.created_at.timestamp()), "data": data, **told})


@router.get("/models")
async def list_models(caller: AnyReader) -> dict[str, Any]:
    """Every adapter and base that this token reaches."""
    data: list[dict[str, Any]] = []
    for brand in await brands.list_brands(caller.session):
        member = await in_brand(caller, brand.id, "read")
        data += await _models_of(member)
    return {"object": "list", "data": data}


@router.get("/models/{model:path}")
async def get_model(model: str, caller: AnyReader) -> dict[str, Any]:
    """One model by the id that the list gives it."""
    try:
        brand_id, name = split_model(model, caller.scope)
    except InvalidInput:
        raise NotFound("there is no such model") from None
    member = await in_brand(caller, brand_id, "read")
    if name in caller.parts.settings.families:
        return _described(member, name, 0, "onbrand")
    found = await models.get_model(member.session, member.brand_id, name)
    return _described(member, found.name, int(found.created_at.timestamp()), member.brand_id)


def split_model(model: str, scope: Scope) -> tuple[str, str]:
    """Brand and model of an id. Raises InvalidInput when it names no brand and neither does the token."""
    brand_id, slash, name = model.partition("/")
    if slash and name:
        return brand_id, name
    if scope.brand_id is None or not brand_id:
        raise InvalidInput("model must be brand_id/model; GET /v1/models lists them", param="model")
    return scope.brand_id, brand_id


def _as_new_generation(body: ImagesRequest, model: str, families: tuple[str, ...]) -> images.NewGeneration:
    width, height = _sides(body.size)
    said: dict[str, Any] = {
        "prompt": body.prompt,
        **_models_of_body(body, model, families),
        "num_images": body.n,
        "width": width,
        "height": height,
        "output_format": body.output_format,
        "seed": body.seed,
        "negative_prompt": body.negative_prompt,
        "num_inference_steps": body.num_inference_steps,
        "guidance_scale": body.guidance_scale,
        "true_cfg_scale": body.true_cfg_scale,
        "sampler": body.sampler,
        "exclusive": body.exclusive,
    }
    try:
        return images.NewGeneration(**{name: value for name, value in said.items() if value is not None})
    except ValidationError as problem:
        raise as_own_error([_in_openai_words(fault) for fault in problem.errors()]) from None


def _models_of_body(body: ImagesRequest, model: str, families: tuple[str, ...]) -> dict[str, Any]:
    """`model`, with its scale, and those that are added to it."""
    if not body.more_models:
        named = {"model_type": model} if model in families else {"model": model}
        return {**named, "lora_scale": body.lora_scale}
    if model in families:
        raise InvalidInput("more_models are added to an adapter; name one in model", param="more_models")
    first = {"model": model, "scale": 1.0 if body.lora_scale is None else body.lora_scale}
    return {"models": [first, *(use.model_dump() for use in body.more_models)]}


def _in_openai_words(fault: Any) -> dict[str, Any]:
    """The finding with OpenAI's name of the field."""
    name, *rest = fault["loc"]
    return {**fault, "loc": ("body", _OPENAI_NAMES.get(str(name), name), *rest)}


def _sides(size: str | None) -> tuple[int | None, int | None]:
    if size in (None, "auto"):
        return None, None
    found = _SIZE.fullmatch(str(size))
    if found is None:
        raise InvalidInput("size must be WIDTHxHEIGHT in pixels, or 'auto'", param="size")
    return int(found[1]), int(found[2])


async def _must_be_completed(access: Access, generation: images.Generation, *, abandon: bool) -> None:
    if generation.status == "completed":
        return
    if generation.status in ("failed", "canceled"):
        raise _why_none(generation)
    if abandon:
        await waiting.give_up(access, generation.id)
    raise Unavailable(f"the pictures were not done within {_WAIT_SECONDS} s; try again", retry_after=10)


def _why_none(generation: images.Generation) -> OnbrandError:
    """What ended it, with its own status. Trying again is of use only where a part of the platform was away."""
    error = generation.error or {}
    code = "canceled" if generation.status == "canceled" else error.get("code", "")
    problem = of_code(code, f"no pictures: {error.get('message', 'the generation was canceled')}")
    if not isinstance(problem, NotFound | AdapterRefused | Canceled | Unavailable | BaseModelRefused | StorageError):
        problem = OnbrandError(problem.message)  # between parts of the platform: the call itself was right
    problem.fields["should_retry"] = problem.status == 503 or code == "engine_failed"
    return problem


async def _pictures(caller: BrandCaller, generation: images.Generation, response_format: str) -> list[dict[str, Any]]:
    keys = [image.key for image in generation.images]
    if response_format == "url":
        links = await links_to(caller, keys, "image.link", {"generation_id": generation.id})
        return [{"url": link.url} for link in links]
    data = [await anyio.to_thread.run_sync(caller.store.read, key) for key in keys]
    return [{"b64_json": base64.b64encode(each).decode()} for each in data]


async def _models_of(member: BrandCaller) -> list[dict[str, Any]]:
    """The brand's adapters, newest first, then the bases."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = await models.list_models(member.session, member.brand_id, _PAGE, cursor)
        found += [_described(member, m.name, int(m.created_at.timestamp()), member.brand_id) for m in page.data]
        cursor = page.next_cursor
        if cursor is None:
            break
    return found + [_described(member, family, 0, "onbrand") for family in member.parts.settings.families]


def _described(member: BrandCaller, name: str, created: int, owner: str) -> dict[str, Any]:
    is_bound = member.scope.brand_id is not None
    return {
        "id": name if is_bound else f"{member.brand_id}/{name}",
        "object": "model",
        "created": created,
        "owned_by": owner,
    }
