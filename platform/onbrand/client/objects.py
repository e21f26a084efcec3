"""The objects that the API returns, typed and frozen. Fields that a newer platform adds are ignored."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from onbrand.client.errors import InvalidArgument
from onbrand.client.monitor import Finding, LogLine, MetricsSeries, Sample
from onbrand.client.object_bases import ApiModel, Owned, Waitable

if TYPE_CHECKING:
    from onbrand.client.client import Onbrand

ModelType = Literal["flux", "sdxl", "sd15"]


class Link(ApiModel):
    """A signed link, which gives its bearer access to one file for a short time."""

    url: str = Field(repr=False)
    expires_at: datetime | None = None


class UploadTarget(ApiModel):
    """How to send an announced file, once, before the link expires. The link needs no token."""

    method: Literal["PUT", "POST"]
    url: str = Field(repr=False)
    headers: dict[str, str] = Field(default={}, repr=False)
    fields: dict[str, str] = Field(default={}, repr=False)
    expires_at: datetime | None = None


class Upload(Owned):
    """A file that is sent directly to the store, and the objects made of it."""

    kind: str
    filename: str
    content_type: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    object: str | None = None
    caption: str | None = Field(default=None, repr=False)
    metadata: dict[str, Any] | None = None
    status: str
    error: dict[str, Any] | None = None
    asset_ids: tuple[str, ...] = ()
    document_ids: tuple[str, ...] = ()
    send: UploadTarget | None = None
    expires_at: datetime | None = None
    ended_at: datetime | None = None


class Event(ApiModel):
    """One event of a job or generation; `id` resumes a broken stream."""

    id: int
    kind: str
    data: dict[str, Any] = Field(default={})


class AuditEvent(ApiModel):
    """One line of the brand's audit record: actor, action, time and object.

    Args:
        actor: a `user`, a `key` on behalf of its creator `user_id`, or the `system` for one job of `user_id`.
        credential: the id of the key or the job; None for a user.
        prev, hash: hash of the line before and of this one, hex.
    """

    seq: int
    brand_id: str
    at: datetime
    actor: str
    user_id: str | None = None
    credential: str | None = None
    action: str
    detail: dict[str, Any] = Field(default={})
    prev: str | None = None
    hash: str


class OwnedFile(Owned):
    """An object of a brand with a file in the store."""

    object_name: str | None = None
    bytes: int | None = None
    sha256: str | None = None


class Asset(OwnedFile):
    """A training picture."""

    name: str
    type: str = "image"
    object: str | None = None
    caption: str | None = None
    caption_version: int | None = None
    content_type: str | None = None
    width: int | None = None
    height: int | None = None
    metadata: dict[str, Any] | None = None


class Document(OwnedFile):
    """One version of a brand's document; all its versions have the same `name`."""

    name: str
    version: int
    title: str
    content_type: str | None = None
    num_pages: int | None = None

    def versions(self) -> list[Document]:
        """All versions, newest first."""
        return self._must_have_client().documents.versions(self.brand_id, self.id)

    def read(self) -> builtins.bytes:
        """The document's bytes."""
        client = self._must_have_client()
        return client.fetch(client.documents.link(self.brand_id, self.id))

    def download(self, path: str | Path = ".") -> Path:
        """Save the document to the file `path`, or under its own name into the folder `path`."""
        client = self._must_have_client()
        ext = PurePosixPath(self.object_name or "document").suffix
        name = f"{self.name}{'' if self.version == 1 else f'-v{self.version}'}{ext}"
        return client.save(client.documents.link(self.brand_id, self.id), path, name)


class Model(OwnedFile):
    """A published adapter of the brand."""

    name: str
    model_type: str
    version: int
    job_id: str | None = None
    rank: int | None = None
    trigger_word: str | None = None
    base_revision: str | None = None
    metrics: dict[str, Any] | None = None

    def download(self, path: str | Path, format: Literal["diffusers", "kohya"] = "diffusers") -> Path:
        """Save the safetensors file to the file `path`, or under its own name into the folder `path`.

        Args:
            format: ``diffusers`` is the published file, ``kohya`` the same adapter with kohya's layer names.
        """
        client = self._must_have_client()
        if format == "kohya":
            return client.models.save_kohya(self.brand_id, self.id, path, f"{self.name}-kohya.safetensors")
        return client.save(client.models.link(self.brand_id, self.id), path, f"{self.name}.safetensors")


class Image(OwnedFile):
    """A generated picture."""

    generation_id: str | None = None
    model_id: str | None = None
    index: int = 0
    seed: int | None = None
    content_type: str | None = None
    width: int | None = None
    height: int | None = None
    receipt: dict[str, Any] | None = None

    def read(self) -> builtins.bytes:
        """The picture's bytes."""
        client = self._must_have_client()
        return client.fetch(client.images.link(self.brand_id, self.id))

    def download(self, path: str | Path) -> Path:
        """Save the picture to the file `path`, or under its own name into the folder `path`."""
        client = self._must_have_client()
        return client.save(client.images.link(self.brand_id, self.id), path, self._file_name())

    def _file_name(self) -> str:
        if self.object_name:
            return self.object_name.rsplit("/", 1)[-1]
        return f"{self.id}.{(self.content_type or 'image/png').rsplit('/', 1)[-1]}"


class TrainingJob(Waitable):
    """A fine-tuning of one adapter."""

    name: str
    model_type: str
    training_config: dict[str, Any] = Field(default={})
    training_asset_ids: tuple[str, ...] = ()
    model_url: str | None = None
    sample_images_urls: tuple[str, ...] = ()
    provider: str | None = None
    provider_job_id: str | None = None
    metrics: dict[str, Any] | None = None
    eta_seconds: float | None = None
    waiting_for: str | None = None
    num_ahead: int | None = None
    attempts: int = 0
    retry_of: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    urls: dict[str, str] | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The data check's findings at the start of the job."""
        return tuple(map(Finding.model_validate, (self.metrics or {}).get("findings", ())))

    def refresh(self) -> Self:
        return self._must_have_client().training_jobs.get(self.brand_id, self.id)  # type: ignore[return-value]

    def cancel(self) -> TrainingJob:
        return self._must_have_client().training_jobs.cancel(self.brand_id, self.id)

    def stop(self) -> TrainingJob:
        return self._must_have_client().training_jobs.stop(self.brand_id, self.id)

    def events(self, after: int | None = None) -> Iterator[Event]:
        return self._must_have_client().training_jobs.events(self.brand_id, self.id, after)

    def metrics_series(self, limit: int = 200, after_step: int = -1) -> MetricsSeries:
        """Loss, validation, learning rate and speed, step by step."""
        return self._must_have_client().training_jobs.metrics(self.brand_id, self.id, limit, after_step)

    def samples(self) -> Iterator[Sample]:
        return self._must_have_client().training_jobs.samples(self.brand_id, self.id)

    def logs(self, after: int = 0) -> Iterator[LogLine]:
        return self._must_have_client().training_jobs.logs(self.brand_id, self.id, after)

    @property
    def model_name(self) -> str | None:
        """The published model's name, e.g. ``flux-lora-v1``; None before the job has completed."""
        return None if self.model_url is None else PurePosixPath(self.model_url).stem

    def model(self) -> Model:
        """The published model. Raises InvalidArgument before the job has completed."""
        if self.model_name is None:
            raise InvalidArgument(f"job {self.id} has no model: it is {self.status}")
        return self._must_have_client().models.get(self.brand_id, self.model_name)


class UsedAdapter(ApiModel):
    """An adapter that a generation uses; `model_id` is None after the model is deleted."""

    model: str
    model_id: str | None = None
    sha256: str | None = None
    scale: float = 1.0


class Generation(Waitable):
    """Pictures that are or were drawn from one prompt."""

    model: str | None = None
    model_id: str | None = None
    model_type: str | None = None
    prompt: str = Field(default="", repr=False)
    negative_prompt: str | None = Field(default=None, repr=False)
    num_images: int = 1
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    lora_scale: float | None = None
    models: tuple[UsedAdapter, ...] = ()
    sampler: str | None = None
    exclusive: bool = False
    preview_every: int = 0
    output_format: str | None = None
    output_compression: int | None = None
    cut: tuple[dict[str, Any], ...] | None = None
    """Prompts that were truncated, each with field, tokenizer, tokens and read (tokens used). None: not known yet."""
    images: tuple[Image, ...] = ()
    completed_at: datetime | None = None

    def attach(self, client: Onbrand) -> Self:
        for image in self.images:
            image.attach(client)
        return super().attach(client)

    def refresh(self) -> Self:
        return self._must_have_client().generations.get(self.brand_id, self.id)  # type: ignore[return-value]

    def cancel(self) -> Generation:
        return self._must_have_client().generations.cancel(self.brand_id, self.id)

    def events(self, after: int | None = None) -> Iterator[Event]:
        return self._must_have_client().generations.events(self.brand_id, self.id, after)
