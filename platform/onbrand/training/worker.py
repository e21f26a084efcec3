"""The Ray Train loop of one worker: fetch, resume, train, report, prove, publish. Holds a ticket and nothing else.

What is wrong with the job ends it with a reason in its row; what is wrong with the platform or the machine is raised,
so that Ray Train starts the worker again from the last checkpoint.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import ray.train
import ray.train.torch
import torch
from pydantic import ValidationError

from onbrand.config import Settings
from onbrand.errors import (
    Canceled,
    Conflict,
    InvalidInput,
    NotFound,
    OnbrandError,
    StorageError,
    TicketRefused,
    Unavailable,
)
from onbrand.families.bases import base_folder, base_source, recommended
from onbrand.families.family import load_family
from onbrand.families.spec import SPECS, TrainingConfig
from onbrand.system_client import SystemClient, TrainingSpec
from onbrand.training import dataset, samples
from onbrand.training.export import export
from onbrand.training.heartbeat import Heartbeat
from onbrand.training.loop import Alone, Exchange, ProcessGroup, StepFacts, Trainer, must_share
from onbrand.training.recipes import PLACEHOLDER, Plan, make_plan
from onbrand.training.tickets import read_ticket, s3_options

Outcome = Literal["completed", "failed", "canceled", "gone"]
PASSING = (Unavailable, StorageError, TicketRefused)
"""Errors that say nothing about the job: another try is right."""
_LOSS_WINDOW = 20
_LAST_PERCENT = 99


def train_worker(config: Mapping[str, str]) -> Outcome:
    """What Ray Train runs on every worker. `config` holds the brand's and the job's id; the dashboard shows it."""
    settings = Settings()
    brand_id, job_id = config["brand"], config["job"]
    with connect(settings, brand_id, job_id) as client:
        return _ending(client, lambda: _train(settings, client, brand_id, job_id))


def connect(settings: Settings, brand_id: str, job_id: str) -> SystemClient:
    """The platform's internal routes with the newest ticket of this job."""
    return SystemClient(settings.system_url, read_ticket(settings, brand_id, job_id))


def _ending(client: SystemClient, train: Callable[[], None]) -> Outcome:
    """Run, and say in the row how it ended. Only rank 0 speaks; all ranks come to the same end."""
    speaks = ray.train.get_context().get_world_rank() == 0
    try:
        try:
            train()
            return "completed"
        except Canceled:
            if speaks:
                client.canceled()
            return "canceled"
        except (*PASSING, NotFound, Conflict):
            raise
        except OnbrandError as problem:
            if speaks:
                client.fail(problem.code, problem.message)
            return "failed"
    except (NotFound, Conflict):
        return "gone"


def read_plan(settings: Settings, spec: TrainingSpec) -> tuple[Plan, Path]:
    """The job's plan and the local folder of its base: a function of the row and the settings, for driver and workers.

    Raises:
        InvalidInput: the configuration in the row is out of bounds or contradicts itself.
        BaseModelRefused: the configured base is not one of this family.
    """
    family = SPECS[spec.model_type]  # type: ignore[index]
    folder = base_folder(family.name, base_source(family.name, settings.bases), storage_options=s3_options(settings))
    try:
        config = TrainingConfig.model_validate(spec.training_config)
    except ValidationError as problem:
        first = problem.errors(include_input=False, include_url=False)[0]
        field = ".".join(["training_config", *map(str, first["loc"])])
        raise InvalidInput(f"{field}: {first['msg']}", param=field) from None
    return make_plan(family, recommended(family.name, folder), config, spec.brand_id, settings.train_workers), folder


def _train(settings: Settings, client: SystemClient, brand_id: str, job_id: str) -> None:
    exchange: Exchange = ProcessGroup() if ray.train.get_context().get_world_size() > 1 else Alone()
    spec = client.spec()
    with _line(settings, client, brand_id, job_id, exchange.rank) as heartbeat:
        plan, folder = read_plan(settings, spec)
        must_share(plan, exchange.num_workers)
        run = Run(client, spec, plan, folder, exchange, heartbeat)
        run.train()
        proof = run.prove() if heartbeat else None
    if proof:
        run.publish(proof)


def _line(
    settings: Settings, client: SystemClient, brand_id: str, job_id: str, rank: int
) -> AbstractContextManager[Heartbeat | None]:
    """The run's line to the platform, which rank 0 alone has."""
    if rank:
        return nullcontext()
    return Heartbeat(client, settings.ticket_seconds / 3, lambda: read_ticket(settings, brand_id, job_id))


class Run:
    """One worker's part of one run."""

    def __init__(
        self,
        client: SystemClient,
        spec: TrainingSpec,
        plan: Plan,
        folder: Path,
        exchange: Exchange,
        heartbeat: Heartbeat | None,
    ) -> None:
        self.client, self.spec, self.plan, self.folder, self.heartbeat = client, spec, plan, folder, heartbeat
        self.pictures = dataset.read_pictures(client, spec.assets)
        self.prompts = samples.sample_prompts(plan.sample_prompts, [picture.caption for picture in self.pictures])
        self.trainer = self._trainer(exchange)
        self.losses: deque[float] = deque(maxlen=_LOSS_WINDOW)
        self.began, self.began_at_step = time.monotonic(), 0

    def _trainer(self, exchange: Exchange) -> Trainer:
        device = ray.train.torch.get_device()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        family = load_family(self.plan.family, self.folder, dtype=dtype, device=device)
        prior = dataset.prior_pictures() if self.plan.prior_rows else []
        examples = dataset.encode(family, self.pictures, self.plan.resolution, prior)
        return Trainer(family, self.plan, examples, exchange)

    def train(self) -> None:
        """All steps that are left. Raises Canceled (or NotFound, if the job is gone) when told to stop."""
        self._resume()
        while not self.trainer.done:
            facts = self.trainer.train_step(stop=self.heartbeat is not None and self.heartbeat.stop)
            if facts.stop:
                raise self._why_stopped()
            self._tell(facts)
            self._sample_if_due()
            self._checkpoint_if_due()

    def _why_stopped(self) -> OnbrandError:
        if self.heartbeat is not None and self.heartbeat.gone:
            return NotFound("the job is not there any more, or has ended")
        return Canceled("the job was canceled")

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                self.trainer.resume(Path(folder))
        self.began, self.began_at_step = time.monotonic(), self.trainer.step

    def _is_due(self, every: int) -> bool:
        return self.trainer.step % every == 0 or self.trainer.done

    def _sample_if_due(self) -> None:
        if self.heartbeat is None or not self._is_due(self.plan.sample_every):
            return
        for number, picture in enumerate(samples.draw_samples(self.trainer, self.prompts)):
            self.client.add_sample(self.trainer.step, number, picture)

    def _checkpoint_if_due(self) -> None:
        """`report` is a barrier over all workers that waits for the controller: at checkpoints only, never per step."""
        if not self._is_due(self.plan.checkpoint_every):
            return
        metrics = {"step": self.trainer.step}
        if self.heartbeat is None:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory(prefix="onbrand-checkpoint-") as folder:
            self.trainer.save(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _tell(self, facts: StepFacts) -> None:
        self.losses.append(facts.loss)
        if self.heartbeat is not None:
            self.heartbeat.tell(min(_LAST_PERCENT, 100 * facts.step // self.plan.steps), self.metrics(facts))

    def _mean_loss(self) -> float:
        return round(sum(self.losses) / len(self.losses), 6)

    def metrics(self, facts: StepFacts) -> dict[str, Any]:
        """What the monitor shows: `loss` is the mean of the last 20 steps over the brand's rows."""
        per_step = (time.monotonic() - self.began) / max(1, facts.step - self.began_at_step)
        known = {
            "step": facts.step,
            "steps": self.plan.steps,
            "loss": self._mean_loss(),
            "prior_loss": None if facts.prior_loss is None else round(facts.prior_loss, 6),
            "learning_rate": facts.learning_rate,
            "gradient_norm": round(facts.gradient_norm, 6),
            "samples_per_s": round(self.plan.batch_size / per_step, 3),
            "eta_seconds": round(per_step * (self.plan.steps - facts.step), 1),
            "resumed_at_step": self.began_at_step or None,
        }
        return {name: value for name, value in known.items() if value is not None}

    def prove(self) -> bytes:
        """The adapter's file, proved against plain diffusers."""
        prompt = self.prompts[0] if self.prompts else self.plan.trigger_word
        title = f"{self.spec.brand_id} {self.plan.family} LoRA"
        with self.trainer.averaged():
            return export(self.trainer.family, self.folder, self.plan, self.trainer.adapter(), prompt, title).data

    def publish(self, data: bytes) -> None:
        """Register the file as the brand's next version, which completes the job, unless its owner canceled it."""
        if self.heartbeat is not None and self.heartbeat.stop:
            raise self._why_stopped()
        plan = self.plan
        metrics = {"steps": plan.steps} | ({"loss": self._mean_loss()} if self.losses else {})
        facts = {
            "rank": plan.rank,
            "trigger_word": plan.trigger_word.replace(PLACEHOLDER, self.spec.brand_id),
            "base_revision": self.trainer.family.revision,
            "metrics": metrics,
        }
        self.client.publish(data, facts)
