"""Latents to pictures: one by one, or several at once where that was seen to change no bit.

On a CPU a small picture leaves most of the processor idle, and eight at once take half the time of eight in turn. But a
picture must not depend on what else is finished in the same step, and no library promises that. So the first pictures
of every number and shape are decoded both ways; only if all are equal, bit for bit, the next ones are decoded at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onbrand.errors import OnbrandError
from onbrand.families.family import Family

_MOST_AT_ONCE = 2**17
"""Pixels, of all pictures together: larger ones keep a processor busy alone, and take memory."""


class Decoder:
    """Decodes with a family's VAE. From any thread."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._is_exact: dict[tuple[int, ...], bool] = {}
        """By (number, C, H, W) of latents: whether decoding them at once gives the bits of each alone."""

    def pictures(self, latents_1CHW: Sequence[Tensor]) -> list[Tensor | Exception]:
        """[3, H, W] in 0..1 of each, on the CPU, or why there is none; the latents are of one shape."""
        finite = [each for each in latents_1CHW if torch.isfinite(each).all()]
        drawn = iter(self._at_once(finite) or [self._alone(each) for each in finite])
        ids = {id(each) for each in finite}
        return [next(drawn) if id(each) in ids else _not_finite() for each in latents_1CHW]

    def _at_once(self, latents_1CHW: Sequence[Tensor]) -> list[Tensor] | None:
        """None where they are to be decoded one by one."""
        if len(latents_1CHW) < 2 or not self.may_be_at_once(latents_1CHW):
            return None
        known = (len(latents_1CHW), *latents_1CHW[0].shape[1:])
        if self._is_exact.get(known) is False:
            return None
        try:
            pictures_N3HW = self._family.decode(torch.cat(list(latents_1CHW))).cpu()
        except Exception:  # alone, it is seen whose fault it is
            return None
        if known not in self._is_exact:
            alone = [self._family.decode(each)[0].cpu() for each in latents_1CHW]
            self._is_exact[known] = torch.equal(pictures_N3HW, torch.stack(alone))
            return alone
        return list(pictures_N3HW)

    def may_be_at_once(self, latents_1CHW: Sequence[Tensor]) -> bool:
        """Whether they are small, and on a CPU: what is not is better handed over one by one, each done by itself."""
        pixels = sum(each.shape[-2] * each.shape[-1] for each in latents_1CHW) * self._family.vae_scale**2
        return self._family.device.type == "cpu" and pixels <= _MOST_AT_ONCE

    def _alone(self, latents_1CHW: Tensor) -> Tensor | Exception:
        try:
            return self._family.decode(latents_1CHW)[0].cpu()
        except Exception as problem:
            return problem


def _not_finite() -> OnbrandError:
    return OnbrandError("the picture holds values that are not finite; lower lora_scale or guidance_scale")
