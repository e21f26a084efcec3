"""Generations, the members' side: request, read, list, cancel. The system's side is `generation_worker`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from onbrand.brand import with_trigger_word
from onbrand.config import FamilyName, Limits, Settings
from onbrand.db.session import Session
from onbrand.errors import Conflict, Forbidden, NotFound
from onbrand.families import bases
from onbrand.families.spec import Recommended, with_family_defaults
from onbrand.internal.generation import GenerationParameters, OutputFormat, RenderRequest
from onbrand.services.audit import write_audit_line
from onbrand.services.events import ENDED_STATES, Event, events_of
from onbrand.services.generation_parameters import NewGeneration, adapters_of, decided
from onbrand.services.images import _IMAGE, Image
from onbrand.services.limits import limits_of, must_have_room
from onbrand.services.models import Model, adapter_ref, get_model
from onbrand.services.pagination import Page, R, Row, forbidden_as_not_found, known_id, must_be_there, page_of
from onbrand.services.storage_quota import must_not_be_full

GenerationStatus = Literal["pending", "running", "completed", "failed", "canceled"]
_GENERATION = "select t.*, t.model_name as model from app.generations t"
_ADAPTER = "select t.generation_id, t.model_id, t.model_name as model, t.sha256, t.scale from app.generation_adapters t"


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

    @property
    def parameters(self) -> GenerationParameters:
        """The parameters, as they were checked when the generation was created."""
        return GenerationParameters(**{each.name: getattr(self, each.name) for each in fields(GenerationParameters)})


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
    parameters = decided(new, family, recommended, limits)
    first, scale = adapters[0] if adapters else (None, new.lora_scale)
    values = asdict(parameters) | {
        "brand_id": brand_id,
        "user_id": user_id,
        "model_id": first.id if first else None,
        "model_type": family,
        "model_name": first.name if first else family,
        "lora_scale": scale,
    }
    columns = ", ".join(values)
    slots = ", ".join(f"%({name})s" for name in values)
    await must_have_room(session, brand_id, parameters.num_images, limits)
    async with forbidden_as_not_found("brand"):
        await must_not_be_full(session, brand_id, parameters.num_images, limits)
        row = await session.one(
            f"insert into app.generations ({columns}) values ({slots}) returning *, model_name as model", values
        )
    used = [await _use(session, brand_id, row["id"], index, *each) for index, each in enumerate(adapters)]
    about = {"generation_id": row["id"], "model_id": values["model_id"], "num_images": parameters.num_images}
    if len(adapters) > 1:
        about["model_ids"] = [model.id for model, _ in adapters]
    await write_audit_line(session, brand_id, "generation.create", about)
    return _whole(Generation.of(row), used, [])


async def _use(
    session: Session, brand_id: str, generation_id: str, index: int, model: Model, scale: float
) -> UsedAdapter:
    """Store an adapter of the generation."""
    row = await session.one(
        "insert into app.generation_adapters (brand_id, generation_id, index, model_id, model_name, sha256, scale)"
        " values (%s, %s, %s, %s, %s, %s, %s) returning model_id, model_name as model, sha256, scale",
        [brand_id, generation_id, index, model.id, model.name, model.sha256, scale],
    )
    return UsedAdapter.of(row)


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
        parameters=replace(
            generation.parameters,
            prompt=with_trigger_word(generation.prompt, word),
            negative_prompt=with_trigger_word(generation.negative_prompt, word),
        ),
        weight=share.weight,
        slot_quota=share.slot_quota,
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
        if now.status in ENDED_STATES:
            raise Conflict(f"the generation is {now.status}; only a pending or running one can be canceled")
        raise Forbidden("only the member who asked for the generation may cancel it")
    if num_changed and before.cancel_requested_at is None:
        await write_audit_line(session, brand_id, "generation.cancel", {"generation_id": now.id})
    return now


async def events(
    session: Session, brand_id: str, generation_id: str, after_seq: int = 0, limit: int = 500
) -> list[Event]:
    """Events of the generation after `after_seq`, oldest first. Raises NotFound."""
    generation = await get_generation(session, brand_id, generation_id)
    return await events_of(session, brand_id, generation.id, after_seq, limit)


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
