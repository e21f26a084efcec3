"""Adapters that paint one known colour for every request, so that an image's pixels identify its adapter.

They need no training. At time t a v-prediction model should predict v = alpha eps - sigma x0 = (alpha x_t - x0) / sigma
(Salimans & Ho 2022). With a plain colour as x0, least squares fit v to the input of the denoiser's last convolution.
The difference of new and old weights has a rank of at most 4 (latent channels), so any rank r >= 4 can hold it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from onbrand.families.family import Family
from onbrand.families.lora import serialize
from tools.harness.tiny_families import adapter_bytes

Colour = tuple[int, int, int]

LEVELS = (26, 77, 128, 179, 230)
COLOURS: tuple[Colour, ...] = tuple(itertools.product(LEVELS, LEVELS, LEVELS))
MOST_STEPS = 4
"""The adapters work for any number of steps up to this, and a guidance of up to 1.5."""
SIDE = 64
_PROMPTS = ("photo of brand logo", "a red square on blue", "", "a green circle")
_STRENGTH, _RIDGE, _LAYER = 0.2, 1e-3, "conv_out"


@dataclass(frozen=True, slots=True)
class Paint:
    """A LoRA file, and the colour of every image drawn with it."""

    colour: Colour
    rank: int
    data: bytes = field(repr=False)

    @property
    def sha256(self) -> str:
        return sha256(self.data).hexdigest()


def colour_of(pixels_HWC: np.ndarray) -> Colour:
    """The palette's colour that is nearest to an image's mean."""
    mean = pixels_HWC.reshape(-1, 3).mean(axis=0)
    red, green, blue = (min(LEVELS, key=lambda level: abs(level - value)) for value in mean)
    return red, green, blue


class Painter:
    """Makes colour adapters for one base (a UNet with v-prediction). Each seed gives another file."""

    def __init__(self, family: Family) -> None:
        self._family = family
        last = family.denoiser.get_submodule(_LAYER)
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        self._last, self._bias = last, last.bias

    def paint(self, colour: Colour, rank: int, seed: int) -> Paint:
        """An adapter of `rank` >= 4, with a small random LoRA on the attention, so all kinds of layers are used."""
        prefix = f"{self._family.spec.component}."
        random_part = safetensors.torch.load(adapter_bytes(self._family, rank, seed, "attention", _STRENGTH))
        state = {name.removeprefix(prefix): tensor for name, tensor in random_part.items()}
        a, b = factors(self._weight(colour) - self._last.weight.flatten(1), rank, seed)
        state[f"{_LAYER}.lora_A.weight"] = a.view(rank, *self._last.weight.shape[1:])
        state[f"{_LAYER}.lora_B.weight"] = b.view(*b.shape, 1, 1)
        targets = (*self._family.spec.targets["attention"], _LAYER)
        return Paint(colour, rank, serialize(self._family, state, rank, targets, {}))

    @torch.inference_mode()
    def _weight(self, colour: Colour) -> Tensor:
        """[C, inputs]: the last convolution's weight for the colour."""
        clean = self._latents(colour)
        alpha, sigma, times = self._times()
        noise = torch.randn((len(times), *clean.shape[1:]), generator=torch.Generator().manual_seed(0))
        wanted = alpha * noise - sigma * clean - self._bias.view(1, -1, 1, 1)
        seen = self._seen(alpha * clean + sigma * noise, times)
        inputs = unfold(seen, self._last.kernel_size, padding=self._last.padding).transpose(1, 2).flatten(0, 1).double()
        outputs = wanted.flatten(2).transpose(1, 2).flatten(0, 1).double()
        gram = inputs.T @ inputs
        gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        return torch.linalg.solve(gram, inputs.T @ outputs).T.float()

    def _latents(self, colour: Colour) -> Tensor:
        """[1, C, H, W]: latents of a plain image, averaged over the area."""
        plain = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE) / 127.5 - 1
        latents = self._family.encode_images(plain)
        return latents.mean((2, 3), keepdim=True).expand_as(latents)

    def _times(self) -> tuple[Tensor, Tensor, Tensor]:
        """(alpha, sigma, timestep) of every step of every schedule, once for each prompt."""
        schedules = [self._family.sampler.schedule(num, 64) for num in range(1, MOST_STEPS + 1)]
        steps = {
            (float(row[0]), float(row[1]), float(t))
            for schedule in schedules
            for t, row in zip(schedule.timesteps, schedule.table, strict=True)
        }
        table = torch.tensor(sorted(steps) * len(_PROMPTS))
        return table[:, 0].view(-1, 1, 1, 1), table[:, 1].view(-1, 1, 1, 1), table[:, 2].long()

    def _seen(self, latents_BCHW: Tensor, times_B: Tensor) -> Tensor:
        """The input of the last convolution."""
        num_times = len(times_B) // len(_PROMPTS)
        rows = [number for number in range(len(_PROMPTS)) for _ in range(num_times)]
        seen: list[Tensor] = []
        watching = self._last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self._family.denoise(latents_BCHW, times_B, self._family.encode_prompts(_PROMPTS).rows(rows))
        finally:
            watching.remove()
        return seen[0]


def factors(weight: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """(A, B) with B A = `weight`. Their noise cancels only in the product, so half an adapter paints nothing."""
    num_outputs = len(weight)
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn((rank, rank), generator=generator))
    ours, others = basis[:, :num_outputs], basis[:, num_outputs:]
    noise = torch.randn((rank - num_outputs, weight.shape[1]), generator=generator) * weight.std()
    return ours @ weight + others @ noise, ours.T.contiguous()
