"""The client's resources of generations and their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack

from onbrand.client import objects
from onbrand.client.resource_bases import BrandLike, BrandResource, FileResource, brand_path, given


class GenerationOptions(TypedDict, total=False):
    """Options of a generation; the platform's defaults apply to those that are not given, or None.

    Args:
        model: an adapter; without it the base of `model_type` draws.
        models: instead of `model`: the sum of up to four adapters, each ``{"model": ..., "scale": ...}``.
        sampler: ``euler`` or ``dpm++2m``; ``flow-euler`` for flux.
        exclusive: share no forward pass with another brand.
        preview_every: steps between previews of each picture in `events` (``preview``, a data URL).
        quality: ``low``, ``medium`` or ``high``, instead of `num_inference_steps`. `output_compression`: 0 to 100.
    """

    model: str | None
    model_type: str | None
    negative_prompt: str | None
    num_images: int | None
    width: int | None
    height: int | None
    seed: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    true_cfg_scale: float | None
    lora_scale: float | None
    models: Sequence[Mapping[str, Any]] | None
    sampler: str | None
    exclusive: bool | None
    preview_every: int | None
    quality: str | None
    output_format: str | None
    output_compression: int | None


class Generations(BrandResource[objects.Generation]):
    """Requests for pictures, with their events."""

    kind, name = objects.Generation, "generations"

    def create(
        self,
        brand: BrandLike,
        prompt: str,
        *,
        wait_seconds: int = 0,
        idempotency_key: str | None = None,
        **options: Unpack[GenerationOptions],
    ) -> objects.Generation:
        """Draw pictures of `prompt`.

        Args:
            wait_seconds: return when done, or after this many seconds; 0 returns at once.
        """
        if unknown := options.keys() - GenerationOptions.__annotations__.keys():
            raise TypeError(f"a generation has no option '{min(unknown)}'")
        return self._post(
            objects.Generation,
            brand_path(brand, "generations"),
            given(prompt=prompt, **options),
            headers={"prefer": f"wait={wait_seconds}"} if wait_seconds else {},
            idempotency_key=idempotency_key,
            timeout=wait_seconds + 60.0,
        )

    def cancel(self, brand: BrandLike, generation_id: str) -> objects.Generation:
        return self._do(brand, generation_id, "cancel")

    def events(self, brand: BrandLike, generation_id: str, after: int | None = None) -> Iterator[objects.Event]:
        return self._events(brand_path(brand, "generations", generation_id, "events"), after)


class Images(FileResource[objects.Image]):
    """Generated pictures."""

    kind, name = objects.Image, "images"
