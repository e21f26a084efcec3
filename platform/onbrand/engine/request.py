"""Requests, events and receipts of the engine. No prompt appears in a repr."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from onbrand.engine.adapters import AdapterUse
from onbrand.errors import InvalidInput, OnbrandError
from onbrand.families.family import Family
from onbrand.families.spec import must_be_within
from onbrand.internal.generation import GenerationParameters

_WEIGHT_MIN, _WEIGHT_MAX = 1e-3, 1e3


@dataclass(frozen=True, slots=True)
class Request:
    """Images of one prompt, all with the same adapters.

    Args:
        adapters: all of this brand; several are summed.
        account_id: the brand's account; all brands of an account share one account's part. None: the brand has an
            account of its own.
        weight: the brand's share of the engine: its charges are divided by this.
        slot_quota: slots in each rank class that the brand can count on (`AdapterResidency`); None: no quota.
    """

    id: str
    brand_id: str
    parameters: GenerationParameters
    adapters: tuple[AdapterUse, ...] = ()
    weight: float = 1.0
    slot_quota: int | None = None
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
        """Predicted work of one step of one image, in denoised pixels."""
        return self.height * self.width * (1 + self.guided)

    @property
    def cost(self) -> int:
        """Predicted work of one image, in denoised pixels."""
        return self.num_steps * self.step_cost


def planned(request: Request, family: Family) -> Plan:
    """The plan of a request. Raises InvalidInput naming a field that this family cannot draw."""
    spec = family.spec
    chosen = spec.completed(request.parameters, family.recommended)
    must_be_within("weight", request.weight, _WEIGHT_MIN, _WEIGHT_MAX)
    if request.slot_quota is not None:
        must_be_within("slot_quota", request.slot_quota, 1, math.inf)
    for use in request.adapters:
        must_be_within("lora_scale", use.scale, -spec.lora_scale_max, spec.lora_scale_max)
        if use.key.brand_id != request.brand_id:
            raise InvalidInput("the adapter is not of the request's brand", param="model")
    guidance, true_cfg = cast(float, chosen.guidance_scale), cast(float, chosen.true_cfg_scale)
    cfg_scale = true_cfg if spec.embeds_guidance else guidance
    height, width, num_steps = (cast(int, n) for n in (chosen.height, chosen.width, chosen.num_inference_steps))
    return Plan(height, width, num_steps, cfg_scale, guidance)


@dataclass(frozen=True, slots=True)
class Receipt:
    """How an image was made. With its prompt it suffices to draw it again: to the bit if all passes had one size
    class.

    Args:
        batch_sizes: sizes of the forward passes it took part in.
        slot_generation: version of its adapter's slot at its last step; None without an adapter.
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
        """Plain JSON, as stored with the image."""
        facts = {name: getattr(self, name) for name in self.__slots__}
        adapters = [{"sha256": sha256, "scale": scale} for sha256, scale in self.adapters]
        return {**facts, "adapters": adapters, "batch_sizes": list(self.batch_sizes), "cut": list(self.cut)}


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` steps of all images of the request."""

    request_id: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Preview:
    """An image after `step` steps: small (latent size), in 0..1 on the CPU. Never to be stored."""

    request_id: str
    index: int
    step: int
    image_CHW: Tensor = field(repr=False)


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """A finished image, [3, H, W] in 0..1 on the CPU."""

    request_id: str
    index: int
    seed: int
    image_CHW: Tensor = field(repr=False)
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Completed:
    """The request's last image was returned."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ends here; others go on. Images returned before stay valid."""

    request_id: str
    error: OnbrandError


@dataclass(frozen=True, slots=True)
class Canceled:
    """`cancel` took effect: no more events of this request."""

    request_id: str


Event = Progress | Preview | FinishedImage | Completed | Failed | Canceled
