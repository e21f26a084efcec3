"""The Ray job's main, `python -m onbrand.training.job --brand B --job J`: ids in, an exit code out.

Submitted by the dispatcher, or by an engineer with `ray job submit`: then it waits for the job's turn (`turns`).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
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
from onbrand.families.bases import recommended
from onbrand.families.buckets import bucket_step
from onbrand.families.spec import SPECS
from onbrand.families.tokens import of_folder
from onbrand.services.imports import is_import
from onbrand.storage.runs import brand_folder, run_folder, runs_bucket
from onbrand.system_client import SystemClient, TrainingSpec
from onbrand.training.checkpoint_list import mend
from onbrand.training.examination import must_be_fit_to_train
from onbrand.training.machines import wants_gpu
from onbrand.training.providers.ray import job_environment
from onbrand.training.recipes import Plan
from onbrand.training.room import RangeTrainer
from onbrand.training.second_try import fit_within_memory, root_of
from onbrand.training.tickets import FileTickets, TicketSource, handed_out, must_be_job_id, ticket_folder
from onbrand.training.turns import must_be_our_turn, own_submission
from onbrand.training.worker import PASSING, Outcome, connect, read_plan, train_worker

MAX_FAILURES = 3
"""How often Ray Train starts the workers again within one attempt; as often again where they die while they start."""
RANGE_START_SECONDS, RANGE_STARTS = 30, 10
"""For a range of workers: how long Ray Train waits for as many as there seemed to be room for, and how often it counts
anew. A node that is being taken away is counted until it is gone."""
NUM_CHECKPOINTS = 2

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job to its end; 0 when its row says `completed` or `canceled`."""
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
    """Return once the job's row names this very submission. Raises Conflict (another runs it), Unavailable."""
    tickets = FileTickets(ticket_folder(settings, brand_id, job_id))

    def look() -> TrainingSpec:
        with connect(settings, tickets) as client:
            return client.spec()

    must_be_our_turn(settings, brand_id, job_id, own_submission(), look, patience)


def run_job(settings: Settings, brand_id: str, job_id: str) -> Outcome | None:
    """Train on the cluster; None when Ray was told to stop. Raises what another attempt may cure (e.g. Unavailable)."""
    with connect(settings, FileTickets(ticket_folder(settings, brand_id, job_id))) as client:
        try:
            spec = client.spec()
            if is_import(spec.training_config):
                return import_file(client, settings, brand_id, job_id)
            plan, folder = read_plan(settings, spec)
            family = SPECS[plan.family]
            advice = recommended(family.name, folder)
            step, lengths = bucket_step(family, advice.resolution), of_folder(folder, advice)
            must_be_fit_to_train(client, spec, plan, settings.limits, step, lengths)
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
    """One task, on a GPU where there is one: the base must be loaded to prove what was made of the file."""
    ray.init(ignore_reinit_error=True, logging_level=logging.WARNING)
    from onbrand.training.importing import import_worker  # loads diffusers

    use_gpu = wants_gpu(settings)
    task = ray.remote(import_worker).options(num_cpus=1, num_gpus=int(use_gpu), max_retries=MAX_FAILURES)
    try:
        outcome: Outcome = ray.get(task.remote(handed_out(settings, brand_id, job_id)))
    except OnbrandError:  # the task's own, which Ray gives both types
        raise
    except (ray.exceptions.RayTaskError, ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as problem:
        client.fail("import_failed", reason(root_of(problem)))
        return "failed"
    return outcome


def fit(settings: Settings, plan: Plan, brand_id: str, job_id: str, run_id: str, steps_down: int = 0) -> Outcome | None:
    """Ray Train's part. It resumes by the run's name: the job's id, or that of the job whose run it goes on with.

    Args:
        steps_down: how many rungs more thrifty than what should fit the device's memory.
    """
    ray.init(ignore_reinit_error=True, logging_level=logging.WARNING)
    if runs_bucket(settings) is None and mend(run_folder(settings, brand_id, run_id)):
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
    """Whether the number of workers may change on the way."""
    return plan.min_workers not in (None, plan.num_workers)


def scaling(settings: Settings, plan: Plan, use_gpu: bool) -> ScalingConfig:
    """So many workers, or as many of a range as there is room for: the bits of the run do not depend on it."""
    return ScalingConfig(
        num_workers=(plan.min_workers, plan.num_workers) if has_range(plan) else plan.num_workers,
        use_gpu=use_gpu,
        elastic_resize_monitor_interval_s=settings.train_resize_seconds,
    )


def run_storage(settings: Settings, brand_id: str, tickets: TicketSource) -> dict[str, Any]:
    """Where Ray Train keeps this brand's runs, as `RunConfig` takes it; on S3 reached with the job's ticket only."""
    runs = runs_bucket(settings)
    if runs is None:
        return {"storage_path": file_url(brand_folder(settings, brand_id))}
    from onbrand.training.run_files import run_filesystem

    path = f"{runs.bucket}/{runs.prefix}{brand_id}"
    return {"storage_path": path, "storage_filesystem": run_filesystem(tickets, settings.system_url)}


def passing(problem: BaseException) -> OnbrandError:
    """What ended Ray Train's controller, or this driver's line to the cluster, says nothing of the job: try again."""
    if isinstance(problem, OnbrandError):
        return problem
    return Unavailable(f"the training's controller ended ({type(problem).__name__}); the job is submitted again")


def reason(failure: BaseException) -> str:
    """What the job's owner reads: what happened and what to do; never a stack or a path."""
    name = type(failure).__name__
    if name in ("OutOfMemoryError", "MemoryError"):
        return "the machine's memory is not enough for this job; lower batch_size, rank or resolution and retry"
    if name in ("ActorDiedError", "WorkerCrashedError", "ActorUnavailableError", "NodeDiedError"):
        return f"the training workers died {MAX_FAILURES + 1} times, perhaps for lack of memory; retry the job"
    return f"training stopped with an error that was not foreseen ({name}); retry the job, or ask the operators"


if __name__ == "__main__":
    sys.exit(main())
