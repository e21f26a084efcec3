"""The driver of a training job (`python -m onbrand.training.job`): takes two ids, returns an exit code.

The dispatcher submits it. An engineer can also submit it with `ray job submit`; it then waits for the job's turn
(`training.dispatch.submission`).
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from onbrand.addresses import file_url
from onbrand.brand import must_be_brand_id
from onbrand.config import Settings
from onbrand.errors import Conflict, NotFound, OnbrandError, Unavailable
from onbrand.families import bases
from onbrand.families.aspect_buckets import bucket_step
from onbrand.families.spec import SPECS
from onbrand.families.tokens import of_folder
from onbrand.internal.client import SystemClient
from onbrand.internal.training import TrainingSpec
from onbrand.storage.runs import brand_folder, run_folder, runs_bucket
from onbrand.training.data.checks import must_be_fit_to_train
from onbrand.training.dispatch.capacity import wants_gpu
from onbrand.training.dispatch.providers.ray import job_environment
from onbrand.training.dispatch.submission import own_submission, wait_until_named
from onbrand.training.dispatch.tickets import FileTickets, TicketSource, handed_out, must_be_job_id, ticket_folder
from onbrand.training.ray.checkpoint_manifest import repair
from onbrand.training.ray.oom_retry import fit_within_memory, root_of
from onbrand.training.ray.scaling import RangeTrainer
from onbrand.training.ray.worker import PASSING, Outcome, connect, read_plan, train_worker
from onbrand.training.recipes import Plan

MAX_FAILURES = 3
"""Restarts of the workers by Ray Train within one attempt; counted separately for workers that die at their start."""
RANGE_START_SECONDS, RANGE_STARTS = 30, 10
"""For a range of workers: how long Ray Train waits for the workers that it planned, and how often it plans again. A
node that is being removed counts until it is gone."""
NUM_CHECKPOINTS = 2

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job to its end. Returns 0 if it was completed or canceled, or is gone, else 1."""
    parser = argparse.ArgumentParser(prog="onbrand.training.job", description=__doc__)
    parser.add_argument("--brand", required=True, type=must_be_brand_id)
    parser.add_argument("--job", required=True, type=must_be_job_id)
    parser.add_argument("--wait", type=float, default=3600, help="seconds to wait for the job's turn (default 3600)")
    ids = parser.parse_args(arguments)
    settings = Settings()
    for name, value in job_environment(settings).items():
        os.environ.setdefault(name, value)
    try:
        wait_for_turn(settings, ids.brand, ids.job, ids.wait)
        outcome = run_job(settings, ids.brand, ids.job)
    except OnbrandError as problem:
        log.error("the job did not come to an end: %s", problem.message)
        return 1
    return 0 if outcome in ("completed", "canceled", "gone") else 1


def wait_for_turn(settings: Settings, brand_id: str, job_id: str, patience: float) -> None:
    """Wait until the job's row names this submission. Raises Conflict (another submission runs it), Unavailable."""
    tickets = FileTickets(ticket_folder(settings, brand_id, job_id))

    def look() -> TrainingSpec:
        with connect(settings, tickets) as client:
            return client.spec()

    wait_until_named(settings, brand_id, job_id, own_submission(), look, patience)


def run_job(settings: Settings, brand_id: str, job_id: str) -> Outcome | None:
    """Train on the cluster; None if Ray was told to stop. Raises errors that another attempt may cure (`PASSING`)."""
    with connect(settings, FileTickets(ticket_folder(settings, brand_id, job_id))) as client:
        try:
            spec = client.spec()
            if spec.is_import:
                return import_file(client, settings, brand_id, job_id)
            plan, folder = read_plan(settings, spec)
            family = SPECS[plan.family]
            recommended = bases.recommended(family.name, folder)
            step, lengths = bucket_step(family, recommended.resolution), of_folder(folder, recommended)
            must_be_fit_to_train(client, spec, plan, step, lengths)
            return fit_within_memory(client, partial(fit, settings, plan, brand_id, job_id, spec.run))
        except (NotFound, Conflict):
            return "gone"
        except PASSING:
            raise
        except OnbrandError as problem:
            client.fail(problem.code, problem.message)
        except ray.train.ControllerError as problem:
            raise passing(root_of(problem)) from None
        except ray.train.TrainingFailedError as problem:
            failure = root_of(problem)
            if isinstance(failure, PASSING):
                raise failure from None
            client.fail("training_failed", reason(failure))
        except ray.exceptions.RayError as problem:
            raise passing(problem) from None
        return "failed"


def import_file(client: SystemClient, settings: Settings, brand_id: str, job_id: str) -> Outcome:
    """Import in one Ray task. It uses a GPU if there is one, as verification loads the base."""
    ray.init(ignore_reinit_error=True, logging_level=logging.WARNING)
    from onbrand.training.lora_import import import_worker  # loads diffusers

    use_gpu = wants_gpu(settings)
    task = ray.remote(import_worker).options(num_cpus=1, num_gpus=int(use_gpu), max_retries=MAX_FAILURES)
    try:
        outcome: Outcome = ray.get(task.remote(handed_out(settings, brand_id, job_id)))
    except OnbrandError:  # raised in the task; Ray's copy of it is also a RayTaskError
        raise
    except (ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as problem:
        client.fail("import_failed", reason(root_of(problem)))
        return "failed"
    return outcome


def fit(settings: Settings, plan: Plan, brand_id: str, job_id: str, run_id: str, steps_down: int = 0) -> Outcome | None:
    """Run Ray Train, which resumes by the run's name: the id of this job, or of the job whose run it continues.

    Args:
        steps_down: memory-saving levels below the first that should fit.
    """
    ray.init(ignore_reinit_error=True, logging_level=logging.WARNING)
    if runs_bucket(settings) is None and repair(run_folder(settings, brand_id, run_id)):
        log.warning("the list of the run's checkpoints was broken and was made anew")
    use_gpu = wants_gpu(settings)
    tickets = handed_out(settings, brand_id, job_id)
    is_range = has_range(plan)
    if is_range:
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(RANGE_START_SECONDS)
    trainer = (RangeTrainer if is_range else TorchTrainer)(
        partial(train_worker, tickets),
        train_loop_config={"brand": brand_id, "job": job_id, "steps_down": str(steps_down)},
        scaling_config=scaling(settings, plan, use_gpu),
        run_config=RunConfig(
            name=run_id,
            failure_config=FailureConfig(
                max_failures=MAX_FAILURES, controller_failure_limit=RANGE_STARTS if is_range else MAX_FAILURES
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=NUM_CHECKPOINTS),
            **run_storage(settings, brand_id, tickets),
        ),
    )
    return trainer.fit().return_value  # type: ignore[no-any-return]


def has_range(plan: Plan) -> bool:
    """True if the number of workers may change during the run."""
    return plan.min_workers not in (None, plan.num_workers)


def scaling(settings: Settings, plan: Plan, use_gpu: bool) -> ScalingConfig:
    """A fixed number of workers, or a range of which as many start as fit. The result is bit-identical for all."""
    return ScalingConfig(
        num_workers=(plan.min_workers, plan.num_workers) if has_range(plan) else plan.num_workers,
        use_gpu=use_gpu,
        elastic_resize_monitor_interval_s=settings.train_resize_seconds,
    )


def run_storage(settings: Settings, brand_id: str, tickets: TicketSource) -> dict[str, Any]:
    """`RunConfig` arguments for the storage of this brand's runs. On S3 it is accessed with the job's ticket only."""
    runs = runs_bucket(settings)
    if runs is None:
        return {"storage_path": file_url(brand_folder(settings, brand_id))}
    from onbrand.training.ray.s3_filesystem import run_filesystem

    path = f"{runs.bucket}/{runs.prefix}{brand_id}"
    return {"storage_path": path, "storage_filesystem": run_filesystem(tickets, settings.system_url)}


def passing(problem: BaseException) -> OnbrandError:
    """Unavailable for an error of Ray Train's controller or of the cluster connection, so that the job is retried; an
    OnbrandError is returned as it is."""
    if isinstance(problem, OnbrandError):
        return problem
    return Unavailable(f"the training's controller ended ({type(problem).__name__}); the job is submitted again")


def reason(failure: BaseException) -> str:
    """The error message for the job's owner: cause and remedy, without stack traces or paths."""
    name = type(failure).__name__
    if name in ("OutOfMemoryError", "MemoryError"):
        return "the machine's memory is not enough for this job; lower batch_size, rank or resolution and retry"
    if name in ("ActorDiedError", "WorkerCrashedError", "ActorUnavailableError", "NodeDiedError"):
        return f"the training workers died {MAX_FAILURES + 1} times, perhaps for lack of memory; retry the job"
    return f"training stopped with an error that was not foreseen ({name}); retry the job, or ask the operators"
