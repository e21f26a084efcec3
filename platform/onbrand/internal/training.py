"""Answers of the internal routes to workers: a job's specification, credentials, and receipts of what was stored."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class InternalAnswer(BaseModel):
    """Base of the answers: frozen, and ignores fields that a newer platform adds."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class TrainingAsset(InternalAnswer):
    """A picture of the job; its caption already has the trigger word in place of ``[brand]``."""

    id: str
    caption: str
    object: str = "other"
    content_type: str = "image/png"
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    file: str = "a picture"


class StartModel(InternalAnswer):
    """The published model that a job continues from; `read_start` returns its weights."""

    name: str
    sha256: str
    rank: int
    base_revision: str


class TrainingSpec(InternalAnswer):
    """Everything that a training worker may know about its job."""

    brand_id: str
    job_id: str
    user_id: str
    name: str
    model_type: str
    training_config: dict[str, Any]
    assets: tuple[TrainingAsset, ...]
    attempts: int = 0
    provider_job_id: str | None = None
    run_id: str | None = None
    start: StartModel | None = None

    @property
    def run(self) -> str:
        """The run that the job writes: its own, or that of the job it retries."""
        return self.run_id or self.job_id


class RunCredentials(InternalAnswer):
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


class Heard(InternalAnswer):
    """The platform's answer to a report."""

    cancel_requested: bool = False
    stop_requested: bool = False


class PublishedModel(InternalAnswer):
    """The row of the model that `publish` made."""

    id: str
    name: str
    model_type: str
    version: int
    sha256: str


class StoredImage(InternalAnswer):
    """The row of a picture that `add_image` stored."""

    id: str
    index: int
