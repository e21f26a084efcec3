"""Latents to images: one by one, or small ones in a batch where that was verified bit-identical."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onbrand.engine.cpu.exact_batching import ExactBatcher
from onbrand.errors import NotFinite
from onbrand.families.family import Family

_MOST_AT_ONCE = 2**17
"""Pixels of all images of a batch: larger ones keep a processor busy alone, and take memory."""


class Decoder:
    """Decodes with a family's VAE. From any thread."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._decoded: ExactBatcher[Tensor, Tensor] = ExactBatcher(self._decode, lambda image: [image])

    def images(self, latents_1CHW: Sequence[Tensor]) -> list[Tensor | Exception]:
        """[3, H, W] in 0..1 on the CPU for each, or its exception. All latents have one shape."""
        finite = [each for each in latents_1CHW if torch.isfinite(each).all()]
        if self.fits_one_batch(finite):
            drawn = iter(self._decoded(finite, latents_1CHW[0].shape))
        else:
            drawn = iter(self._decoded.one_by_one(finite))
        ids = {id(each) for each in finite}
        return [_must_be_finite(next(drawn)) if id(each) in ids else not_finite() for each in latents_1CHW]

    def fits_one_batch(self, latents_1CHW: Sequence[Tensor]) -> bool:
        """Whether the latents are on a CPU and small enough for a batch. Otherwise, submit them one by one."""
        pixels = sum(each.shape[-2] * each.shape[-1] for each in latents_1CHW) * self._family.vae_scale**2
        return self._family.device.type == "cpu" and pixels <= _MOST_AT_ONCE

    def _decode(self, latents_1CHW: Sequence[Tensor]) -> list[Tensor]:
        return list(self._family.decode(torch.cat(list(latents_1CHW))).cpu())


def not_finite() -> NotFinite:
    """The error for an image with non-finite values."""
    return NotFinite("the picture holds values that are not finite; lower lora_scale or guidance_scale")


def _must_be_finite(image: Tensor | Exception) -> Tensor | Exception:
    """The image, or an error in place of non-finite values, which would be shown black."""
    return image if isinstance(image, Exception) or torch.isfinite(image).all() else not_finite()
