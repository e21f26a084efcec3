"""The client's resources of generations and their images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onbrand.client import objects
from onbrand.client.resource import BrandLike, BrandResource, FileResource, brand_path, given


class Generations(BrandResource[objects.Generation]):
    """Generations."""

    kind, name = objects.Generation, "generations"

    def create(
        self,
        brand: BrandLike,
        prompt: str,
        *,
        model: str | None = None,
        model_type: str | None = None,
        negative_prompt: str | None = None,
        num_images: int | None = None,
        width: int | None = None,
        height: int | None = None,
        seed: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        true_cfg_scale: float | None = None,
        lora_scale: float | None = None,
        models: Sequence[Mapping[str, Any]] | None = None,
        sampler: str | None = None,
        exclusive: bool | None = None,
        preview_every: int | None = None,
        quality: str | None = None,
        output_format: str | None = None,
        output_compression: int | None = None,
        wait_seconds: int = 0,
        idempotency_key: str | None = None,
    ) -> objects.Generation:
        """Draw `num_images` pictures of `prompt` with the adapter `model`, or with the base of `model_type`.

        Args:
            models: instead of `model`: the sum of up to four adapters, each ``{"model": ..., "scale": ...}``.
            sampler: ``euler`` or ``dpm++2m``; ``flow-euler`` for flux.
            exclusive: share no forward pass with another brand.
            preview_every: steps between previews of each picture in `events` (``preview``, a data URL).
            quality: ``low``, ``medium`` or ``high``, instead of `num_inference_steps`. `output_compression`: 0 to 100.
            wait_seconds: return when done, or after this many seconds; 0 returns at once.
        """
        body = given(
            prompt=prompt,
            model=model,
            model_type=model_type,
            negative_prompt=negative_prompt,
            num_images=num_images,
            width=width,
            height=height,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            true_cfg_scale=true_cfg_scale,
            lora_scale=lora_scale,
            models=None if models is None else [dict(use) for use in models],
            sampler=sampler,
            exclusive=exclusive,
            preview_every=preview_every,
            quality=quality,
            output_format=output_format,
            output_compression=output_compression,
        )
        return self._post(
            objects.Generation,
            brand_path(brand, "generations"),
            body,
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
