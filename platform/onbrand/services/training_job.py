"""A training job as its brand's members see it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onbrand.services.pagination import Row
from onbrand.storage.layout import Key

JobStatus = Literal["pending", "training", "completed", "failed", "canceled"]


class JobUrls(BaseModel):
    """The HTTP addresses of a job."""

    model_config = ConfigDict(frozen=True)

    get: str
    cancel: str
    events: str


class TrainingJob(Row):
    """A training job.

    Args:
        model_url: bucket and key of its adapter, ``models/acme/flux-lora-v1.safetensors``.
        sample_images_urls: buckets and keys of its samples; the API answers with links in their place.
        metrics: the newest numbers, and `findings` of the data check at the start (`data_checks.Finding`).
        eta_seconds: until the last step, while it trains; it may end earlier, and the adapter's proof comes after.
        waiting_for: why it does not run (`job_queue.WaitingFor`); None while it runs, or before the dispatcher looked.
        num_ahead: earlier jobs of the brand that also wait; None if it does not wait.
        attempts: number of submissions.
        retry_of: the job that this one retries; it continues from that job's checkpoints if they fit.
        urls: set by the API.
    """

    id: str
    brand_id: str
    user_id: str
    name: str
    model_type: str
    training_config: dict[str, Any]
    training_asset_ids: list[str]
    status: JobStatus
    progress: int
    model_url: str | None
    sample_images_urls: list[str]
    provider: str
    provider_job_id: str | None
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None
    error: dict[str, Any] | None
    metrics: dict[str, Any]
    eta_seconds: float | None = None
    waiting_for: str | None = None
    num_ahead: int | None = None
    attempts: int = 0
    retry_of: str | None = None
    urls: JobUrls | None = None
    model_id: str | None = Field(default=None, exclude=True)
    start_model_id: str | None = Field(default=None, exclude=True)
    run_id: str | None = Field(default=None, exclude=True)
    cancel_requested_at: datetime | None = Field(default=None, exclude=True)
    stop_requested_at: datetime | None = Field(default=None, exclude=True)

    @property
    def sample_keys(self) -> list[Key]:
        """Keys of its samples, in the order they were made."""
        return [Key("generated-content", url.removeprefix("generated-content/")) for url in self.sample_images_urls]
