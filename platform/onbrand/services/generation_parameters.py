"""Resolve a member's request: its adapters, their family, and every number within its bounds."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from onbrand.config import FamilyName, Limits
from onbrand.db.session import Session
from onbrand.errors import InvalidInput
from onbrand.families.spec import SPECS, FamilySpec, Recommended, must_be_within
from onbrand.internal.generation import GenerationParameters, OutputFormat
from onbrand.services.models import Model, get_model
from onbrand.visible import must_be_visible

_QUALITIES = {"low": 0.5, "medium": 1.0, "high": 1.5}
"""Steps as a multiple of what the base recommends."""
Adapters = list[tuple[Model, float]]
"""Models of one brand and family, each with its scale."""


async def adapters_of(session: Session, brand_id: str, new: NewGeneration) -> tuple[Adapters, FamilyName]:
    """The requested adapters and their family; no adapters for a base.

    Raises:
        InvalidInput: the named models contradict each other or cannot be combined; `param` names it.
        NotFound: no such model in this brand.
    """
    named = _named(new)
    found = [(await get_model(session, brand_id, name), scale) for name, scale in named]
    family = cast(FamilyName, found[0][0].model_type) if found else _base_of(new)
    if new.model_type not in (None, family):
        raise InvalidInput(f"the model is of type {family}; leave model_type out or say so", param="model_type")
    _must_go_together([model for model, _ in found], SPECS[family])
    for index, (_, scale) in enumerate(found):
        where = "lora_scale" if new.models is None else f"models.{index}.scale"
        must_be_within(where, scale, 0, SPECS[family].lora_scale_max)
    return found, family


def _named(new: NewGeneration) -> list[tuple[str, float]]:
    """Names and scales of the adapters, from `model` or `models`."""
    if new.models is None:
        is_adapter = new.model is not None and new.model not in SPECS
        return [(str(new.model), new.lora_scale)] if is_adapter else []
    if new.model is not None:
        raise InvalidInput("name adapters in model or in models, not in both", param="models")
    if "lora_scale" in new.model_fields_set:
        raise InvalidInput("in models each has a scale of its own; leave lora_scale out", param="lora_scale")
    return [(use.model, use.scale) for use in new.models]


def _base_of(new: NewGeneration) -> FamilyName:
    """The family of the named base."""
    named = new.model if new.model is not None else new.model_type
    if named is None:
        raise InvalidInput("name a model, or a model_type for its base", param="model")
    if named not in SPECS:
        raise InvalidInput(f"model_type must be one of {', '.join(SPECS)}", param="model_type")
    return named


def _must_go_together(models: list[Model], spec: FamilySpec) -> None:
    """Raise InvalidInput unless they are different models of one family whose ranks together fit one slot."""
    for index, model in enumerate(models):
        if model.model_type != spec.name:
            said = f"{model.name} is of type {model.model_type} and {models[0].name} of {spec.name}"
            raise InvalidInput(f"{said}; name models of one type", param=f"models.{index}.model")
        if model.id in {each.id for each in models[:index]}:
            raise InvalidInput(f"{model.name} is named twice; name it once", param=f"models.{index}.model")
    if len(models) > 1 and (rank := sum(model.rank for model in models)) > spec.rank_max:
        raise InvalidInput(
            f"the ranks of these models add up to {rank}; {spec.rank_max} is the most for one picture", param="models"
        )


def decided(
    new: NewGeneration, family: FamilyName, recommended: Mapping[FamilyName, Recommended], limits: Limits
) -> GenerationParameters:
    """All parameters, checked. Raises InvalidInput naming the first that is out of bounds."""
    if family not in recommended:
        raise InvalidInput(f"{family} is not served here; served: {', '.join(recommended)}", param="model_type")
    spec, base = SPECS[family], recommended[family]
    _must_be_prompt(new.prompt, "prompt", 1, limits)
    _must_be_prompt(new.negative_prompt, "negative_prompt", 0, limits)
    must_be_within("num_images", new.num_images, 1, limits.num_images)
    must_be_within("lora_scale", new.lora_scale, 0, spec.lora_scale_max)
    num_steps = _steps(new, base, spec)
    chosen = GenerationParameters(
        prompt=new.prompt,
        negative_prompt=new.negative_prompt,
        seed=secrets.randbelow(2**32) if new.seed is None else new.seed,
        num_images=new.num_images,
        width=new.width,
        height=new.height,
        num_inference_steps=num_steps,
        guidance_scale=new.guidance_scale,
        true_cfg_scale=new.true_cfg_scale,
        sampler=new.sampler,
        exclusive=new.exclusive,
        preview_every=_preview_every(new, num_steps),
        output_format=new.output_format,
        output_compression=_compression(new),
    )
    return spec.completed(chosen, base)


def _steps(new: NewGeneration, base: Recommended, spec: FamilySpec) -> int:
    if new.quality is None:
        return base.num_inference_steps if new.num_inference_steps is None else new.num_inference_steps
    if new.num_inference_steps is not None:
        raise InvalidInput("say quality or num_inference_steps, not both", param="quality")
    return min(spec.steps_max, math.ceil(base.num_inference_steps * _QUALITIES[new.quality]))


def _preview_every(new: NewGeneration, num_steps: int) -> int:
    if not new.num_previews:
        return new.preview_every
    if new.preview_every:
        raise InvalidInput("say preview_every or num_previews, not both", param="num_previews")
    return max(1, num_steps // (new.num_previews + 1))


def _compression(new: NewGeneration) -> int | None:
    if new.output_compression is not None and new.output_format == "png":
        raise InvalidInput("a PNG has no output_compression; ask for jpeg or webp", param="output_compression")
    return new.output_compression


def _must_be_prompt(text: str, param: str, least: int, limits: Limits) -> None:
    if not least <= len(text.strip()) or len(text) > limits.prompt_chars:
        raise InvalidInput(
            f"{param} must have {least} to {limits.prompt_chars} characters; got {len(text)}", param=param
        )
    must_be_visible(text, param, param, lines=True)


Quality = Literal["low", "medium", "high"]


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
