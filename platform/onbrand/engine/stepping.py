"""One denoising step of one batch: rows in, rows one step later. Who is in the batch is the engine's business.

Shapes: B rows of a batch, C latent channels, H x W latents, K columns of a sampler's table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onbrand.engine.batch import Row, size_class
from onbrand.engine.slots import Slots
from onbrand.families.family import Conditioning, Family
from onbrand.families.sampling import Sampler, guided


class Stepper:
    """Steps rows of one `BatchKey` through one forward pass.

    Latents are kept in float32 between steps, whatever the denoiser computes in. Rows of one batch may have different
    samplers: what samplers do is elementwise, so it does not matter to a row which others are handled with it.

    Args:
        classes: the sizes that batches come in; the rest is filled with dummy rows.
    """

    def __init__(self, family: Family, slots: Slots, classes: Sequence[int]) -> None:
        self._family, self._slots, self._classes = family, slots, classes
        self._last_pass: torch.cuda.Event | None = None

    def advance(self, rows: list[Row]) -> int:
        """Step `rows`; returns the size class. When this raises, no row has changed."""
        size = size_class(len(rows), self._classes)
        latents_BCHW, clean_BCHW = self._stepped(rows, size)
        self._pace()
        for row, latents, clean in zip(rows, latents_BCHW.split(1), clean_BCHW.split(1), strict=True):
            row.latents_1CHW, row.clean_1CHW = latents, clean
            row.step += 1
            row.batch_sizes.add(size)
            row.slot_generation = row.job.lease.generation if row.job.lease else None
        return size

    def _stepped(self, rows: list[Row], size: int) -> tuple[Tensor, Tensor]:
        """(latents, foreseen clean latents) of `rows` one step later."""
        num_dummies = size - len(rows)
        latents_BCHW = torch.cat([row.latents_1CHW for row in rows])
        seen_BCHW = self._seen(rows, latents_BCHW).to(self._family.dtype)
        filled = torch.cat([seen_BCHW, seen_BCHW[:1].expand(num_dummies, -1, -1, -1)]) if num_dummies else seen_BCHW
        with self._slots.bind([*(row.adapter() for row in rows), *[None] * num_dummies]):
            prediction_BCHW = self._predicted(rows + [rows[0]] * num_dummies, filled)[: len(rows)]
        return self._sampled(rows, prediction_BCHW.float(), latents_BCHW)

    def _predicted(self, rows: list[Row], seen_BCHW: Tensor) -> Tensor:
        """The denoiser's prediction, with classifier-free guidance as [negative rows..., positive rows...]."""
        times_B = self._on_device(torch.stack([row.prepared.schedule.timesteps[row.step] for row in rows]))
        embedded_B = self._on_device(torch.tensor([row.job.plan.embedded_guidance for row in rows]))
        positive = [row.prepared.positive for row in rows]
        negative = [row.prepared.negative for row in rows if row.prepared.negative]
        if not negative:
            return self._family.denoise(seen_BCHW, times_B, Conditioning.cat(positive), embedded_B)
        prediction_2BCHW = self._family.denoise(
            seen_BCHW.repeat(2, 1, 1, 1), times_B.repeat(2), Conditioning.cat(negative + positive), embedded_B.repeat(2)
        )
        scale_B = self._on_device(torch.tensor([row.job.plan.cfg_scale for row in rows]))
        return guided(prediction_2BCHW, scale_B)

    # --- samplers -----------------------------------------------------------------------------------------------

    def _seen(self, rows: list[Row], latents_BCHW: Tensor) -> Tensor:
        groups = _by_sampler(rows)
        if len(groups) == 1:
            return rows[0].prepared.sampler.scale_input(latents_BCHW, self._table(rows))
        seen_BCHW = torch.empty_like(latents_BCHW)
        for sampler, index in groups:
            seen_BCHW[index] = sampler.scale_input(latents_BCHW[index], self._table([rows[i] for i in index]))
        return seen_BCHW

    def _sampled(self, rows: list[Row], prediction_BCHW: Tensor, latents_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        groups = _by_sampler(rows)
        clean_BCHW = torch.cat([row.clean_1CHW for row in rows])
        if len(groups) == 1:
            sampler = rows[0].prepared.sampler
            return sampler.step(prediction_BCHW, latents_BCHW, clean_BCHW, self._table(rows))
        next_BCHW, foreseen_BCHW = torch.empty_like(latents_BCHW), torch.empty_like(latents_BCHW)
        for sampler, index in groups:
            table_BK = self._table([rows[i] for i in index])
            next_BCHW[index], foreseen_BCHW[index] = sampler.step(
                prediction_BCHW[index], latents_BCHW[index], clean_BCHW[index], table_BK
            )
        return next_BCHW, foreseen_BCHW

    def _table(self, rows: Sequence[Row]) -> Tensor:
        return self._on_device(torch.stack([row.prepared.schedule.table[row.step] for row in rows]))

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._family.device)

    def _pace(self) -> None:
        """On a GPU, have no more than this pass and the one before under way: who joins or leaves waits for both."""
        if self._family.device.type != "cuda":
            return
        if self._last_pass is not None:
            self._last_pass.synchronize()
        self._last_pass = torch.cuda.Event()
        self._last_pass.record()


def _by_sampler(rows: Sequence[Row]) -> list[tuple[Sampler, list[int]]]:
    """Which rows each sampler steps."""
    groups: dict[str, tuple[Sampler, list[int]]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row.prepared.sampler.name, (row.prepared.sampler, []))[1].append(place)
    return list(groups.values())
