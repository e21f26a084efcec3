"""Types of generations between the platform and its engines: a request, its events, and the engine's protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from onbrand.adapter import AdapterRef

OutputFormat = Literal["png", "jpeg", "webp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationParameters:
    """Everything that decides a generation's images, except its adapters. Its repr shows no prompt.

    Image i has the seed `seed` + i. `FamilySpec.completed` replaces None in size, steps
    and guidance by the base's recommendation.

    Args:
        width, height: pixels.
        guidance_scale: classifier-free guidance; of a family with embedded guidance, the embedded one.
        true_cfg_scale: classifier-free guidance of a family with embedded guidance; others ignore it.
        sampler: one of the family's (`FamilySpec.samplers`); None: the base's own.
        exclusive: share no forward pass with another brand.
        preview_every: send a small preview of each image every so many steps; 0: none.
        output_compression: quality of a JPEG or WEBP file, 0 to 100; None: 95.
    """

    prompt: str = field(repr=False)
    negative_prompt: str = field(default="", repr=False)
    seed: int
    num_images: int = 1
    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    sampler: str | None = None
    exclusive: bool = False
    preview_every: int = 0
    output_format: OutputFormat = "png"
    output_compression: int | None = None


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
    parameters: GenerationParameters
    weight: float = 1.0
    slot_quota: int | None = None
    account_id: str | None = None


@dataclass(frozen=True, slots=True)
class RenderEvent:
    """An event of a generation in an engine. It has no image: the engine's replica stores images by its ticket.

    A `preview` holds an index, a step, and a small image as a data URL; the repr hides them.
    """

    kind: Literal["progress", "preview", "image", "completed", "failed", "canceled"]
    data: dict[str, Any] = field(default_factory=dict, repr=False)


class Generator(Protocol):
    """Draws generations: an engine in this process, or replicas behind Serve."""

    def generate(self, family: str, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """Draw; the last event is `completed`, `failed` or `canceled`."""

    def watch(self, family: str, generation_id: str, brand_id: str, user_id: str) -> AsyncIterator[RenderEvent]:
        """Events of a generation in progress, for its brand and member; none if no engine draws it now."""

    async def cancel(self, family: str, generation_id: str) -> None:
        """Free its rows at the next step; an unknown generation is ignored."""
