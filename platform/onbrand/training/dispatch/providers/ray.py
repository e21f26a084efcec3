"""Ray Jobs as a provider. The entrypoint contains only ids, as Ray's dashboard shows it to anyone."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from functools import cached_property, wraps
from typing import Any, ParamSpec, TypeVar

import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from onbrand.brand import Ticket, must_be_brand_id
from onbrand.config import Settings
from onbrand.errors import Unavailable
from onbrand.storage.runs import must_be_job_id, runs_bucket
from onbrand.training.dispatch.capacity import capacity
from onbrand.training.dispatch.providers.provider import Capacity, Provider, ProviderStatus

P = ParamSpec("P")
R = TypeVar("R")
_STATUS: dict[JobStatus, ProviderStatus] = {
    JobStatus.PENDING: "pending",
    JobStatus.RUNNING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "stopped",
}
STOP_SECONDS = 30
"""How long Ray waits after SIGINT before it kills a job; its own default (SIGTERM, 3 s) leaves Train no time."""


def submission_id(job_id: str, attempt: int) -> str:
    """The id of an attempt's Ray submission; always the same for the same attempt."""
    return f"onbrand-{must_be_job_id(job_id)}-{attempt}"


def _answers(call: Callable[P, R]) -> Callable[P, R]:
    """Decorator: raise Unavailable if Ray's job server cannot be reached."""

    @wraps(call)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except (ConnectionError, OSError) as problem:
            raise Unavailable(f"Ray's job server does not answer ({type(problem).__name__})") from None

    return wrapped


class RayProvider(Provider):
    """Submits jobs to the Ray cluster that this process belongs to, or to the one at `address`."""

    name = "ray"

    def __init__(self, settings: Settings, address: str | None = None) -> None:
        self._settings = settings
        self._address = address

    @cached_property
    def _client(self) -> JobSubmissionClient:
        own_cluster = ray.get_runtime_context().gcs_address if ray.is_initialized() else None
        return JobSubmissionClient(self._address or own_cluster)

    @_answers
    def submit(self, ticket: Ticket, attempt: int) -> str:
        brand, job = must_be_brand_id(ticket.brand_id), must_be_job_id(ticket.job_id)
        wanted = submission_id(job, attempt)
        try:
            return self._client.submit_job(
                entrypoint=f"{shlex.quote(sys.executable)} {_module(brand, job)}",
                submission_id=wanted,
                runtime_env={"env_vars": job_environment(self._settings)},
                entrypoint_resources=self._where(),
            )
        except RuntimeError as problem:
            if f"{wanted} already exists" in str(problem):
                return wanted
            raise Unavailable("Ray's job server refused the job; its log says why") from None

    @_answers
    def is_of(self, ticket: Ticket, submission: str) -> bool:
        """True if the submission's entrypoint is the ticket's job, and it is pending or running."""
        try:
            info = self._client.get_job_info(submission)
        except RuntimeError:
            return False
        ours = f" {_module(must_be_brand_id(ticket.brand_id), must_be_job_id(ticket.job_id))}"
        return info.entrypoint.strip().endswith(ours) and _STATUS.get(info.status) in ("pending", "running")

    def capacity(self) -> Capacity | None:
        return capacity(self._settings)

    def _where(self) -> dict[str, float] | None:
        """Resources that place the driver on this node, where the ticket's file is; None unless runs are on S3."""
        if runs_bucket(self._settings) is None:
            return None
        here = ray.get_runtime_context().get_node_id()
        [names] = [node["Resources"] for node in ray.nodes() if node["NodeID"] == here]
        own = [name for name in names if name.startswith("node:") and "__" not in name]
        return dict.fromkeys(own[:1], 0.001) or None

    @_answers
    def status(self, provider_job_id: str) -> ProviderStatus:
        try:
            return _STATUS.get(self._client.get_job_status(provider_job_id), "running")
        except RuntimeError as problem:
            if "does not exist" in str(problem):
                return "lost"
            raise Unavailable("Ray's job server does not answer for a job") from None

    @_answers
    def stop(self, provider_job_id: str) -> None:
        try:
            self._client.stop_job(provider_job_id)
        except RuntimeError as problem:
            if "does not exist" not in str(problem):
                raise Unavailable("Ray's job server did not stop a job") from None


def _module(brand_id: str, job_id: str) -> str:
    return f"-m onbrand.training.job --brand {brand_id} --job {job_id}"


def job_environment(settings: Settings) -> dict[str, str]:
    """Environment variables for a job's processes; contains no secrets."""
    known: dict[str, Any] = {
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS,
        "RAY_TRAIN_V2_ENABLED": 1,
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": 0.2,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": 300,
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": os.environ.get(
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", int(settings.device != "cpu")
        ),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "ONBRAND_DATA_DIR": settings.folder,
        "ONBRAND_RUN_STORAGE": settings.runs_url,
        "ONBRAND_INTERNAL_URL": settings.system_url,
        "ONBRAND_TRAIN_WORKERS": json.dumps(settings.train_workers),
        "ONBRAND_TRAIN_RESIZE_SECONDS": settings.train_resize_seconds,
        "ONBRAND_TRAIN_MEMORY_GB": settings.train_memory_gb,
        "ONBRAND_TICKET_SECONDS": settings.ticket_seconds,
        "ONBRAND_DEVICE": settings.device,
        "ONBRAND_S3_ENDPOINT": settings.s3_endpoint,
    }
    known |= {f"ONBRAND_BASES__{family}": base for family, base in settings.bases.items()}
    limits = settings.limits.model_dump(exclude_defaults=True)
    known |= {f"ONBRAND_LIMITS__{name.upper()}": value for name, value in limits.items()}
    return {name: str(value) for name, value in known.items() if value is not None}
