"""Stable Diffusion 1.5: one CLIP text encoder, a UNet with cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from onbrand.families.family import Conditioning
from onbrand.families.spec import SPECS
from onbrand.families.unet import UNetFamily


class SD15(UNetFamily):
    """Conditioning: `text` [B, L, D]."""

    spec = SPECS["sd15"]
    pipeline_options: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        read = self._read(self.pipeline.tokenizer, self.pipeline.text_encoder, prompts)
        return Conditioning({"text": read.last_hidden_state.to(self.device)})

    def denoise(
        self, latents_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning, guidance_B: Tensor | None = None
    ) -> Tensor:
        return self.denoiser(latents_BCHW, t_B, encoder_hidden_states=conditioning["text"], return_dict=False)[0]
