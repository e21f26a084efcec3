"""Stable Diffusion XL: two CLIP text encoders, pooled text and sizes as added conditions (Podell et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onbrand.families.family import Conditioning
from onbrand.families.spec import SPECS
from onbrand.families.unet import UNetFamily


class SDXL(UNetFamily):
    """Conditioning: `text` [B, L, D], `pooled` [B, P]; optional `sizes` [B, 6]: original, crop, target (h, w)."""

    spec = SPECS["sdxl"]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return Conditioning({"text": text, "pooled": pooled})

    def _negatives(self, encoded: Conditioning, prompts: Sequence[str | None]) -> Conditioning:
        """None becomes zeros where the base says so (`force_zeros_for_empty_prompt`)."""
        if not self.pipeline.config.force_zeros_for_empty_prompt:
            return encoded
        absent = torch.tensor([prompt is None for prompt in prompts], device=self.device)
        zeros = Conditioning({name: torch.zeros_like(value) for name, value in encoded.tensors.items()})
        return encoded.where(absent, zeros)

    def _sizes(self, latents_BCHW: Tensor, conditioning: Conditioning) -> Tensor:
        if "sizes" in conditioning.tensors:
            return conditioning["sizes"].to(conditioning["text"].dtype)
        height, width = (side * self.vae_scale for side in latents_BCHW.shape[2:])
        row = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=conditioning["text"].dtype)
        return row.expand(len(latents_BCHW), -1)

    def denoise(
        self, latents_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning, guidance_B: Tensor | None = None
    ) -> Tensor:
        sizes = self._sizes(latents_BCHW, conditioning)
        return self.denoiser(
            latents_BCHW,
            t_B,
            encoder_hidden_states=conditioning["text"],
            added_cond_kwargs={"text_embeds": conditioning["pooled"], "time_ids": sizes},
            return_dict=False,
        )[0]
