"""Stable Diffusion XL: two CLIP text encoders, pooled text and sizes as added conditions (Podell et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from onbrand.families.family import Conditioning
from onbrand.families.spec import SPECS
from onbrand.families.unet import UNetFamily


class SDXL(UNetFamily):
    """Conditioning: `text` [B, L, D], `pooled` [B, P]; optional `sizes` [B, 6]: original, crop, target (h, w)."""

    spec = SPECS["sdxl"]
    pipeline_options: ClassVar[dict[str, Any]] = {"add_watermarker": False}

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        first = self._read(self.pipeline.tokenizer, self.pipeline.text_encoder, prompts)
        second = self._read(self.pipeline.tokenizer_2, self.pipeline.text_encoder_2, prompts)
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return Conditioning({"text": text.to(self.device), "pooled": second.text_embeds.to(self.device)})

    def text_shapes(self, length: int) -> dict[str, tuple[int, ...]]:
        config: Any = self.denoiser.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return super().text_shapes(length) | {"pooled": (pooled,)}

    def _negatives(self, encoded: Conditioning, prompts: Sequence[str | None]) -> Conditioning:
        """None becomes zeros if the base says so (`force_zeros_for_empty_prompt`)."""
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
