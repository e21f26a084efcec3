"""The engine: requests of many brands advance together through one base model, one denoising step at a time.

`add` and `step` are the whole story; one thread calls them (`onbrand.serving.loop`). No database, no network, no Ray.
Shapes: B rows of a batch, C latent channels, H x W latents, K columns of a sampler's table.
"""

from __future__ import annotations

import logging
import math
import time
import traceback

import torch
from torch import Tensor

from onbrand.engine.adapters import Residency, composed
from onbrand.engine.batch import FairQueue, Job, Prepared, Row, Turns, size_class, size_classes
from onbrand.engine.request import Canceled, Completed, Event, Failed, Picture, Progress, Receipt, Request, planned
from onbrand.engine.slots import Slots
from onbrand.errors import Conflict, OnbrandError, TooManyRequests
from onbrand.families.family import Conditioning, Family
from onbrand.families.sampling import guided

logger = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one family's base.

    Args:
        num_slots: adapters on the device at once, in each rank class.
        max_batch: most rows of one forward pass.
        classes: the batch sizes that occur; smaller batches are filled with dummy rows. Within one class a picture's
            bits do not depend on its neighbours. None: 1, 2, 4, ... `max_batch`.
        max_waiting: most pictures that may wait, of all brands.
        max_waiting_per_brand: most pictures of one brand that may wait.
    """

    def __init__(
        self,
        family: Family,
        *,
        num_slots: int = 16,
        max_rank: int = 128,
        max_batch: int = 8,
        classes: tuple[int, ...] | None = None,
        max_waiting: int = 512,
        max_waiting_per_brand: int = 128,
    ) -> None:
        self.family = family
        self.max_batch = max_batch
        self.classes = classes or size_classes(max_batch)
        self._max_waiting, self._max_waiting_per_brand = max_waiting, max_waiting_per_brand
        self._slots = Slots(family.denoiser, num_slots, max_rank)
        self.residency = Residency(self._slots)
        self._jobs: dict[str, Job] = {}
        self._waiting = FairQueue()
        self._running: list[Row] = []
        self._turns = Turns(max_batch)
        self._canceled: list[str] = []
        self._seconds_per_cost = 0.0

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._jobs or self._canceled)

    @property
    def num_waiting(self) -> int:
        """Pictures that have not begun."""
        return self._waiting.num_pictures()

    def add(self, request: Request) -> str:
        """Take a request; it joins at the next step. Returns its id.

        Raises:
            InvalidInput: a number is out of the family's bounds; the field is named.
            TooManyRequests: the queue, or this brand's part of it, is full.
            Conflict: a request of this id is here already.
        """
        plan = planned(request, self.family)
        if request.id in self._jobs:
            raise Conflict(f"the request {request.id} is already being drawn")
        self._must_have_room(request)
        job = self._jobs[request.id] = Job(request, plan)
        self._waiting.push(job)
        return request.id

    def cancel(self, request_id: str) -> None:
        """Free the request's rows at the next step. Unknown or finished ids change nothing."""
        if request_id in self._jobs:
            self._canceled.append(request_id)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One denoising step of one batch: who was cancelled leaves, who waits joins, who is done is decoded."""
        events = self._leave()
        events += self._join()
        batch = self._turns.next_batch(self._running)
        if batch:
            events += self._advance(batch)
        return events

    # --- leaving and joining ------------------------------------------------------------------------------------

    def _leave(self) -> list[Event]:
        gone, self._canceled = dict.fromkeys(self._canceled), []
        jobs = [self._jobs[request_id] for request_id in gone if request_id in self._jobs]
        for job in jobs:
            self._end(job)
        return [Canceled(job.request.id) for job in jobs]

    def _join(self) -> list[Event]:
        """Start pictures while there is room, in the order of the fair queue."""
        events: list[Event] = []
        blocked: set[Job] = set()
        while (job := self._waiting.first(blocked)) is not None:
            try:
                started = self._has_room(job) and self._start_picture(job)
            except Exception as problem:
                events.append(self._fail(job, problem))
                continue
            if not started:
                blocked.add(job)
        return events

    def _has_room(self, job: Job) -> bool:
        return sum(row.job.key == job.key for row in self._running) < self.max_batch

    def _start_picture(self, job: Job) -> bool:
        """Turn one waiting picture into a running row; False when no slot is free for its adapter."""
        job.prepared = job.prepared or self._prepare(job)
        if job.prepared is None:
            return False
        plan, index = job.plan, job.num_started
        noise = self.family.prepare_noise(job.request.seed + index, plan.height, plan.width)
        self._running.append(Row(job, index, noise * job.prepared.schedule.init_scale))
        job.num_started += 1
        self._waiting.charge(job)
        if not job.num_waiting:
            self._waiting.remove(job)
        return True

    def _prepare(self, job: Job) -> Prepared | None:
        request, plan, family = job.request, job.plan, self.family
        use = composed(request.adapters) if request.adapters else None
        lease = self.residency.pin(use.key, use.weights) if use else None
        if use and lease is None:
            return None
        try:
            schedule = family.sampler.schedule(plan.num_steps, family.image_tokens(plan.height, plan.width))
            positive = family.encode_prompts([request.prompt])
            negative = family.encode_negatives([request.negative_prompt]) if plan.guided else None
        except BaseException:
            if lease:
                self.residency.unpin(lease)
            raise
        return Prepared(schedule, positive, negative, use, lease)

    def _end(self, job: Job) -> None:
        """Forget a job: its waiting pictures, its rows, its hold on the adapter."""
        self._jobs.pop(job.request.id, None)
        self._waiting.remove(job)
        self._running = [row for row in self._running if row.job is not job]
        if job.prepared and job.prepared.lease:
            self.residency.unpin(job.prepared.lease)
        job.prepared = None

    def _fail(self, job: Job, problem: Exception) -> Failed:
        self._end(job)
        if isinstance(problem, OnbrandError):
            return Failed(job.request.id, problem)
        frames = "".join(traceback.format_tb(problem.__traceback__))
        logger.error("request %s failed: %s\n%s", job.request.id, type(problem).__name__, frames)
        return Failed(job.request.id, OnbrandError(f"the picture could not be drawn ({type(problem).__name__})"))

    def _must_have_room(self, request: Request) -> None:
        waiting, of_brand = self._waiting.num_pictures(), self._waiting.num_pictures(request.brand_id)
        if of_brand + request.num_images > self._max_waiting_per_brand and of_brand:
            raise TooManyRequests(
                f"{of_brand} pictures of this brand wait already; try again later", retry_after=self._retry_after()
            )
        if waiting + request.num_images > self._max_waiting and waiting:
            raise TooManyRequests(f"{waiting} pictures wait already; try again later", retry_after=self._retry_after())

    def _retry_after(self) -> int:
        """Seconds until about half of the pictures that wait will have begun."""
        cost = sum(job.num_waiting * job.plan.cost for job in self._jobs.values())
        return min(60, max(1, math.ceil(cost * self._seconds_per_cost / 2)))

    # --- one step -----------------------------------------------------------------------------------------------

    def _advance(self, rows: list[Row]) -> list[Event]:
        """Step these rows; when the pass fails, each alone, so that only the culprit's request fails."""
        began = time.perf_counter()
        try:
            latents_BCHW = self._denoised(rows)
        except Exception as problem:
            if len(rows) == 1:
                return [self._fail(rows[0].job, problem)]
            return [event for row in rows if row in self._running for event in self._advance([row])]
        self._measure(rows, time.perf_counter() - began)
        for row, latents in zip(rows, latents_BCHW.split(1), strict=True):
            row.latents_1CHW = latents
            row.step += 1
            row.job.steps_done += 1
        return self._told(rows)

    def _denoised(self, rows: list[Row]) -> Tensor:
        """[B, C, H, W] latents of `rows` one step later."""
        size = size_class(len(rows), self.classes)
        filled = rows + [rows[0]] * (size - len(rows))
        dummies = [None] * (size - len(rows))
        for row in rows:
            row.batch_sizes.add(size)
        latents = torch.cat([row.latents_1CHW for row in filled])
        table_BK = self._on_device(torch.stack([row.prepared.schedule.table[row.step] for row in filled]))
        with self._slots.bind([*(row.prepared.row_adapter() for row in rows), *dummies]):
            prediction = self._predicted(filled, self.family.sampler.scale_input(latents, table_BK))
        return self.family.sampler.step(prediction, latents, table_BK)[: len(rows)]

    def _predicted(self, rows: list[Row], seen_BCHW: Tensor) -> Tensor:
        """The denoiser's prediction, with classifier-free guidance as [negative rows..., positive rows...]."""
        times_B = self._on_device(torch.stack([row.prepared.schedule.timesteps[row.step] for row in rows]))
        embedded_B = self._on_device(torch.tensor([row.job.plan.embedded_guidance for row in rows]))
        positive = [row.prepared.positive for row in rows]
        negative = [row.prepared.negative for row in rows if row.prepared.negative]
        if not negative:
            return self.family.denoise(seen_BCHW, times_B, Conditioning.cat(positive), embedded_B)
        prediction_2BCHW = self.family.denoise(
            seen_BCHW.repeat(2, 1, 1, 1), times_B.repeat(2), Conditioning.cat(negative + positive), embedded_B.repeat(2)
        )
        scale_B = self._on_device(torch.tensor([row.job.plan.cfg_scale for row in rows]))
        return guided(prediction_2BCHW, scale_B)

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.family.device)

    def _measure(self, rows: list[Row], seconds: float) -> None:
        cost = sum(row.job.plan.cost / row.job.plan.num_steps for row in rows)
        self._seconds_per_cost = seconds / cost

    def _told(self, rows: list[Row]) -> list[Event]:
        """Progress of every job in the batch, and the pictures of the rows that are done."""
        events: list[Event] = []
        for job in dict.fromkeys(row.job for row in rows):
            total = job.plan.num_steps * job.request.num_images
            events.append(Progress(job.request.id, job.steps_done, total))
        for row in rows:
            if row.finished and row in self._running:
                events += self._finish(row)
        return events

    def _finish(self, row: Row) -> list[Event]:
        job = row.job
        try:
            picture = self._decoded(row)
        except Exception as problem:
            return [self._fail(job, problem)]
        self._running.remove(row)
        job.num_finished += 1
        if not job.finished:
            return [picture]
        self._end(job)
        return [picture, Completed(job.request.id)]

    def _decoded(self, row: Row) -> Picture:
        if not torch.isfinite(row.latents_1CHW).all():
            raise OnbrandError("the picture holds values that are not finite; lower lora_scale or guidance_scale")
        image_CHW = self.family.decode(row.latents_1CHW)[0].cpu()
        return Picture(row.job.request.id, row.index, row.seed, image_CHW, self._receipt(row))

    def _receipt(self, row: Row) -> Receipt:
        request, plan, lease = row.job.request, row.job.plan, row.prepared.lease
        return Receipt(
            brand_id=request.brand_id,
            family=self.family.spec.name,
            adapters=tuple((use.key.sha256, use.scale) for use in request.adapters),
            base_revision=self.family.revision,
            sampler=self.family.sampler.name,
            num_inference_steps=plan.num_steps,
            guidance_scale=plan.embedded_guidance,
            true_cfg_scale=plan.cfg_scale if self.family.spec.name == "flux" else None,
            seed=row.seed,
            height=plan.height,
            width=plan.width,
            batch_sizes=tuple(sorted(row.batch_sizes)),
            slot_generation=lease.generation if lease else None,
        )
