"""FLUX.1: a rectified flow on 2x2-packed latents, predicted by a multimodal transformer; CLIP pooled and T5 text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from onbrand.families.family import FLOW_SHIFT, Conditioning, Family, sample_timesteps
from onbrand.families.spec import SPECS
from onbrand.families.tokens import T5_TOKENS
from onbrand.families.training_config import TimestepSampling

_TRAINING_GUIDANCE = 1.0
_TIME_SCALE = 1000.0


class Flux(Family):
    """Conditioning: `text` [B, L, D] from T5, `pooled` [B, P] from CLIP. Timesteps run 1000 (noise) .. 0."""

    spec = SPECS["flux"]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        length = self.recommended.max_sequence_length or T5_TOKENS
        text, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), None, device=self.device, num_images_per_prompt=1, max_sequence_length=length
        )
        return Conditioning({"text": text, "pooled": pooled})

    def text_shapes(self, length: int) -> dict[str, tuple[int, ...]]:
        config: Any = self.denoiser.config
        return {"text": (length, config.joint_attention_dim), "pooled": (config.pooled_projection_dim,)}

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        step = self.vae_scale * 2
        return self.denoiser.config.in_channels // 4, 2 * (height // step), 2 * (width // step)  # type: ignore[union-attr]

    def training_times(self, u_B: Tensor, sampling: TimestepSampling | None = None) -> Tensor:
        """Logit-normal sigma times 1000, or shifted sigma if the base names a shift."""
        shift = self.recommended.flow_shift
        chosen: TimestepSampling = sampling or ("logit_normal" if shift is None else "shift")
        return self.times_at(sample_timesteps(u_B, chosen, shift or FLOW_SHIFT).clamp(min=1e-3))

    def times_at(self, sigma_B: Tensor) -> Tensor:
        return sigma_B.clamp(max=1.0) * _TIME_SCALE

    def noised(self, latents_BCHW: Tensor, t_B: Tensor, noise_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """x = (1 - s) x0 + s eps; the target is the velocity eps - x0 (Liu et al. 2022)."""
        sigma = (t_B / _TIME_SCALE).view(-1, 1, 1, 1)
        return (1 - sigma) * latents_BCHW + sigma * noise_BCHW, noise_BCHW - latents_BCHW

    def denoise(
        self, latents_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning, guidance_B: Tensor | None = None
    ) -> Tensor:
        batch, channels, height, width = latents_BCHW.shape
        text = conditioning["text"]
        packed = FluxPipeline._pack_latents(latents_BCHW, batch, channels, height, width)
        if guidance_B is None:
            guidance_B = torch.full((batch,), _TRAINING_GUIDANCE, device=self.device)
        image_ids = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, self.device, text.dtype)
        out = self.denoiser(
            hidden_states=packed,
            timestep=t_B.to(text.dtype) / _TIME_SCALE,
            guidance=guidance_B if self.denoiser.config.guidance_embeds else None,  # type: ignore[union-attr]
            pooled_projections=conditioning["pooled"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=self.device, dtype=text.dtype),
            img_ids=image_ids,
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(out, height * self.vae_scale, width * self.vae_scale, self.vae_scale)
