"""Common base of SD 1.5 and SDXL: a variance-preserving diffusion on latents, predicted by a UNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from onbrand.families.family import MIN_SNR_GAMMA, Family, sample_timesteps
from onbrand.families.training_config import TimestepSampling


class UNetFamily(Family):
    """Noise schedule, prediction type and zero terminal SNR are read from the base's scheduler configuration."""

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **kwargs)
        noise_schedule = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        self._alphas_cumprod: Tensor = noise_schedule.alphas_cumprod.double()
        self._prediction_type: str = self.pipeline.scheduler.config.prediction_type

    def _read(self, tokenizer: Any, encoder: Any, prompts: Sequence[str]) -> Any:
        """A CLIP encoder's output for prompts, cut or padded to its length. The pipelines' `encode_prompt` makes the
        same call, but tokenizes everything a second time, uncut, to report the cut part."""
        length = tokenizer.model_max_length
        cut = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return encoder(cut.input_ids.to(encoder.device), output_hidden_states=True)

    def text_shapes(self, length: int) -> dict[str, tuple[int, ...]]:
        config: Any = self.denoiser.config
        return {"text": (length, config.cross_attention_dim)}

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.denoiser.config.in_channels, height // self.vae_scale, width // self.vae_scale  # type: ignore[union-attr]

    def parts_before_text(self) -> list[nn.Module]:
        """The parts up to the first attention to text, or the first use of a time embedding that depends on text."""
        unet: Any = self.denoiser
        first = unet.down_blocks[0]
        if unet.config.addition_embed_type is not None:
            return [unet.conv_in, first.resnets[0].conv1]
        return [unet.conv_in, first.resnets[0] if hasattr(first, "attentions") else first]

    def training_times(self, u_B: Tensor, sampling: TimestepSampling | None = None) -> Tensor:
        """Uniform over 0..T-1 unless `sampling` differs."""
        num_times = len(self._alphas_cumprod)
        return (sample_timesteps(u_B, sampling or "uniform") * num_times).long().clamp(max=num_times - 1)

    def times_at(self, sigma_B: Tensor) -> Tensor:
        """sigma T - 1: the last timestep for 1."""
        return (sigma_B * len(self._alphas_cumprod)).round().long().sub(1).clamp(min=0)

    def noised(self, latents_BCHW: Tensor, t_B: Tensor, noise_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """x_t = alpha x0 + sigma eps; the target is eps, or v = alpha eps - sigma x0 (Salimans & Ho 2022)."""
        alpha_bar = self._alphas_cumprod.to(t_B.device)[t_B].view(-1, 1, 1, 1)
        alpha, sigma = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
        noisy = alpha * latents_BCHW + sigma * noise_BCHW
        if self._prediction_type == "v_prediction":
            return noisy, alpha * noise_BCHW - sigma * latents_BCHW
        return noisy, noise_BCHW

    def loss_weight(self, t_B: Tensor, min_snr_gamma: float | None = MIN_SNR_GAMMA) -> Tensor:
        """min(SNR, gamma) / SNR for epsilon (Hang et al. 2023); 1 for v: it would silence a zero-SNR last step."""
        if self._prediction_type == "v_prediction" or min_snr_gamma is None:
            return torch.ones_like(t_B, dtype=torch.float32)
        alpha_bar = self._alphas_cumprod.to(t_B.device)[t_B]
        snr = alpha_bar / (1 - alpha_bar)
        return (snr.clamp(max=min_snr_gamma) / snr).float()
