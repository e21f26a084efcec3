"""Full-size denoisers of the three families, with their published configurations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import nn


@dataclass(frozen=True)
class Architecture:
    """Configuration of a denoiser, and the picture sides in pixels for its measurements."""

    family: str
    config: dict[str, Any]
    sides: tuple[int, ...]

    def build(self) -> nn.Module:
        """The denoiser with random weights, on the current default device and in the default dtype."""
        kind = FluxTransformer2DModel if self.family == "flux" else UNet2DConditionModel
        return kind(**self.config).requires_grad_(False).eval()


_ATTENTION_DOWN, _ATTENTION_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"

ARCHITECTURES = {
    "sd15": Architecture(
        "sd15",
        {
            "sample_size": 64,
            "in_channels": 4,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": (_ATTENTION_DOWN, _ATTENTION_DOWN, _ATTENTION_DOWN, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", _ATTENTION_UP, _ATTENTION_UP, _ATTENTION_UP),
        },
        (512,),
    ),
    "sdxl": Architecture(
        "sdxl",
        {
            "sample_size": 128,
            "in_channels": 4,
            "cross_attention_dim": 2048,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", _ATTENTION_DOWN, _ATTENTION_DOWN),
            "up_block_types": (_ATTENTION_UP, _ATTENTION_UP, "UpBlock2D"),
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        (512, 1024),
    ),
    "flux": Architecture(
        "flux",
        {
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
            "axes_dims_rope": (16, 56, 56),
        },
        (512, 1024),
    ),
}
"""stable-diffusion-v1-5, stable-diffusion-xl-base-1.0 and FLUX.1-dev, from their own config.json."""
