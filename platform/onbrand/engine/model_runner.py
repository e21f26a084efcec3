"""One denoising step of one batch of rows. The engine chooses the rows.

Shapes: B rows of a batch, C latent channels, H x W latents, K columns of a sampler's table.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from onbrand.engine.batch import EngineJob, Row, batch_size_for
from onbrand.engine.cpu.unet_blocks import Passes, TextKVCache
from onbrand.engine.lora_math import RowAdapter
from onbrand.engine.slots import Slots
from onbrand.families.family import Conditioning, Family
from onbrand.families.samplers import Sampler, guided


class BatchContext:
    """Inputs that a set of rows shares from step to step.

    Args:
        rows: of the pass, dummies included.
        adapters: the adapter of each row.
    """

    def __init__(self, rows: Sequence[Row], adapters: Sequence[RowAdapter | None], device: torch.device) -> None:
        self.jobs, self.adapters = [row.job for row in rows], list(adapters)
        positive = [row.prepared.positive for row in rows]
        negative = [row.prepared.negative for row in rows if row.prepared.negative]
        self.guided = bool(negative)
        self.conditioning = Conditioning.cat(negative + positive)
        self.embedded_N = torch.tensor([job.plan.embedded_guidance for job in self.jobs]).repeat(1 + self.guided)
        self.scale_B = torch.tensor([job.plan.cfg_scale for job in self.jobs])
        self.embedded_N, self.scale_B = self.embedded_N.to(device), self.scale_B.to(device)
        self.keys = TextKVCache()

    def is_of(self, rows: Sequence[Row], adapters: Sequence[RowAdapter | None]) -> bool:
        """Whether the batch consists of exactly these rows."""
        return self.jobs == [row.job for row in rows] and self.adapters == list(adapters)


class ModelRunner:
    """Steps rows of one `BatchKey` through one forward pass.

    Latents stay float32 between steps, whatever the denoiser's dtype. Rows of one batch may have different samplers:
    samplers work elementwise, so a row's result does not depend on the rows handled with it.

    Args:
        batch_sizes: as of `Engine`; missing rows are filled with dummy rows.
        compiled: passes are compiled, and compute everything at every step.
    """

    def __init__(self, family: Family, slots: Slots, batch_sizes: Sequence[int], compiled: bool = False) -> None:
        self._family, self._slots, self._batch_sizes = family, slots, batch_sizes
        self._passes = None if compiled else Passes(family.denoiser, family.parts_before_text())
        self._context: BatchContext | None = None
        self._last_pass: torch.cuda.Event | None = None
        self._unchecked: tuple[list[Row], Tensor] | None = None

    def advance(self, rows: list[Row]) -> int:
        """Step `rows`; returns the batch size. When this raises, no row has changed.

        Rows with non-finite latents are marked as overflowed: on a GPU one pass later, so that no pass waits for the
        check.
        """
        size = batch_size_for(len(rows), self._batch_sizes)
        latents_BCHW, denoised_BCHW = self._stepped(rows, size)
        previous, self._unchecked = self._unchecked, (list(rows), self._finite_on_host(latents_BCHW))
        self._pace()
        if self._family.device.type != "cuda":
            previous, self._unchecked = self._unchecked, None
        _mark_overflowed(previous)
        for row, latents, denoised in zip(rows, latents_BCHW.split(1), denoised_BCHW.split(1), strict=True):
            row.latents_1CHW, row.denoised_1CHW = latents, denoised
            row.step += 1
            row.batch_sizes.add(size)
            row.slot_version = row.job.lease.version if row.job.lease else None
        return size

    def forget(self, job: EngineJob) -> None:
        """Drop everything derived from this job's prompt or adapter."""
        if self._context is not None and job in self._context.jobs:
            self._context = None
        if self._unchecked is not None and any(row.job is job for row in self._unchecked[0]):
            self._unchecked = None

    def _stepped(self, rows: list[Row], size: int) -> tuple[Tensor, Tensor]:
        """(latents, predicted clean latents) of `rows` one step later."""
        num_dummies = size - len(rows)
        latents_BCHW = torch.cat([row.latents_1CHW for row in rows])
        input_BCHW = self._scaled_inputs(rows, latents_BCHW).to(self._family.dtype)
        filled = torch.cat([input_BCHW, input_BCHW[:1].expand(num_dummies, -1, -1, -1)]) if num_dummies else input_BCHW
        adapters = [*(row.adapter() for row in rows), *[None] * num_dummies]
        with self._slots.bind(adapters):
            prediction_BCHW = self._predicted(rows + [rows[0]] * num_dummies, adapters, filled)[: len(rows)]
        return self._sampled(rows, prediction_BCHW.float(), latents_BCHW)

    def _predicted(self, rows: list[Row], adapters: list[RowAdapter | None], input_BCHW: Tensor) -> Tensor:
        """The denoiser's prediction, with classifier-free guidance as [negative rows..., positive rows...]."""
        context = self._context_of(rows, adapters)
        times_B = self._on_device(torch.stack([row.prepared.schedule.timesteps[row.step] for row in rows]))
        copies = 1 + context.guided
        shared = copies if len(rows) > 1 else 1  # a single row takes other kernels, which round differently
        with self._passes.of(context.keys, shared) if self._passes else nullcontext():
            prediction_NCHW = self._family.denoise(
                input_BCHW.repeat(copies, 1, 1, 1), times_B.repeat(copies), context.conditioning, context.embedded_N
            )
        return guided(prediction_NCHW, context.scale_B) if context.guided else prediction_NCHW

    def _context_of(self, rows: list[Row], adapters: list[RowAdapter | None]) -> BatchContext:
        if self._context is None or not self._context.is_of(rows, adapters):
            self._context = BatchContext(rows, adapters, self._family.device)
        return self._context

    # --- samplers -----------------------------------------------------------------------------------------------

    def _scaled_inputs(self, rows: list[Row], latents_BCHW: Tensor) -> Tensor:
        groups = _by_sampler(rows)
        if len(groups) == 1:
            return rows[0].prepared.sampler.scale_input(latents_BCHW, self._table(rows))
        input_BCHW = torch.empty_like(latents_BCHW)
        for sampler, index in groups:
            input_BCHW[index] = sampler.scale_input(latents_BCHW[index], self._table([rows[i] for i in index]))
        return input_BCHW

    def _sampled(self, rows: list[Row], prediction_BCHW: Tensor, latents_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        groups = _by_sampler(rows)
        denoised_BCHW = torch.cat([row.denoised_1CHW for row in rows])
        if len(groups) == 1:
            sampler = rows[0].prepared.sampler
            return sampler.step(prediction_BCHW, latents_BCHW, denoised_BCHW, self._table(rows))
        next_BCHW, new_denoised_BCHW = torch.empty_like(latents_BCHW), torch.empty_like(latents_BCHW)
        for sampler, index in groups:
            table_BK = self._table([rows[i] for i in index])
            next_BCHW[index], new_denoised_BCHW[index] = sampler.step(
                prediction_BCHW[index], latents_BCHW[index], denoised_BCHW[index], table_BK
            )
        return next_BCHW, new_denoised_BCHW

    def _table(self, rows: Sequence[Row]) -> Tensor:
        return self._on_device(torch.stack([row.prepared.schedule.table[row.step] for row in rows]))

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._family.device)

    def _finite_on_host(self, latents_BCHW: Tensor) -> Tensor:
        """[B], whether all values of a row are finite; on a GPU valid at the end of this pass."""
        finite_B = torch.isfinite(latents_BCHW).flatten(1).all(1)
        if self._family.device.type != "cuda":
            return finite_B
        host_B = torch.empty(finite_B.shape, dtype=torch.bool, pin_memory=True)
        return host_B.copy_(finite_B, non_blocking=True)

    def _pace(self) -> None:
        """On a GPU, keep at most two passes in flight: a request that joins or leaves waits for both."""
        if self._family.device.type != "cuda":
            return
        if self._last_pass is not None:
            self._last_pass.synchronize()
        self._last_pass = torch.cuda.Event()
        self._last_pass.record()


def _mark_overflowed(unchecked: tuple[list[Row], Tensor] | None) -> None:
    rows, finite_B = unchecked or ([], torch.empty(0))
    for row, is_finite in zip(rows, finite_B.tolist(), strict=True):
        row.overflowed |= not is_finite


def _by_sampler(rows: Sequence[Row]) -> list[tuple[Sampler, list[int]]]:
    """Each sampler with the indices of its rows."""
    groups: dict[str, tuple[Sampler, list[int]]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row.prepared.sampler.name, (row.prepared.sampler, []))[1].append(place)
    return list(groups.values())
