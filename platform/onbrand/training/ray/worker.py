"""The function that Ray Train runs on every worker: connect, train, and write the outcome to the job's row.

Errors of the job end it with a reason in its row. Errors of the platform or the machine are raised, so that Ray Train
restarts the workers from the last checkpoint. The driver imports this module, so its imports are light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import ray.train
from pydantic import ValidationError

from onbrand.config import Settings
from onbrand.errors import (
    Canceled,
    Conflict,
    InvalidInput,
    NotFound,
    OnbrandError,
    RanOutOfMemory,
    StorageError,
    TicketRefused,
    Unavailable,
)
from onbrand.families.bases import base_folder, base_source, recommended, revision, s3_access
from onbrand.families.spec import SPECS
from onbrand.families.training_config import TrainingConfig
from onbrand.internal.client import SystemClient
from onbrand.internal.training import TrainingSpec
from onbrand.training.dispatch.tickets import TicketSource
from onbrand.training.ray.heartbeat import Heartbeat
from onbrand.training.recipes import Plan, make_plan

Outcome = Literal["completed", "failed", "canceled", "gone", "out_of_memory"]
PASSING = (Unavailable, StorageError, TicketRefused)
"""Transient errors that are not the job's fault; another attempt is made."""


def train_worker(tickets: TicketSource, config: Mapping[str, str]) -> Outcome:
    """Train as one worker; the entry point for Ray Train.

    Args:
        config: the brand's and the job's id, and the memory-saving levels to go down. Ray's dashboard shows it.
    """
    settings, steps_down = Settings(), int(config.get("steps_down", 0))
    with connect(settings, tickets) as client:
        speaks = ray.train.get_context().get_world_rank() == 0
        return ended(client, lambda: _train(settings, client, tickets, steps_down), speaks)


def connect(settings: Settings, tickets: TicketSource) -> SystemClient:
    """A client for the platform's internal routes, with the newest ticket of this job."""
    return SystemClient(settings.system_url, tickets.newest())


def ended(client: SystemClient, work: Callable[[], None], speaks: bool = True) -> Outcome:
    """Do the job's work and return its outcome.

    Args:
        speaks: write the outcome to the job's row.
    """
    try:
        try:
            work()
            return "completed"
        except Canceled:
            if speaks:
                client.canceled()
            return "canceled"
        except RanOutOfMemory:
            return "out_of_memory"  # the driver decides what comes of it
        except (*PASSING, NotFound, Conflict):
            raise
        except OnbrandError as problem:
            if speaks:
                client.fail(problem.code, problem.message)
            return "failed"
    except (NotFound, Conflict):
        return "gone"


def read_plan(settings: Settings, spec: TrainingSpec) -> tuple[Plan, Path]:
    """The job's plan and the local folder of its base. Both depend on the row and the settings only.

    Raises:
        InvalidInput: the configuration in the row is out of bounds or contradicts itself.
        BaseModelRefused: the configured base is not one of this family.
    """
    family = SPECS[spec.model_type]  # type: ignore[index]
    folder = base_folder(family.name, base_source(family.name, settings.bases), storage_options=s3_access(settings))
    try:
        config = TrainingConfig.model_validate(spec.training_config)
    except ValidationError as problem:
        first = problem.errors(include_input=False, include_url=False)[0]
        field = ".".join(["training_config", *map(str, first["loc"])])
        raise InvalidInput(f"{field}: {first['msg']}", param=field) from None
    plan = make_plan(family, recommended(family.name, folder), config, spec.brand_id, settings.train_workers)
    return replace(plan, start_sha256=_start_of(config, spec, folder)), folder


def _start_of(config: TrainingConfig, spec: TrainingSpec, folder: Path) -> str | None:
    """The digest of the model to continue from. Raises InvalidInput if it was deleted, or has another base."""
    if config.continue_from is None:
        return None
    if spec.start is None:
        said = f"the model {config.continue_from}, which this job continues from, was deleted; create another job"
        raise InvalidInput(said, param="training_config.continue_from")
    if spec.start.base_revision != revision(folder):
        said = f"{spec.start.name} was trained on another base than this platform has now for {spec.model_type}"
        raise InvalidInput(said, param="training_config.continue_from")
    return spec.start.sha256


def _train(settings: Settings, client: SystemClient, tickets: TicketSource, steps_down: int) -> None:
    context = ray.train.get_context()
    spec = client.spec()
    renew_seconds = settings.ticket_seconds / 3
    line = nullcontext() if context.get_world_rank() else Heartbeat(client, renew_seconds, tickets.newest)
    with line as heartbeat:
        from onbrand.engine.compilation import keep_memory  # loads diffusers: the row says `training` meanwhile
        from onbrand.training.memory.estimate import Allowance
        from onbrand.training.run import Run

        keep_memory()
        plan, folder = read_plan(settings, spec)
        allowance = Allowance(settings.train_memory_gb, steps_down)
        run = Run(client, spec, plan, folder, settings.encoded_folder, context.get_world_size(), heartbeat, allowance)
        run.train()
        proof = run.verify_export()
    if proof:
        run.publish(proof)
