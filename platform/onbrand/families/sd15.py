"""Stable Diffusion 1.5: one CLIP text encoder, a UNet with cross-attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onbrand.families.family import Conditioning
from onbrand.families.spec import SPECS
from onbrand.families.unet import UNetFamily


class SD15(UNetFamily):
    """Conditioning: `text` [B, L, D]."""

    spec = SPECS["sd15"]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        text, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)
        return Conditioning({"text": text})

    def denoise(
        self, latents_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning, guidance_B: Tensor | None = None
    ) -> Tensor:
        return self.denoiser(latents_BCHW, t_B, encoder_hidden_states=conditioning["text"], return_dict=False)[0]
