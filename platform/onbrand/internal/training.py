"""Responses of the internal routes to workers: a job's specification, credentials, and receipts of what was stored."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

IMPORT_KEY = "import"
"""The field of a job's configuration that holds the facts of an imported file."""


class InternalModel(BaseModel):
    """Base of the responses: frozen, and ignores fields that a newer platform adds."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class TrainingAsset(InternalModel):
    """An image of the job; its caption already has the trigger word in place of ``[brand]``.

    Args:
        features: its measurements from the upload (`sandbox.results.ImageFeatures` by name).
    """

    id: str
    caption: str = Field(repr=False)
    object: str = "other"
    content_type: str = "image/png"
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    file: str = "a picture"
    features: dict[str, Any] = Field(default_factory=dict, repr=False)


class StartModel(InternalModel):
    """The published model that a job continues from; `read_start` returns its weights."""

    name: str
    sha256: str
    rank: int
    base_revision: str


class TrainingSpec(InternalModel):
    """Everything that a training worker may know about its job."""

    brand_id: str
    job_id: str
    user_id: str
    name: str
    model_type: str
    training_config: dict[str, Any] = Field(repr=False)
    assets: tuple[TrainingAsset, ...]
    attempts: int = 0
    provider_job_id: str | None = None
    run_id: str | None = None
    start: StartModel | None = None

    @property
    def run(self) -> str:
        """The run that the job writes: its own, or that of the job it retries."""
        return self.run_id or self.job_id

    @property
    def is_import(self) -> bool:
        """Whether the job imports a file instead of training."""
        return IMPORT_KEY in self.training_config


class RunCredentials(InternalModel):
    """Credentials of an S3 session for one run's folder, until `expires_at`. Their `repr` holds no secret.

    Args:
        prefix: prefix of the run's keys, with a trailing slash.
        endpoint: None for AWS's own in `region`.
    """

    bucket: str
    prefix: str
    access_key: str = Field(repr=False)
    secret_key: str = Field(repr=False)
    session_token: str = Field(repr=False)
    expires_at: datetime
    region: str
    endpoint: str | None = None


class ReportResponse(InternalModel):
    """The response to a report: whether the owner asked to cancel, or to stop and publish the best result so far."""

    cancel_requested: bool = False
    stop_requested: bool = False


class PublishedModel(InternalModel):
    """The row of the model that `publish` made."""

    id: str
    name: str
    model_type: str
    version: int
    sha256: str


class StoredImage(InternalModel):
    """An image that `add_image` stored, and whether all images of its generation are stored now."""

    id: str
    index: int
    completed: bool
