"""Requests, events and receipts of the engine. No prompt appears in a repr."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from onbrand.engine.adapters import AdapterUse
from onbrand.errors import InvalidInput, OnbrandError
from onbrand.families.family import Family

_WEIGHT_MIN, _WEIGHT_MAX = 1e-3, 1e3


@dataclass(frozen=True, slots=True)
class Request:
    """Pictures of one prompt, all with the same adapters. Picture i has the seed `seed` + i.

    None means the base's recommendation.

    Args:
        guidance_scale: classifier-free guidance; for flux, the embedded guidance.
        true_cfg_scale: classifier-free guidance of flux; others ignore it.
        adapters: all of this brand; several are summed.
        exclusive: share no forward pass with another brand.
        sampler: one of the family's (`FamilySpec.samplers`); None: the base's own.
        account_id: the brand's account; all brands of an account share one account's part. None: the brand has an
            account of its own.
        weight: the brand's share of the engine: its charges are divided by this.
        slot_quota: slots in each rank class that the brand can count on (`Residency`); None: no quota.
        preview_every: return a small `Preview` of each picture every so many steps; 0: none.
    """

    id: str
    brand_id: str
    prompt: str = field(repr=False)
    seed: int
    negative_prompt: str | None = field(default=None, repr=False)
    num_images: int = 1
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    adapters: tuple[AdapterUse, ...] = ()
    exclusive: bool = False
    sampler: str | None = None
    weight: float = 1.0
    slot_quota: int | None = None
    preview_every: int = 0
    account_id: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A request's numbers, completed with the base's recommendations.

    Args:
        cfg_scale: classifier-free guidance; the denoiser's rows are doubled when it is above 1.
        embedded_guidance: guidance that distilled models take as an input.
    """

    height: int
    width: int
    num_steps: int
    cfg_scale: float
    embedded_guidance: float

    @property
    def guided(self) -> bool:
        return self.cfg_scale > 1

    @property
    def step_cost(self) -> int:
        """Predicted work of one step of one picture, in denoised pixels."""
        return self.height * self.width * (1 + self.guided)

    @property
    def cost(self) -> int:
        """Predicted work of one picture, in denoised pixels."""
        return self.num_steps * self.step_cost


def planned(request: Request, family: Family) -> Plan:
    """The plan of a request. Raises InvalidInput naming a field that this family cannot draw."""
    spec, advice = family.spec, family.recommended
    height, width = request.height or advice.resolution or 512, request.width or advice.resolution or 512
    spec.must_be_size(height, "height")
    spec.must_be_size(width, "width")
    steps = _within(
        "num_inference_steps", request.num_inference_steps, advice.num_inference_steps or 30, 1, spec.steps_max
    )
    guidance = _within("guidance_scale", request.guidance_scale, advice.guidance_scale or 1.0, 0, spec.guidance_max)
    true_cfg = _within("true_cfg_scale", request.true_cfg_scale, advice.true_cfg_scale or 1.0, 0, spec.guidance_max)
    _within("num_images", request.num_images, 1, 1, 64)
    _within("weight", request.weight, 1.0, _WEIGHT_MIN, _WEIGHT_MAX)
    _within("slot_quota", request.slot_quota, 1, 1, math.inf)
    _within("preview_every", request.preview_every, 0, 0, math.inf)
    if request.sampler is not None and request.sampler not in spec.samplers:
        names = ", ".join(spec.samplers)
        raise InvalidInput(f"{spec.name} has the samplers {names}; got {request.sampler!r}", param="sampler")
    for use in request.adapters:
        _within("lora_scale", use.scale, 1.0, -spec.lora_scale_max, spec.lora_scale_max)
        if use.key.brand_id != request.brand_id:
            raise InvalidInput("the adapter is not of the request's brand", param="model")
    return Plan(height, width, int(steps), true_cfg if spec.name == "flux" else guidance, guidance)


def _within(param: str, value: float | None, default: float, low: float, high: float) -> float:
    chosen = default if value is None else value
    if not low <= chosen <= high:
        raise InvalidInput(f"{param} must be from {low} to {high}; got {chosen}", param=param)
    return chosen


@dataclass(frozen=True, slots=True)
class Receipt:
    """How a picture was made. With its prompt it suffices to draw it again: to the bit if all passes had one size
    class.

    Args:
        batch_sizes: size classes of the forward passes it took part in.
        slot_generation: generation of its adapter's slot at its last step; None without an adapter.
        cut: prompts longer than the base reads: field, tokenizer, number of tokens, and number read.
    """

    brand_id: str
    family: str
    adapters: tuple[tuple[str, float], ...]
    base_revision: str
    sampler: str
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float | None
    seed: int
    height: int
    width: int
    batch_sizes: tuple[int, ...]
    slot_generation: int | None
    cut: tuple[dict[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, as stored with the picture."""
        facts = {name: getattr(self, name) for name in self.__slots__}
        adapters = [{"sha256": sha256, "scale": scale} for sha256, scale in self.adapters]
        return {**facts, "adapters": adapters, "batch_sizes": list(self.batch_sizes), "cut": list(self.cut)}


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` steps of all pictures of the request."""

    request_id: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture after `step` steps: small (latent size), in 0..1 on the CPU. Never to be stored."""

    request_id: str
    index: int
    step: int
    image_CHW: Tensor = field(repr=False)


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture, [3, H, W] in 0..1 on the CPU."""

    request_id: str
    index: int
    seed: int
    image_CHW: Tensor = field(repr=False)
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Completed:
    """The request's last picture was returned."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ends here; others go on. Pictures returned before stay valid."""

    request_id: str
    error: OnbrandError


@dataclass(frozen=True, slots=True)
class Canceled:
    """`cancel` took effect: no more events of this request."""

    request_id: str


Event = Progress | Preview | Picture | Completed | Failed | Canceled
