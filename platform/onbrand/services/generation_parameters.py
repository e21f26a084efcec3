"""Resolve a member's request: its adapters, their family, and every number within its bounds."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from onbrand.config import FamilyName, Limits
from onbrand.db.session import Session
from onbrand.errors import InvalidInput
from onbrand.families.spec import SPECS, FamilySpec, Recommended
from onbrand.services.models import Model, get_model
from onbrand.visible import must_be_visible

if TYPE_CHECKING:
    from onbrand.services.images import NewGeneration

SEED_MAX = 2**53 - 1
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
        _bounded(where, scale, 0, SPECS[family].lora_scale_max)
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
) -> dict[str, Any]:
    """All columns that the caller chooses, checked. Raises InvalidInput naming the first that is out of bounds."""
    if family not in recommended:
        raise InvalidInput(f"{family} is not served here; served: {', '.join(recommended)}", param="model_type")
    spec, base = SPECS[family], recommended[family]
    _must_be_prompt(new.prompt, "prompt", 1, limits)
    _must_be_prompt(new.negative_prompt, "negative_prompt", 0, limits)
    values = {
        "prompt": new.prompt,
        "negative_prompt": new.negative_prompt,
        "num_images": _bounded("num_images", new.num_images, 1, limits.num_images),
        "width": _or(new.width, base.resolution),
        "height": _or(new.height, base.resolution),
        "seed": secrets.randbelow(2**32) if new.seed is None else _bounded("seed", new.seed, 0, SEED_MAX),
        "num_inference_steps": _steps(new, base, spec),
        "guidance_scale": _or(new.guidance_scale, base.guidance_scale),
        "true_cfg_scale": _or(new.true_cfg_scale, _or(base.true_cfg_scale, 1.0)),
        "lora_scale": _bounded("lora_scale", new.lora_scale, 0, spec.lora_scale_max),
        "output_format": new.output_format,
        "output_compression": _compression(new),
        "sampler": _sampler(new.sampler, spec),
        "exclusive": new.exclusive,
    }
    values["preview_every"] = _preview_every(new, values["num_inference_steps"], spec)
    for side in ("width", "height"):
        spec.must_be_size(values[side], side)
    _bounded("num_inference_steps", values["num_inference_steps"], 1, spec.steps_max)
    _bounded("guidance_scale", values["guidance_scale"], 0, spec.guidance_max)
    _bounded("true_cfg_scale", values["true_cfg_scale"], 0, spec.guidance_max)
    return values


def _steps(new: NewGeneration, base: Recommended, spec: FamilySpec) -> int:
    if new.quality is None:
        return int(_or(new.num_inference_steps, base.num_inference_steps))
    if new.num_inference_steps is not None:
        raise InvalidInput("say quality or num_inference_steps, not both", param="quality")
    return min(spec.steps_max, math.ceil(base.num_inference_steps * _QUALITIES[new.quality]))


def _preview_every(new: NewGeneration, num_steps: int, spec: FamilySpec) -> int:
    if not new.num_previews:
        return int(_bounded("preview_every", new.preview_every, 0, spec.steps_max))
    if new.preview_every:
        raise InvalidInput("say preview_every or num_previews, not both", param="num_previews")
    return max(1, num_steps // (new.num_previews + 1))


def _compression(new: NewGeneration) -> int | None:
    if new.output_compression is not None and new.output_format == "png":
        raise InvalidInput("a PNG has no output_compression; ask for jpeg or webp", param="output_compression")
    return new.output_compression


def _sampler(name: str | None, spec: FamilySpec) -> str | None:
    if name is not None and name not in spec.samplers:
        raise InvalidInput(f"sampler must be one of {', '.join(spec.samplers)} for {spec.name}", param="sampler")
    return name


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _bounded(param: str, value: float, least: float, most: float) -> float:
    if not least <= value <= most:
        raise InvalidInput(f"{param} must be {least} to {most}; got {value}", param=param)
    return value


def _must_be_prompt(text: str, param: str, least: int, limits: Limits) -> None:
    if not least <= len(text.strip()) or len(text) > limits.prompt_chars:
        raise InvalidInput(
            f"{param} must have {least} to {limits.prompt_chars} characters; got {len(text)}", param=param
        )
    must_be_visible(text, param, param, lines=True)
