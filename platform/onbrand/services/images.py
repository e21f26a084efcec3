"""Generations and their pictures, the members' side, and the `Generator` protocol. The system's side: `generation`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field

from onbrand.adapter import AdapterRef
from onbrand.config import FamilyName, Limits, Settings
from onbrand.db.session import Session
from onbrand.errors import Conflict, Forbidden, NotFound
from onbrand.families import bases
from onbrand.families.spec import Recommended, with_family_defaults
from onbrand.services.brands import record
from onbrand.services.events import Event, events_of
from onbrand.services.generation_parameters import Adapters, adapters_of, decided
from onbrand.services.limits import limits_of, must_have_room
from onbrand.services.models import adapter_ref, get_model
from onbrand.services.pagination import Page, R, Row, hidden, known_id, must_be_there, page_of
from onbrand.services.storage_quota import must_not_be_full
from onbrand.storage.layout import Key
from onbrand.storage.store import BrandStore

GenerationStatus = Literal["pending", "running", "completed", "failed", "canceled"]
OutputFormat = Literal["png", "jpeg", "webp"]
Quality = Literal["low", "medium", "high"]
ENDED = ("completed", "failed", "canceled")
_GENERATION = "select t.*, t.model_name as model from app.generations t"
_IMAGE = "select t.* from app.generated_images t"
_ADAPTER = "select t.generation_id, t.model_id, t.model_name as model, t.sha256, t.scale from app.generation_adapters t"


class ModelUse(BaseModel):
    """One of several adapters for a picture: a model's name or id, and its scale."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    scale: float = Field(1.0, allow_inf_nan=False)


class NewGeneration(BaseModel):
    """A member's request for pictures. None: the base's recommendation.

    Args:
        model: a model's name or id, or a family's name for its base; None: the base of `model_type`.
        models: instead of `model`: adapters of one family to add up. `[brand]` becomes the first one's trigger word.
        exclusive: share no forward pass with another brand.
        sampler: one of the family's samplers.
        preview_every: send a small preview of each picture every so many steps; 0: none.
        num_previews: instead of `preview_every`: the approximate number of previews of each picture.
        quality: instead of `num_inference_steps`: 0.5 (low), 1 (medium) or 1.5 (high) times the recommended steps.
        output_compression: quality of a JPEG or WEBP file, 0 to 100; None: 95.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    prompt: str = Field(repr=False)
    model: str | None = None
    models: tuple[ModelUse, ...] | None = Field(None, min_length=1, max_length=4)
    model_type: str | None = None
    negative_prompt: str = Field("", repr=False)
    num_images: int = 1
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = Field(None, allow_inf_nan=False)
    true_cfg_scale: float | None = Field(None, allow_inf_nan=False)
    lora_scale: float = Field(1.0, allow_inf_nan=False)
    sampler: str | None = None
    exclusive: bool = False
    preview_every: int = 0
    num_previews: int | None = Field(None, ge=0, le=10)
    quality: Quality | None = None
    output_format: OutputFormat = "png"
    output_compression: int | None = Field(None, ge=0, le=100)


class Image(Row):
    """A generated picture. `receipt` holds its origin (base, adapters, parameters), and so does its file."""

    id: str
    brand_id: str
    generation_id: str
    model_id: str | None
    user_id: str
    index: int
    seed: int
    object_name: str
    content_type: str
    width: int
    height: int
    bytes: int
    sha256: str
    receipt: dict[str, Any]
    created_at: datetime

    @property
    def key(self) -> Key:
        """The key of its bytes in the store."""
        return Key("generated-content", self.object_name)


class UsedAdapter(Row):
    """An adapter as it was when the pictures were requested; `model_id` is null once the model is deleted."""

    model_id: str | None
    model: str
    sha256: str
    scale: float


class CutText(BaseModel):
    """A prompt that exceeds the limit of one of the base's tokenizers; the rest of it has no effect.

    Args:
        tokens, read: counts with start and end tokens, as in the base's own limit (CLIP's 77).
    """

    field: str
    tokenizer: str
    tokens: int
    read: int


class Generation(Row):
    """A request for pictures, and its pictures so far. Picture i has the seed `seed` + i.

    `model`, `model_id` and `lora_scale` are those of the first of `models`; a base has none. `cut` is set with the
    first picture; it is empty if the prompts were read in full.
    """

    id: str
    brand_id: str
    user_id: str
    model_id: str | None
    model: str
    models: list[UsedAdapter] = Field(default_factory=list)
    model_type: str
    prompt: str = Field(repr=False)
    negative_prompt: str = Field(repr=False)
    num_images: int
    width: int
    height: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    lora_scale: float
    sampler: str | None
    exclusive: bool
    preview_every: int
    output_format: OutputFormat
    output_compression: int | None = None
    status: GenerationStatus
    progress: int
    error: dict[str, Any] | None
    created_at: datetime
    completed_at: datetime | None
    cut: list[CutText] | None = None
    images: list[Image] = Field(default_factory=list)
    cancel_requested_at: datetime | None = Field(default=None, exclude=True)
    heartbeat_at: datetime | None = Field(default=None, exclude=True)


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One generation for an engine, with `[brand]` replaced. Its repr shows no prompt and no ticket.

    Args:
        adapters: each with its scale; all of the ticket's brand and of one family.
        account_id: the brand's account, from the brand's row: an account's brands use one share together.
        weight, slot_quota: the brand's share of the engine (`onbrand.services.limits`).
    """

    ticket: str = field(repr=False)
    generation_id: str
    adapters: tuple[tuple[AdapterRef, float], ...]
    prompt: str = field(repr=False)
    negative_prompt: str = field(repr=False)
    num_images: int
    width: int
    height: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    output_format: OutputFormat
    sampler: str | None = None
    exclusive: bool = False
    weight: float = 1.0
    slot_quota: int | None = None
    preview_every: int = 0
    output_compression: int | None = None
    account_id: str | None = None


@dataclass(frozen=True, slots=True)
class RenderEvent:
    """An event of an engine that draws; it stores the pictures themselves by its ticket.

    A `preview` holds an index, a step, and a small picture as a data URL; the repr hides them.
    """

    kind: Literal["progress", "preview", "image", "completed", "failed", "canceled"]
    data: dict[str, Any] = field(default_factory=dict, repr=False)


class Generator(Protocol):
    """Draws generations: an engine in this process, or replicas behind Serve."""

    def generate(self, family: str, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """Draw; the last event is `completed`, `failed` or `canceled`."""
        ...

    def watch(self, family: str, generation_id: str, brand_id: str, user_id: str) -> AsyncIterator[RenderEvent]:
        """Events of a generation in progress, for its brand and member; none if no engine draws it now."""
        ...

    async def cancel(self, family: str, generation_id: str) -> None:
        """Free its rows at the next step; an unknown generation is ignored."""
        ...


def recommended_of(settings: Settings) -> dict[FamilyName, Recommended]:
    """Recommendations per served family: from its base if that is on this machine, else the family's defaults."""
    found = {}
    for family in settings.families:
        folder = bases.folder_at_hand(bases.base_source(family, settings.bases))
        found[family] = bases.recommended(family, folder) if folder else with_family_defaults(family, {})
    return found


async def create_generation(
    session: Session,
    brand_id: str,
    user_id: str,
    new: NewGeneration,
    recommended: Mapping[FamilyName, Recommended],
    limits: Limits,
) -> Generation:
    """Create a pending generation with all parameters set.

    Args:
        recommended: for each served family (`recommended_of`).

    Raises:
        InvalidInput: a parameter is out of bounds, or the family is not served; `param` names it.
        NotFound: not the caller's brand, or no such model in it.
        TooManyRequests: too many pictures of the brand or its account wait; `retry_after` holds seconds.
        TooLarge: the brand or the caller has no room for a picture.
    """
    adapters, family = await adapters_of(session, brand_id, new)
    values = decided(new, family, recommended, limits)
    first, scale = adapters[0] if adapters else (None, values["lora_scale"])
    values |= {
        "brand_id": brand_id,
        "user_id": user_id,
        "model_id": first.id if first else None,
        "model_type": family,
        "model_name": first.name if first else family,
        "lora_scale": scale,
    }
    columns = ", ".join(values)
    slots = ", ".join(f"%({name})s" for name in values)
    await must_have_room(session, brand_id, values["num_images"], limits)
    async with hidden("brand"):
        await must_not_be_full(session, brand_id, values["num_images"], limits)
        row = await session.one(f"insert into app.generations ({columns}) values ({slots}) returning id", values)
    await _use(session, brand_id, row["id"], adapters)
    about = {"generation_id": row["id"], "model_id": values["model_id"], "num_images": values["num_images"]}
    if len(adapters) > 1:
        about["model_ids"] = [model.id for model, _ in adapters]
    await record(session, brand_id, "generation.create", about)
    return await get_generation(session, brand_id, row["id"])


async def _use(session: Session, brand_id: str, generation_id: str, adapters: Adapters) -> None:
    """Store the generation's adapters."""
    for index, (model, scale) in enumerate(adapters):
        await session.run(
            "insert into app.generation_adapters (brand_id, generation_id, index, model_id, model_name, sha256, scale)"
            " values (%s, %s, %s, %s, %s, %s, %s)",
            [brand_id, generation_id, index, model.id, model.name, model.sha256, scale],
        )


async def render_request(session: Session, generation: Generation, ticket: str) -> RenderRequest:
    """The request to an engine for this generation; `ticket` is the signed token.

    Raises NotFound, also if one of its models was deleted: it is never drawn with fewer models than requested.
    """
    brand_id = generation.brand_id
    models = [await get_model(session, brand_id, use.model_id or use.model) for use in generation.models]
    if not models and generation.model != generation.model_type:
        raise NotFound("there is no such model")
    brand = await _brand_row(session, brand_id)
    word = models[0].trigger_word if models else str(brand["name"])
    share = await limits_of(session, brand_id)
    return RenderRequest(
        ticket=ticket,
        generation_id=generation.id,
        adapters=tuple((adapter_ref(model), use.scale) for model, use in zip(models, generation.models, strict=True)),
        prompt=generation.prompt.replace("[brand]", word),
        negative_prompt=generation.negative_prompt.replace("[brand]", word),
        num_images=generation.num_images,
        width=generation.width,
        height=generation.height,
        seed=generation.seed,
        num_inference_steps=generation.num_inference_steps,
        guidance_scale=generation.guidance_scale,
        true_cfg_scale=generation.true_cfg_scale,
        output_format=generation.output_format,
        sampler=generation.sampler,
        exclusive=generation.exclusive,
        weight=share.weight,
        slot_quota=share.slot_quota,
        preview_every=generation.preview_every,
        output_compression=generation.output_compression,
        account_id=str(brand["user_id"]),
    )


async def list_generations(
    session: Session, brand_id: str, limit: int = 20, cursor: str | None = None
) -> Page[Generation]:
    """The brand's generations, newest first, with their adapters and pictures."""
    page = await page_of(session, Generation, _GENERATION, brand_id, limit, cursor)
    return page.model_copy(update={"data": await _with_parts(session, brand_id, page.data)})


async def get_generation(session: Session, brand_id: str, generation_id: str) -> Generation:
    """One generation with its adapters and pictures. Raises NotFound."""
    generation_id = known_id(generation_id, "generation")
    row = await session.maybe(f"{_GENERATION} where t.brand_id = %s and t.id = %s", [brand_id, generation_id])
    found = Generation.of(must_be_there(row, "generation"))
    return (await _with_parts(session, brand_id, [found]))[0]


async def cancel_generation(session: Session, brand_id: str, generation_id: str) -> Generation:
    """Request cancellation; repeating it changes nothing. Raises NotFound, Forbidden, Conflict (it has ended)."""
    before = await get_generation(session, brand_id, generation_id)
    num_changed = await session.run(
        "update app.generations set cancel_requested_at = coalesce(cancel_requested_at, now())"
        " where brand_id = %s and id = %s and status = any(%s)",
        [brand_id, before.id, ["pending", "running"]],
    )
    now = await get_generation(session, brand_id, generation_id)
    if num_changed == 0 and now.status != "canceled":
        if now.status in ENDED:
            raise Conflict(f"the generation is {now.status}; only a pending or running one can be canceled")
        raise Forbidden("only the member who asked for the generation may cancel it")
    if num_changed and before.cancel_requested_at is None:
        await record(session, brand_id, "generation.cancel", {"generation_id": now.id})
    return now


async def events(
    session: Session, brand_id: str, generation_id: str, after_seq: int = 0, limit: int = 500
) -> list[Event]:
    """Events of the generation after `after_seq`, oldest first. Raises NotFound."""
    generation = await get_generation(session, brand_id, generation_id)
    return await events_of(session, brand_id, generation.id, after_seq, limit)


async def list_images(session: Session, brand_id: str, limit: int = 20, cursor: str | None = None) -> Page[Image]:
    """The brand's pictures, newest first."""
    return await page_of(session, Image, _IMAGE, brand_id, limit, cursor)


async def get_image(session: Session, brand_id: str, image_id: str) -> Image:
    """One picture's row. Raises NotFound."""
    image_id = known_id(image_id, "image")
    row = await session.maybe(f"{_IMAGE} where t.brand_id = %s and t.id = %s", [brand_id, image_id])
    return Image.of(must_be_there(row, "image"))


async def read_image(session: Session, store: BrandStore, brand_id: str, image_id: str) -> tuple[Image, bytes]:
    """One picture's row and bytes. Raises NotFound."""
    image = await get_image(session, brand_id, image_id)
    return image, await anyio.to_thread.run_sync(store.read, image.key)


async def delete_image(session: Session, store: BrandStore, brand_id: str, image_id: str) -> None:
    """Delete row and bytes. Raises NotFound, Forbidden (another member's)."""
    image = await get_image(session, brand_id, image_id)
    num_deleted = await session.run(
        "delete from app.generated_images where brand_id = %s and id = %s", [brand_id, image.id]
    )
    if num_deleted == 0:
        raise Forbidden("only the member whose picture it is may delete it")
    await session.run(
        "delete from storage.objects where bucket_id = %s and name = %s", [image.key.bucket, image.object_name]
    )
    await anyio.to_thread.run_sync(store.delete, image.key)
    await record(session, brand_id, "image.delete", {"image_id": image.id, "generation_id": image.generation_id})


async def _brand_row(session: Session, brand_id: str) -> Mapping[str, Any]:
    """The brand's name and account."""
    row = await session.maybe("select name, user_id from app.brands where id = %s", [brand_id])
    return must_be_there(row, "brand")


async def _with_parts(session: Session, brand_id: str, generations: list[Generation]) -> list[Generation]:
    ids = [generation.id for generation in generations]
    of = "where t.brand_id = %s and t.generation_id = any(%s::uuid[]) order by t.generation_id, t.index"
    used = _grouped(await session.all(f"{_ADAPTER} {of}", [brand_id, ids]), UsedAdapter)
    drawn = _grouped(await session.all(f"{_IMAGE} {of}", [brand_id, ids]), Image)
    return [_whole(each, used.get(each.id, []), drawn.get(each.id, [])) for each in generations]


def _whole(generation: Generation, used: list[UsedAdapter], drawn: list[Image]) -> Generation:
    """The generation with its adapters, its pictures, and the cut prompts from the first receipt."""
    said = drawn[0].receipt.get("cut") if drawn else None
    cut = None if said is None else [CutText.model_validate(each) for each in said]
    return generation.model_copy(update={"models": used, "images": drawn, "cut": cut})


def _grouped(rows: list[Any], kind: type[R]) -> dict[str, list[R]]:
    """Rows by their generation."""
    found: dict[str, list[R]] = {}
    for row in rows:
        found.setdefault(row["generation_id"], []).append(kind.of(row))
    return found
