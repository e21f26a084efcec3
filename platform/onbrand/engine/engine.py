"""The engine: continuous batching of many brands' requests over one base model, one denoising step at a time.

One thread calls `add` and `step` (`onbrand.serving.engine_thread`). No database, no network, no Ray.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial

import torch
from torch import Tensor

from onbrand.engine.async_stages import Stages
from onbrand.engine.batch import EngineJob, Prepared, Row, default_batch_sizes
from onbrand.engine.compilation import compile_passes
from onbrand.engine.cpu.onednn import use_onednn
from onbrand.engine.cpu.unet_blocks import use_blocks
from onbrand.engine.decoding import Decoder, not_finite
from onbrand.engine.fair_queue import FairQueue
from onbrand.engine.leases import Leases
from onbrand.engine.model_runner import ModelRunner
from onbrand.engine.preparation import Preparation, grouped
from onbrand.engine.request import (
    Canceled,
    Completed,
    Event,
    Failed,
    FinishedImage,
    Preview,
    Progress,
    Receipt,
    Request,
    planned,
)
from onbrand.engine.residency import AdapterResidency
from onbrand.engine.slots import Slots
from onbrand.engine.waiting_limits import WaitingLimits
from onbrand.errors import Conflict, OnbrandError
from onbrand.families.family import Family
from onbrand.families.preview import LatentColors

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one family's base.

    Args:
        num_slots: adapters on the device at once, in each rank class.
        max_batch: most rows of one forward pass.
        batch_sizes: the sizes of forward passes; smaller batches are filled with dummy rows. Within one size an image's
            bits do not depend on its neighbours. None: 1, 2, 4, ... `max_batch`.
        max_waiting, max_waiting_per_brand: see `WaitingLimits`.
        stages: executor for text encoding and image decoding; None: both run in `step`, in a fixed order.
        even_passes: accounts get equal numbers of rows in a pass (`FairQueue`).
        compile: use compiled graphs, one per batch size and shape; brands and ranks cause no recompilation.
    """

    def __init__(
        self,
        family: Family,
        *,
        num_slots: int = 16,
        max_rank: int = 128,
        max_batch: int = 8,
        batch_sizes: tuple[int, ...] | None = None,
        max_waiting: int = 512,
        max_waiting_per_brand: int = 128,
        stages: Executor | None = None,
        compile: bool = False,
        even_passes: bool = False,
    ) -> None:
        self.family = family
        self.max_batch = max_batch
        self.batch_sizes = batch_sizes or default_batch_sizes(max_batch)
        self._limits = WaitingLimits(max_waiting, max_waiting_per_brand)
        self._slots = Slots(family.denoiser, num_slots, max_rank, 2 * max(self.batch_sizes) if compile else None)
        for part in (family.denoiser, family.vae):
            use_onednn(part)
            use_blocks(part)
        if compile:
            compile_passes(family.denoiser)
        self.residency = AdapterResidency(self._slots)
        self._jobs: dict[str, EngineJob] = {}
        self._queue = FairQueue(max_batch, self.batch_sizes, even_passes)
        self._leases = Leases(self.residency, self._queue.served)
        self._runner = ModelRunner(family, self._slots, self.batch_sizes, compiled=compile)
        self._colors, self._decoder = LatentColors(family), Decoder(family)
        self._preparation = Preparation(family)
        self._canceled: list[str] = []
        self._seconds_per_cost = 0.0
        self._stalled = False
        self.use(stages)

    def use(self, stages: Executor | None, on_done: Callable[[], object] = lambda: None) -> None:
        """Encode and decode in `stages`. Raises Conflict once there are requests.

        Args:
            on_done: called in any thread when `step` has work again.
        """
        if self._jobs:
            raise Conflict("the engine is drawing; say where to encode and decode before the first request")
        self._stages: Stages[list[Event]] = Stages(stages, on_done)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._jobs or self._canceled)

    @property
    def can_step(self) -> bool:
        """Whether `step` would do anything. False also while all remaining work is being encoded or decoded."""
        return self.has_work and not (self._stalled and self._stages.num_out and not self._stages.has_outcomes)

    @property
    def num_waiting(self) -> int:
        """Number of images not yet started."""
        return self._queue.num_images()

    def add(self, request: Request) -> str:
        """Take a request; it joins at the next step. Returns its id.

        Raises:
            InvalidInput: a number is outside the family's bounds; the error names the field.
            TooManyRequests: this brand's part of the queue is full.
            Conflict: a request of this id is being drawn already.
        """
        plan = planned(request, self.family)
        if request.id in self._jobs:
            raise Conflict(f"the request {request.id} is already being drawn")
        self._limits.must_have_room(self._queue, request, self._retry_after)
        job = self._jobs[request.id] = EngineJob(request, plan)
        self._queue.push(job)
        self._stalled = False
        return request.id

    def cancel(self, request_id: str) -> None:
        """Free the request's rows at the next step, at any stage. Unknown or finished ids have no effect."""
        if request_id in self._jobs:
            self._canceled.append(request_id)
            self._stalled = False

    def collect(self) -> list[Event]:
        """Return events of finished encoding and decoding, without a denoising step. `step` returns them too."""
        return [event for events in self._stages.outcomes() for event in events]

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One denoising step of one batch: drop cancelled requests, admit waiting ones, decode finished rows."""
        events = self._drop_canceled()
        self._prepare_next()
        events += self.collect()
        rows, failures = self._next_rows()
        events += failures
        if rows:
            events += self._advance(rows)
        self._stalled = not rows
        return events + self.collect()

    # --- cancellation and admission -----------------------------------------------------------------------------

    def _drop_canceled(self) -> list[Event]:
        ids, self._canceled = dict.fromkeys(self._canceled), []
        jobs = [self._jobs[request_id] for request_id in ids if request_id in self._jobs]
        for job in jobs:
            self._end(job)
        return [Canceled(job.request.id) for job in jobs]

    def _prepare_next(self) -> None:
        for jobs in grouped(self._queue.unprepared()):
            for job in jobs:
                job.preparing = True
            self._stages.submit(partial(self._preparation.prepare, jobs), partial(self._on_prepared, jobs))

    def _on_prepared(self, jobs: Sequence[EngineJob], results: Future[list[Prepared | Exception]]) -> list[Event]:
        problem = results.exception()
        events: list[Event] = []
        for job, prepared in zip(jobs, [problem] * len(jobs) if problem else results.result(), strict=True):
            if job.ended:
                continue
            if isinstance(prepared, Prepared):
                job.prepared = prepared
                self._stalled = False
            else:
                assert prepared is not None
                events.append(self._fail(job, prepared))
        return events

    def _next_rows(self) -> tuple[list[Row], list[Event]]:
        """The rows that step now, and `Failed` events of jobs that could not join."""
        stepping: set[EngineJob] = set()
        problems: dict[EngineJob, Exception] = {}

        def admit(job: EngineJob) -> bool:
            try:
                if self._leases.take(job, stepping):
                    stepping.add(job)
            except Exception as problem:
                problems[job] = problem
            return job in stepping

        num_rows = Counter(self._queue.next_batch(admit))
        rows: list[Row] = []
        for job in [job for job in self._jobs.values() if job in num_rows]:  # in stable order from step to step
            try:
                rows += self._rows(job, num_rows[job])
            except Exception as problem:
                problems[job] = problem
        rows.sort(key=_rank_class)  # rows of one rank class are neighbours: their deltas are added together
        return rows, [self._fail(job, problem) for job, problem in problems.items()]

    def _rows(self, job: EngineJob, num: int) -> list[Row]:
        """The first `num` rows of the job; starts waiting images as needed."""
        assert job.prepared is not None
        while len(job.rows) < num:
            seed = job.request.parameters.seed + job.num_started
            noise_1CHW = self.family.prepare_noise(seed, job.plan.height, job.plan.width).float()
            latents_1CHW = noise_1CHW * job.prepared.schedule.init_scale
            job.rows.append(Row(job, job.num_started, latents_1CHW, torch.zeros_like(latents_1CHW)))
            job.num_started += 1
        return job.rows[:num]

    def _end(self, job: EngineJob) -> None:
        """Remove a job with its waiting images, rows and lease. Results still being computed are discarded."""
        job.ended = True
        self._jobs.pop(job.request.id, None)
        self._queue.remove(job)
        self._leases.give_back(job)
        self._runner.forget(job)
        job.rows.clear()
        job.prepared = None
        self._stalled = False  # another job may wait for its slot

    def _fail(self, job: EngineJob, problem: BaseException) -> Failed:
        self._end(job)
        if isinstance(problem, OnbrandError):
            return Failed(job.request.id, problem)
        frames = "".join(traceback.format_tb(problem.__traceback__))
        log.error("request %s failed: %s\n%s", job.request.id, type(problem).__name__, frames)
        return Failed(job.request.id, OnbrandError(f"the picture could not be drawn ({type(problem).__name__})"))

    def _retry_after(self, brand_id: str) -> int:
        """Seconds until about half of the brand's waiting images would start, if only this brand were served; 1 to
        60."""
        cost = sum(job.num_waiting * job.plan.cost for job in self._jobs.values() if job.brand_id == brand_id)
        return min(60, max(1, math.ceil(cost * self._seconds_per_cost / 2)))

    # --- one step -----------------------------------------------------------------------------------------------

    def _advance(self, rows: list[Row]) -> list[Event]:
        """Step these rows. If the pass fails, step each row alone, so that only the faulty request fails."""
        began = time.perf_counter()
        try:
            size = self._runner.advance(rows)
        except Exception as problem:
            if len(rows) == 1:
                return [self._fail(rows[0].job, problem)]
            return [event for row in rows if not row.job.ended for event in self._advance([row])]
        self._seconds_per_cost = (time.perf_counter() - began) / (size * rows[0].job.plan.step_cost)
        events = self._fail_overflowed()
        rows = [row for row in rows if not row.job.ended]
        for row in rows:
            row.job.steps_done += 1
            every = row.job.request.parameters.preview_every
            if every and not row.finished and row.step % every == 0:
                self._stages.submit(
                    partial(self._colors.image, row.denoised_1CHW), partial(self._on_preview, row, row.step)
                )
        self._decode_finished([row for row in rows if row.finished])
        return events + self._progress(rows)

    def _fail_overflowed(self) -> list[Event]:
        """End the jobs of rows with non-finite latents: no further step would make an image of them."""
        jobs = [job for job in self._jobs.values() if any(row.overflowed for row in job.rows)]
        return [self._fail(job, not_finite()) for job in jobs]

    def _decode_finished(self, rows: list[Row]) -> None:
        """Decode finished rows. A job releases its lease with its last row."""
        if not rows:
            return
        is_batch = self._decoder.fits_one_batch([row.latents_1CHW for row in rows])
        for group in [rows] if is_batch else [[row] for row in rows]:
            latents, receipts = [row.latents_1CHW for row in group], [row.receipt(self.family) for row in group]
            self._stages.submit(partial(self._decoder.images, latents), partial(self._on_decoded, group, receipts))
        for row in rows:
            job = row.job
            job.rows.remove(row)
            job.num_stepped += 1
            if job.num_stepped == job.request.parameters.num_images:
                self._leases.give_back(job)
                job.prepared = None

    def _progress(self, rows: list[Row]) -> list[Event]:
        jobs = dict.fromkeys(row.job for row in rows)
        return [
            Progress(job.request.id, job.steps_done, job.plan.num_steps * job.request.parameters.num_images)
            for job in jobs
        ]

    def _on_preview(self, row: Row, step: int, image: Future[Tensor]) -> list[Event]:
        if row.job.ended or row.finished or image.exception():
            return []
        return [Preview(row.job.request.id, row.index, step, image.result())]

    def _on_decoded(
        self, rows: list[Row], receipts: list[Receipt], images: Future[list[Tensor | Exception]]
    ) -> list[Event]:
        problem = images.exception()
        results = [problem] * len(rows) if problem else images.result()
        return [
            event
            for row, receipt, image in zip(rows, receipts, results, strict=True)
            for event in self._finished(row, receipt, image)
        ]

    def _finished(self, row: Row, receipt: Receipt, image: Tensor | BaseException) -> list[Event]:
        job = row.job
        if job.ended:
            return []
        if isinstance(image, BaseException):
            return [self._fail(job, image)]
        finished = FinishedImage(job.request.id, row.index, row.seed, image, receipt)
        job.num_finished += 1
        if not job.finished:
            return [finished]
        self._end(job)
        return [finished, Completed(job.request.id)]


def _rank_class(row: Row) -> int:
    return row.job.lease.slot.rank_class if row.job.lease else 0
