"""The resources of a client, one class each: `client.assets.list("acme")`, `client.training_jobs.create(...)`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from onbrand.client import accounts, monitor, objects
from onbrand.client.audit_chain import Head, Verdict, check_chain
from onbrand.client.files import Captions, File, as_captions, as_part, save_at
from onbrand.client.resource_bases import BrandLike, BrandResource, FileResource, Resource, brand_path, given, id_of


class Users(Resource):
    """Sign-up, and the account of the client's token."""

    def create(self, email: str, password: str) -> accounts.User:
        """Sign up."""
        return self._post(accounts.User, "/v1/users", {"email": email, "password": password})

    def me(self) -> accounts.Me:
        """The token's account and brands."""
        return self._get(accounts.Me, "/v1/me")


class Tokens(Resource):
    """Bearer tokens, which are made from an address and a password."""

    def create(self, email: str, password: str, brand: BrandLike | None = None) -> accounts.Token:
        """Log in; with `brand`, the token is limited to that brand. Unlike `client.log_in`, does not use the token."""
        brand_id = None if brand is None else id_of(brand)
        return self._post(accounts.Token, "/v1/tokens", given(email=email, password=password, brand_id=brand_id))


class Brands(Resource):
    """The caller's brands."""

    def create(self, brand_id: str, name: str | None = None, home_region: str | None = None) -> accounts.Brand:
        """Create a brand; the caller becomes its admin."""
        return self._post(
            accounts.Brand, "/v1/brands", given(id=brand_id, name=name or brand_id, home_region=home_region)
        )

    def list(self) -> Iterator[accounts.Brand]:
        return self._pages(accounts.Brand, "/v1/brands")

    def get(self, brand: BrandLike) -> accounts.Brand:
        return self._get(accounts.Brand, brand_path(brand))


class Keys(BrandResource[accounts.ApiKey]):
    """API keys, created and revoked by logged-in admins; `Onbrand(url, token=key)` uses one."""

    kind, name = accounts.ApiKey, "keys"

    def create(
        self, brand: BrandLike, name: str, scopes: Sequence[str], *, expires_at: datetime | None = None
    ) -> accounts.ApiKey:
        """Create a key that acts for the caller in one brand. The result's `key` cannot be read again.

        Args:
            scopes: any of ``read``, ``upload``, ``train``, ``generate`` and ``manage`` (admin rights).
            expires_at: expiry with time zone; None never expires.
        """
        ends = None if expires_at is None else expires_at.isoformat()
        body = given(name=name, scopes=[*scopes], expires_at=ends)
        return self._post(accounts.ApiKey, brand_path(brand, "keys"), body)

    def revoke(self, brand: BrandLike, key_id: str) -> None:
        self._delete(brand, key_id)


class Assets(FileResource[objects.Asset]):
    """Training pictures."""

    kind, name = objects.Asset, "assets"

    def upload(
        self,
        brand: BrandLike,
        files: Iterable[File],
        captions: Captions = None,
        *,
        object: str = "other",
        metadata: Mapping[str, Any] | None = None,
    ) -> list[objects.Asset]:
        """Upload pictures, all or none.

        Args:
            files: paths, (name, bytes) pairs or open binary files.
            captions: one for all, one each in order, or by file name; ``[brand]`` stands for the trigger word.
            object: ``logo``, ``product``, ``person``, ``packaging`` or ``other``.
        """
        parts = [as_part(file) for file in files]
        said = as_captions(captions, [name for name, _, _ in parts])
        fields = {"object": object, "captions": json.dumps(said)} | (
            {"metadata": json.dumps(metadata)} if metadata else {}
        )
        body = self._transport.json(
            "POST", brand_path(brand, "assets"), data=fields, files=[("files", part) for part in parts], timeout=300.0
        )
        return [self._read(objects.Asset, item) for item in body["data"]]

    def set_caption(self, brand: BrandLike, asset_id: str, caption: str) -> objects.Asset:
        """Add a new version of the caption; earlier ones are kept."""
        return self._change(brand, asset_id, caption=caption)


class Documents(FileResource[objects.Document]):
    """Documents of a brand; `list` has the newest version of each, and an id names one version."""

    kind, name = objects.Document, "documents"

    def upload(self, brand: BrandLike, file: File, title: str | None = None) -> objects.Document:
        """Upload a PDF or Markdown file as the first or next version of its title.

        Args:
            file: a path, a (name, bytes) pair or an open binary file; its name ends in ``.pdf`` or ``.md``.
            title: defaults to the file's name without its extension.
        """
        path = brand_path(brand, "documents")
        fields = {"title": title} if title is not None else {}
        return self._post(objects.Document, path, data=fields, files=[("file", as_part(file))], timeout=120.0)

    def versions(self, brand: BrandLike, document_id: str) -> list[objects.Document]:
        """All versions of the document, given the id of any of them; newest first."""
        return list(self._pages(objects.Document, brand_path(brand, "documents", document_id, "versions")))


class TrainingJobs(BrandResource[objects.TrainingJob]):
    """Training jobs: check the data, create, follow, stop and retry."""

    kind, name = objects.TrainingJob, "training-jobs"

    def check(
        self,
        brand: BrandLike,
        model_type: str,
        *,
        training_asset_ids: Sequence[str],
        training_config: Mapping[str, Any] | None = None,
    ) -> monitor.DataCheck:
        """Check the pictures and captions that such a job would train on; no job is created."""
        body = given(
            model_type=model_type,
            training_config=dict(training_config or {}),
            training_asset_ids=list(training_asset_ids),
        )
        return self._post(monitor.DataCheck, f"{brand_path(brand, 'training-jobs')}:check", body, timeout=1800.0)

    def create(
        self,
        brand: BrandLike,
        model_type: str,
        *,
        training_asset_ids: Sequence[str],
        name: str | None = None,
        training_config: Mapping[str, Any] | None = None,
        provider: str | None = None,
        idempotency_key: str | None = None,
    ) -> objects.TrainingJob:
        """Start a fine-tuning; call `.wait()` on the result to wait for its end."""
        body = given(
            name=name or f"{model_type} adapter",
            model_type=model_type,
            training_config=dict(training_config or {}),
            training_asset_ids=list(training_asset_ids),
            provider=provider,
        )
        path = brand_path(brand, "training-jobs")
        return self._post(objects.TrainingJob, path, body, idempotency_key=idempotency_key)

    def rename(self, brand: BrandLike, job_id: str, name: str) -> objects.TrainingJob:
        return self._change(brand, job_id, name=name)

    def cancel(self, brand: BrandLike, job_id: str) -> objects.TrainingJob:
        return self._do(brand, job_id, "cancel")

    def stop(self, brand: BrandLike, job_id: str) -> objects.TrainingJob:
        """Stop a job that trains now; it publishes its best step so far."""
        return self._do(brand, job_id, "stop")

    def retry(self, brand: BrandLike, job_id: str) -> objects.TrainingJob:
        """Create a job like a failed or canceled one; it resumes from that job's last checkpoint if it fits."""
        return self._do(brand, job_id, "retry")

    def events(self, brand: BrandLike, job_id: str, after: int | None = None) -> Iterator[objects.Event]:
        return self._events(brand_path(brand, "training-jobs", job_id, "events"), after)

    def metrics(self, brand: BrandLike, job_id: str, limit: int = 200, after_step: int = -1) -> monitor.MetricsSeries:
        """Its metrics after step `after_step`, in at most `limit` points."""
        path = brand_path(brand, "training-jobs", job_id, "metrics")
        asked = {"limit": limit, "after_step": after_step}
        return self._read(monitor.MetricsSeries, self._transport.json("GET", path, params=asked))

    def samples(self, brand: BrandLike, job_id: str) -> Iterator[monitor.Sample]:
        """The sample pictures: for each prompt the base's, then the adapter's at each sampled step."""
        return self._pages(monitor.Sample, brand_path(brand, "training-jobs", job_id, "samples"), 100)

    def logs(self, brand: BrandLike, job_id: str, after: int = 0) -> Iterator[monitor.LogLine]:
        """The lines of the run's log so far, or those after the line whose `seq` is `after`."""
        return self._pages(monitor.LogLine, brand_path(brand, "training-jobs", job_id, "logs"), 100, str(after))

    def delete(self, brand: BrandLike, job_id: str) -> None:
        self._delete(brand, job_id)


class Models(FileResource[objects.Model]):
    """Published adapters, named by id or by name (``flux-lora-v2``)."""

    kind, name = objects.Model, "models"

    def link(self, brand: BrandLike, id: str) -> objects.Link:
        """A signed link to the safetensors file; the platform records the request."""
        return self._get(objects.Link, brand_path(brand, "models", id, "download"))

    def import_file(
        self,
        brand: BrandLike,
        model_type: str,
        file: File,
        *,
        trigger_word: str | None = None,
        name: str | None = None,
        text_encoder: Literal["refuse", "drop"] | None = None,
        lora_alpha: float | None = None,
        idempotency_key: str | None = None,
    ) -> objects.TrainingJob:
        """Import another trainer's LoRA file (kohya, ai-toolkit, ComfyUI, PEFT, diffusers) as the brand's next model.

        Call `.wait()` on the result. A file that cannot be served is refused, at once or by the job.

        Args:
            file: a path, a (name, bytes) pair or an open binary file.
            trigger_word: replaces ``[brand]`` in prompts; defaults to the brand's id.
            text_encoder: ``drop`` removes text encoder layers; by default a file with such layers is refused.
                The job's ``training_config["import"]["dropped"]`` gives their number and share.
            lora_alpha: ``lora_alpha`` of PEFT's ``adapter_config.json``, for files without it.
        """
        alpha = None if lora_alpha is None else str(lora_alpha)
        fields = given(
            model_type=model_type, trigger_word=trigger_word, name=name, text_encoder=text_encoder, lora_alpha=alpha
        )
        parts: dict[str, Any] = {"data": fields, "files": [("file", as_part(file))], "timeout": 600.0}
        path = f"{brand_path(brand, 'models')}:import"
        return self._post(objects.TrainingJob, path, idempotency_key=idempotency_key, **parts)

    def save_kohya(self, brand: BrandLike, model: str, path: str | Path, name: str) -> Path:
        """Save the adapter with kohya's layer names to the file `path`, or as `name` into the folder `path`."""
        source = f"{brand_path(brand, 'models', model, 'download')}?format=kohya"
        return save_at(path, name, self._transport.content(source))


class AuditEvents(Resource):
    """The audit record of a brand."""

    def list(self, brand: BrandLike, *, oldest_first: bool = False) -> Iterator[objects.AuditEvent]:
        """The brand's record, for its admins; newest first by default."""
        order = "asc" if oldest_first else None
        return self._pages(objects.AuditEvent, brand_path(brand, "audit-events"), 100, order=order)

    def verify(self, brand: BrandLike, head: Head | str | None = None) -> Verdict:
        """Read the whole record and verify its hash chain locally; it must contain `head` of an earlier verdict."""
        brand_id = id_of(brand)
        anchor = Head.parse(head) if isinstance(head, str) else head
        return check_chain(brand_id, self.list(brand_id, oldest_first=True), anchor)
