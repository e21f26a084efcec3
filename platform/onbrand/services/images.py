"""Generations and their pictures as members see them, and the protocol of whoever draws. The system's: `generation`."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field

from onbrand.adapter import AdapterRef
from onbrand.config import FamilyName, Limits, Settings
from onbrand.db.session import Session
from onbrand.errors import Conflict, Forbidden, InvalidInput
from onbrand.families import bases
from onbrand.families.spec import SPECS, FamilySpec, Recommended, with_family_defaults
from onbrand.services.brands import record
from onbrand.services.events import Event, events_of
from onbrand.services.models import Model, adapter_ref, get_model
from onbrand.services.rows import Page, Row, hidden, known_id, must_be_there, page_of
from onbrand.storage.layout import Key
from onbrand.storage.store import BrandStore

GenerationStatus = Literal["pending", "running", "completed", "failed", "canceled"]
OutputFormat = Literal["png", "jpeg", "webp"]
ENDED = ("completed", "failed", "canceled")
SEED_MAX = 2**53 - 1
_GENERATION = "select t.*, t.model_name as model from app.generations t"
_IMAGE = "select t.* from app.generated_images t"


class NewGeneration(BaseModel):
    """What a member asks for. None: what the base recommends.

    Args:
        model: a model's name or id, or a family's name for its base; None: the base of `model_type`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    prompt: str = Field(repr=False)
    model: str | None = None
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
    output_format: OutputFormat = "png"


class Image(Row):
    """A picture that was drawn. `receipt` says from what: base, adapter, parameters."""

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
        """Where its bytes are."""
        return Key("generated-content", self.object_name)


class Generation(Row):
    """A request for pictures, and those that were drawn so far. Picture i has the seed `seed` + i."""

    id: str
    brand_id: str
    user_id: str
    model_id: str | None
    model: str
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
    output_format: OutputFormat
    status: GenerationStatus
    progress: int
    error: dict[str, Any] | None
    created_at: datetime
    completed_at: datetime | None
    images: list[Image] = Field(default_factory=list)
    cancel_requested_at: datetime | None = Field(default=None, exclude=True)


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One generation on its way to an engine. `[brand]` is replaced already. Its repr tells no prompt and no ticket."""

    ticket: str = field(repr=False)
    generation_id: str
    adapter: AdapterRef | None
    prompt: str = field(repr=False)
    negative_prompt: str = field(repr=False)
    num_images: int
    width: int
    height: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    lora_scale: float
    output_format: OutputFormat


@dataclass(frozen=True, slots=True)
class RenderEvent:
    """What an engine tells while it draws; the pictures themselves go to the store by its ticket."""

    kind: Literal["progress", "image", "completed", "failed", "canceled"]
    data: dict[str, Any] = field(default_factory=dict)


class Generator(Protocol):
    """Whoever draws: an engine in this process, or replicas behind Serve."""

    def generate(self, family: str, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """Draw; the last event is `completed`, `failed` or `canceled`."""
        ...

    async def cancel(self, family: str, generation_id: str) -> None:
        """Give its rows free at the next step; a generation that is not there is left alone."""
        ...


def recommended_of(settings: Settings) -> dict[FamilyName, Recommended]:
    """What each served family's base says of itself where it is a folder here, else the family's defaults."""
    found = {}
    for family in settings.families:
        source = Path(bases.base_source(family, settings.bases)).expanduser()
        found[family] = bases.recommended(family, source) if source.is_dir() else with_family_defaults(family, {})
    return found


async def create_generation(
    session: Session,
    brand_id: str,
    user_id: str,
    new: NewGeneration,
    recommended: Mapping[FamilyName, Recommended],
    limits: Limits,
) -> Generation:
    """A pending generation with every parameter decided.

    Args:
        recommended: of each family that is served (`recommended_of`).

    Raises:
        InvalidInput: a parameter is out of bounds, or the family is not served; `param` names it.
        NotFound: not the caller's brand, or no such model in it.
    """
    model, family = await _subject(session, brand_id, new)
    if family not in recommended:
        raise InvalidInput(f"{family} is not served here; served: {', '.join(recommended)}", param="model_type")
    values = _decided(new, SPECS[family], recommended[family], limits)
    values |= {
        "brand_id": brand_id,
        "user_id": user_id,
        "model_id": model.id if model else None,
        "model_type": family,
        "model_name": model.name if model else family,
    }
    columns = ", ".join(values)
    slots = ", ".join(f"%({name})s" for name in values)
    async with hidden("brand"):
        row = await session.one(f"insert into app.generations ({columns}) values ({slots}) returning id", values)
    about = {"generation_id": row["id"], "model_id": values["model_id"], "num_images": values["num_images"]}
    await record(session, brand_id, "generation.create", about)
    return await get_generation(session, brand_id, row["id"])


async def render_request(session: Session, generation: Generation, ticket: str) -> RenderRequest:
    """What an engine needs to draw this generation; `ticket` is the signed token. Raises NotFound."""
    model = None if generation.model_id is None else await get_model(session, generation.brand_id, generation.model_id)
    word = model.trigger_word if model else await _brand_name(session, generation.brand_id)
    return RenderRequest(
        ticket=ticket,
        generation_id=generation.id,
        adapter=adapter_ref(model) if model else None,
        prompt=generation.prompt.replace("[brand]", word),
        negative_prompt=generation.negative_prompt.replace("[brand]", word),
        num_images=generation.num_images,
        width=generation.width,
        height=generation.height,
        seed=generation.seed,
        num_inference_steps=generation.num_inference_steps,
        guidance_scale=generation.guidance_scale,
        true_cfg_scale=generation.true_cfg_scale,
        lora_scale=generation.lora_scale,
        output_format=generation.output_format,
    )


async def list_generations(
    session: Session, brand_id: str, limit: int = 20, cursor: str | None = None
) -> Page[Generation]:
    """The brand's generations, newest first, with their pictures."""
    page = await page_of(session, Generation, _GENERATION, brand_id, limit, cursor)
    return page.model_copy(update={"data": await _with_images(session, brand_id, page.data)})


async def get_generation(session: Session, brand_id: str, generation_id: str) -> Generation:
    """One generation with its pictures. Raises NotFound."""
    generation_id = known_id(generation_id, "generation")
    row = await session.maybe(f"{_GENERATION} where t.brand_id = %s and t.id = %s", [brand_id, generation_id])
    found = Generation.of(must_be_there(row, "generation"))
    return (await _with_images(session, brand_id, [found]))[0]


async def cancel_generation(session: Session, brand_id: str, generation_id: str) -> Generation:
    """Ask for the end; asking again changes nothing. Raises NotFound, Forbidden, Conflict (it has ended)."""
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
    """What happened to the generation after `after_seq`, oldest first. Raises NotFound."""
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


async def _subject(session: Session, brand_id: str, new: NewGeneration) -> tuple[Model | None, FamilyName]:
    """The model and its family; no model for a base."""
    named = new.model if new.model is not None else new.model_type
    if named is None:
        raise InvalidInput("name a model, or a model_type for its base", param="model")
    model: Model | None
    if named in SPECS:
        model, family = None, named
    elif new.model is None:
        raise InvalidInput(f"model_type must be one of {', '.join(SPECS)}", param="model_type")
    else:
        model = await get_model(session, brand_id, named)
        family = cast(FamilyName, model.model_type)
    if new.model_type not in (None, family):
        raise InvalidInput(f"the model is of type {family}; leave model_type out or say so", param="model_type")
    return model, family


def _decided(new: NewGeneration, spec: FamilySpec, base: Recommended, limits: Limits) -> dict[str, Any]:
    """Every column that the caller chooses, checked. Raises InvalidInput naming the first that is out of bounds."""
    _must_be_prompt(new.prompt, "prompt", 1, limits)
    _must_be_prompt(new.negative_prompt, "negative_prompt", 0, limits)
    values = {
        "prompt": new.prompt,
        "negative_prompt": new.negative_prompt,
        "num_images": _bounded("num_images", new.num_images, 1, limits.num_images),
        "width": base.resolution if new.width is None else new.width,
        "height": base.resolution if new.height is None else new.height,
        "seed": secrets.randbelow(2**32) if new.seed is None else _bounded("seed", new.seed, 0, SEED_MAX),
        "num_inference_steps": _or(new.num_inference_steps, base.num_inference_steps),
        "guidance_scale": _or(new.guidance_scale, base.guidance_scale),
        "true_cfg_scale": _or(new.true_cfg_scale, _or(base.true_cfg_scale, 1.0)),
        "lora_scale": _bounded("lora_scale", new.lora_scale, 0, spec.lora_scale_max),
        "output_format": new.output_format,
    }
    for side in ("width", "height"):
        spec.must_be_size(values[side], side)
    _bounded("num_inference_steps", values["num_inference_steps"], 1, spec.steps_max)
    _bounded("guidance_scale", values["guidance_scale"], 0, spec.guidance_max)
    _bounded("true_cfg_scale", values["true_cfg_scale"], 0, spec.guidance_max)
    return values


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _bounded(param: str, value: float, least: float, most: float) -> float:
    if not least <= value <= most:
        raise InvalidInput(f"{param} must be {least} to {most}; got {value}", param=param)
    return value


def _must_be_prompt(text: str, param: str, least: int, limits: Limits) -> None:
    if not least <= len(text.strip()) or len(text) > limits.prompt_chars or "\x00" in text:
        raise InvalidInput(
            f"{param} must have {least} to {limits.prompt_chars} characters; got {len(text)}", param=param
        )


async def _brand_name(session: Session, brand_id: str) -> str:
    row = await session.maybe("select name from app.brands where id = %s", [brand_id])
    return str(must_be_there(row, "brand")["name"])


async def _with_images(session: Session, brand_id: str, generations: list[Generation]) -> list[Generation]:
    rows = await session.all(
        f"{_IMAGE} where t.brand_id = %s and t.generation_id = any(%s::uuid[]) order by t.index",
        [brand_id, [generation.id for generation in generations]],
    )
    drawn: dict[str, list[Image]] = {}
    for row in rows:
        drawn.setdefault(row["generation_id"], []).append(Image.of(row))
    return [each.model_copy(update={"images": drawn.get(each.id, [])}) for each in generations]
