"""A model family is one object with two entry points, after k-diffusion: `loss` for training, `denoise` for inference.

Both use the same prediction, with a timestep per row, so that training and serving cannot diverge.
Shapes: B rows, C latent channels, H x W latents, L text tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from onbrand.families.samplers import Sampler, guided, own_sampler, selectable_samplers
from onbrand.families.spec import FamilySpec, Recommended
from onbrand.families.tokens import TextLengths, of_pipeline
from onbrand.families.training_config import TimestepSampling

MIN_SNR_GAMMA = 5.0
FLOW_SHIFT = 3.1582
"""The shift k of `shift` for bases without their own: e^1.15, FLUX's at 1024 pixels."""


@dataclass(frozen=True)
class Conditioning:
    """The encoded prompts of B rows: named tensors whose first dimension is the row."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    def rows(self, index: Sequence[int] | Tensor | slice) -> Conditioning:
        """The rows at `index`, in that order; repeats are allowed."""
        return Conditioning({name: value[index] for name, value in self.tensors.items()})

    def where(self, mask_B: Tensor, other: Conditioning) -> Conditioning:
        """Rows of `other` (one row or B rows) where the mask is true, own rows elsewhere."""
        return Conditioning(
            {
                name: torch.where(mask_B.view(-1, *[1] * (value.dim() - 1)), other[name], value)
                for name, value in self.tensors.items()
            }
        )

    def to(self, *args: Any, **kwargs: Any) -> Conditioning:
        """The same rows after `Tensor.to` on every tensor."""
        return Conditioning({name: value.to(*args, **kwargs) for name, value in self.tensors.items()})

    @staticmethod
    def cat(parts: Iterable[Conditioning]) -> Conditioning:
        """The rows of all parts, in order."""
        parts = list(parts)
        return Conditioning({name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors})


class Family(ABC):
    """A loaded base of one family. Weights are frozen; adapters are attached from outside (`lora`, `engine.slots`)."""

    spec: FamilySpec
    pipeline_options: ClassVar[dict[str, Any]] = {}
    """Arguments of the pipeline's `from_pretrained`."""

    def __init__(self, pipeline: DiffusionPipeline, recommended: Recommended, base_revision: str) -> None:
        self.pipeline = pipeline
        self.recommended = recommended
        self.revision = base_revision
        self.denoiser: nn.Module = getattr(pipeline, self.spec.component)
        self.vae = pipeline.vae
        self.sampler: Sampler = own_sampler(pipeline.scheduler)
        self.samplers: dict[str, Sampler] = selectable_samplers(pipeline.scheduler)
        self.vae_scale: int = pipeline.vae_scale_factor
        self._turns_on: torch.device | None = None
        self._denoiser_moves = True
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """The device that computes; the VAE always stays on it."""
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.denoiser.parameters()).dtype

    @property
    def _vae_dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype  # diffusers' own property visits every module first

    def enable_offload(self, device: torch.device, denoiser: bool = True) -> None:
        """From now on text encoders and denoiser take turns on `device`; the other is in host memory. A base loaded on
        the CPU is moved to `device`. On a CPU nothing ever moves.

        Args:
            denoiser: whether the denoiser takes turns; if not, the caller places it.
        """
        self._turns_on, self._denoiser_moves = device, denoiser
        self.vae.to(device)
        if denoiser:
            self.denoiser.to(device)

    @contextmanager
    def text_encoders_on_device(self) -> Iterator[None]:
        """Within the context, the text encoders are on the device."""
        if self._turns_on is None:
            yield
            return
        with self.denoiser_away():
            for encoder in self.text_encoders():
                encoder.to(self._turns_on)
            try:
                yield
            finally:
                for encoder in self.text_encoders():
                    encoder.to("cpu")

    @contextmanager
    def denoiser_away(self) -> Iterator[None]:
        """Within the context, the denoiser is off the device, if parts take turns."""
        if self._turns_on is None or not self._denoiser_moves:
            yield
            return
        self.denoiser.to("cpu")
        try:
            yield
        finally:
            self.denoiser.to(self._turns_on)

    @cached_property
    def text_lengths(self) -> TextLengths:
        """Counts the tokens of prompts as the base's tokenizers do."""
        return of_pipeline(self.pipeline, self.recommended)

    def text_encoders(self) -> list[nn.Module]:
        """All text encoders of the base, in the order of its parts."""
        return [part for name, part in self.pipeline.components.items() if name.startswith("text_encoder") and part]

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of B prompts, exactly as the diffusers pipeline computes it."""

    def encode_negatives(self, prompts: Sequence[str | None]) -> Conditioning:
        """Conditioning of the negative branch; None means no negative prompt."""
        return self._negatives(self.encode_prompts([prompt or "" for prompt in prompts]), prompts)

    def encode_pairs(
        self, prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> tuple[Conditioning, Conditioning]:
        """Conditioning of B prompts and of their negative branches, in one pass through the text encoders."""
        both = self.encode_prompts([*prompts, *(negative or "" for negative in negatives)])
        return both.rows(slice(len(prompts))), self._negatives(both.rows(slice(len(prompts), None)), negatives)

    def _negatives(self, encoded: Conditioning, prompts: Sequence[str | None]) -> Conditioning:
        """The base's negative conditioning, from negative prompts encoded like any others ("" where there is none)."""
        return encoded

    @torch.no_grad()
    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        """Latents (posterior mean) of images in -1..1, shifted and scaled as the denoiser expects them."""
        config = self.vae.config
        mean = self.vae.encode(images_BCHW.to(self._vae_dtype)).latent_dist.mean.float()
        return (mean - (config.shift_factor or 0.0)) * config.scaling_factor

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Images in 0..1 of latents; infinite values become NaN."""
        config = self.vae.config
        latents = latents_BCHW / config.scaling_factor + (config.shift_factor or 0.0)
        sample = self.vae.decode(latents.to(self._vae_dtype)).sample.float()
        return (sample.masked_fill_(sample.isinf(), torch.nan) / 2 + 0.5).clamp(0, 1)

    @abstractmethod
    def text_shapes(self, length: int) -> dict[str, tuple[int, ...]]:
        """Shapes of one row of `encode_prompts` for a text of `length` tokens, from the configuration alone."""

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of an image of height x width pixels."""

    def image_tokens(self, height: int, width: int) -> int:
        """Number of tokens of an image in the denoiser (flow models shift their sigmas by it)."""
        _, rows, columns = self.latent_shape(height, width)
        return rows * columns // 4

    def prepare_noise(self, seed: int, height: int, width: int) -> Tensor:
        """[1, C, H, W] standard normal noise from a CPU generator, as the diffusers pipeline makes it for this seed."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((1, *self.latent_shape(height, width)), generator=generator, dtype=self.dtype)
        return noise.to(self.device)

    def parts_before_text(self) -> list[nn.Module]:
        """Parts of the denoiser that do not depend on the prompt: rows with equal latents and step agree there."""
        return []

    @abstractmethod
    def denoise(
        self, latents_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning, guidance_B: Tensor | None = None
    ) -> Tensor:
        """The denoiser's prediction for rows at their own timesteps (`Schedule.timesteps`).

        Args:
            guidance_B: the embedded guidance of distilled models; others ignore it.
        """

    @abstractmethod
    def training_times(self, u_B: Tensor, sampling: TimestepSampling | None = None) -> Tensor:
        """Timesteps for training from uniform draws in 0..1, distributed by `sampling`, or as the base recommends."""

    @abstractmethod
    def times_at(self, sigma_B: Tensor) -> Tensor:
        """The timesteps at the fraction `sigma_B` (0..1) of the way from image to noise."""

    @abstractmethod
    def noised(self, latents_BCHW: Tensor, t_B: Tensor, noise_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(noisy latents, the denoiser's target for them)."""

    def loss_weight(self, t_B: Tensor, min_snr_gamma: float | None = MIN_SNR_GAMMA) -> Tensor:
        """The weight of a row's loss by its timestep."""
        return torch.ones_like(t_B, dtype=torch.float32)

    def errors(
        self,
        latents_BCHW: Tensor,
        conditioning: Conditioning,
        t_B: Tensor,
        noise_BCHW: Tensor,
        guidance_B: Tensor | None = None,
    ) -> Tensor:
        """[B] mean squared error of the prediction, per row."""
        noisy, target = self.noised(latents_BCHW, t_B, noise_BCHW)
        prediction = self.denoise(noisy.to(self.dtype), t_B, conditioning, guidance_B)
        return (prediction.float() - target.float()).pow(2).flatten(1).mean(1)

    def loss(
        self,
        latents_BCHW: Tensor,
        conditioning: Conditioning,
        t_B: Tensor,
        noise_BCHW: Tensor,
        guidance_B: Tensor | None = None,
        min_snr_gamma: float | None = MIN_SNR_GAMMA,
    ) -> Tensor:
        """[B] weighted mean squared error of the prediction, per row."""
        errors_B = self.errors(latents_BCHW, conditioning, t_B, noise_BCHW, guidance_B)
        return errors_B * self.loss_weight(t_B, min_snr_gamma)


def sample_timesteps(u_B: Tensor, sampling: TimestepSampling, shift: float = FLOW_SHIFT) -> Tensor:
    """Noise fractions for training, 0..1, from uniform draws: unchanged, logit-normal (sigmoid of a standard normal;
    Esser et al. 2024, sec. 3.1), or shifted towards the noise, k u / (1 + (k - 1) u) (sec. 5.3.2)."""
    if sampling == "uniform":
        return u_B
    if sampling == "shift":
        return shift * u_B / (1 + (shift - 1) * u_B)
    return torch.sigmoid(torch.special.ndtri(u_B.double().clamp(1e-6, 1 - 1e-6))).to(u_B.dtype)


@torch.no_grad()
def draw(
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negative_prompt: str | None = None,
    num_steps: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Tensor:
    """[B, 3, H, W] images in 0..1, one per prompt and seed; the base's recommendations fill in for None.

    A plain loop for samples and scores; serving draws through the engine.
    """
    recommended = family.recommended
    height, width = height or recommended.resolution, width or recommended.resolution
    schedule = family.sampler.schedule(num_steps or recommended.num_inference_steps, family.image_tokens(height, width))
    scale = family_guidance(family)
    with family.text_encoders_on_device():
        rows = family.encode_prompts(prompts)
        if scale > 1:
            rows = Conditioning.cat([family.encode_negatives([negative_prompt] * len(prompts)), rows])
    latents = torch.cat([family.prepare_noise(seed, height, width) for seed in seeds]) * schedule.init_scale
    denoised = torch.zeros_like(latents)
    copies = len(rows) // len(prompts)
    embedded = torch.full((len(rows),), recommended.guidance_scale or 1.0, device=family.device)
    for t, row in zip(schedule.timesteps, schedule.table, strict=True):
        table = row.to(family.device).expand(len(prompts), -1)
        seen = family.sampler.scale_input(latents, table).repeat(copies, 1, 1, 1)
        prediction = family.denoise(seen, t.to(family.device).expand(len(rows)), rows, embedded)
        if copies == 2:
            prediction = guided(prediction, torch.full((len(prompts),), scale, device=family.device))
        latents, denoised = family.sampler.step(prediction, latents, denoised, table)
    return family.decode(latents)


def family_guidance(family: Family) -> float:
    """The classifier-free guidance that the base recommends: `true_cfg_scale` for distilled families."""
    recommended = family.recommended
    return (recommended.true_cfg_scale if family.spec.embeds_guidance else recommended.guidance_scale) or 1.0
