"""Fast previews of latents by a linear map: cheap enough to show an image while it is being drawn.

Shapes: C latent channels, H x W latents.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor
from torch.nn import functional as F

from onbrand.families.family import Family

_NUM_IMAGES = 24
_SEED = 0


class LatentColors:
    """One pixel per latent position, by least squares on smooth random images through the base's own encoder.

    Fitted at first use. Thread-safe.
    """

    def __init__(self, family: Family) -> None:
        self._family, self._lock = family, Lock()
        self._map: Tensor | None = None

    @torch.no_grad()
    def image(self, latents_1CHW: Tensor) -> Tensor:
        """[3, H, W] in 0..1 on the CPU, as large as the latents."""
        with self._lock:
            if self._map is None:
                self._map = self._fitted()
        values = torch.cat([latents_1CHW[0].float().flatten(1), torch.ones_like(latents_1CHW[0, :1].flatten(1))])
        return (self._map @ values).view(3, *latents_1CHW.shape[2:]).clamp(0, 1).cpu()

    def _fitted(self) -> Tensor:
        """[3, C + 1]: colour from latent channels and a constant."""
        family, side = self._family, 64
        generator = torch.Generator().manual_seed(_SEED)
        coarse = torch.rand(_NUM_IMAGES, 3, 3, 3, generator=generator)
        images = F.interpolate(coarse, side, mode="bilinear", align_corners=True).to(family.device)
        latents = torch.cat([family.encode_images(image[None] * 2 - 1) for image in images]).float()
        colors = F.adaptive_avg_pool2d(images, latents.shape[2:])
        x = latents.transpose(0, 1).flatten(1)
        x = torch.cat([x, torch.ones_like(x[:1])]).cpu()
        y = colors.transpose(0, 1).flatten(1).cpu()
        return torch.linalg.lstsq(x.T, y.T).solution.T.contiguous().to(family.device)
