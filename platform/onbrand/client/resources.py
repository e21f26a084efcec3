"""The resources of a client, one class each: `client.assets.list("acme")`, `client.training_jobs.create(...)`."""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

from onbrand.client import monitor, objects
from onbrand.client.errors import ConnectionFailed
from onbrand.client.events import read_events
from onbrand.client.files import Captions, File, as_captions, as_part, save_at

if TYPE_CHECKING:
    from onbrand.client.client import Onbrand

__all__ = [
    "Assets",
    "Brands",
    "Documents",
    "Generations",
    "Images",
    "Keys",
    "Models",
    "Tokens",
    "TrainingJobs",
    "Users",
]

A = TypeVar("A", bound=objects.ApiModel)
BrandLike = str | objects.Brand
_STREAM_RETRIES = 5


def brand_path(brand: BrandLike, *rest: str) -> str:
    """The path ``/v1/brands/acme/assets/...``, with every segment quoted."""
    brand_id = brand.id if isinstance(brand, objects.Brand) else brand
    return "/".join(["/v1/brands", *(quote(part, safe="") for part in (brand_id, *rest))])


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None; the platform's defaults apply to the others."""
    return {name: value for name, value in fields.items() if value is not None}


class Resource:
    """Base class of the API's resources, bound to a client."""

    def __init__(self, client: Onbrand) -> None:
        self._client = client
        self._transport = client.transport

    def _read(self, kind: type[A], body: Any) -> A:
        thing = kind.model_validate(body)
        return thing.attach(self._client) if isinstance(thing, objects.Attached) else thing

    def _get(self, kind: type[A], path: str) -> A:
        return self._read(kind, self._transport.json("GET", path))

    def _post(self, kind: type[A], path: str, body: Any = None, **parts: Any) -> A:
        return self._read(kind, self._transport.json("POST", path, json=body, **parts))

    def _pages(
        self, kind: type[A], path: str, limit: int | None = None, cursor: str | None = None, **asked: Any
    ) -> Iterator[A]:
        """All objects of a list; pages of `limit` objects are fetched lazily."""
        while True:
            page = self._transport.json("GET", path, params={"limit": limit, "cursor": cursor, **asked})
            yield from (self._read(kind, item) for item in page["data"])
            cursor = page.get("next_cursor")
            if not page.get("has_more") or cursor is None:
                return

    def _events(self, path: str, after: int | None) -> Iterator[objects.Event]:
        """Events until the job has ended; a broken stream resumes after the last event."""
        left = _STREAM_RETRIES
        while True:
            headers = {"accept": "text/event-stream"} | ({"last-event-id": str(after)} if after is not None else {})
            try:
                with self._transport.lines(path, headers) as lines:
                    for event in read_events(lines):
                        yield event
                        after, left = event.id, _STREAM_RETRIES
                        if event.kind == "status" and event.data.get("status") in ("completed", "failed", "canceled"):
                            return
            except ConnectionFailed:
                if left == 0:
                    raise
            if left == 0:
                return
            left -= 1
            time.sleep(0.2)


class Users(Resource):
    """Accounts."""

    def create(self, email: str, password: str) -> objects.User:
        """Sign up."""
        return self._post(objects.User, "/v1/users", {"email": email, "password": password})

    def me(self) -> objects.Me:
        """The token's account and brands."""
        return self._get(objects.Me, "/v1/me")


class Tokens(Resource):
    """Bearer tokens."""

    def create(self, email: str, password: str, brand: BrandLike | None = None) -> objects.Token:
        """Log in; with `brand`, the token is limited to that brand. Unlike `client.log_in`, does not use the token."""
        brand_id = brand.id if isinstance(brand, objects.Brand) else brand
        return self._post(objects.Token, "/v1/tokens", given(email=email, password=password, brand_id=brand_id))


class Brands(Resource):
    """The caller's brands."""

    def create(self, brand_id: str, name: str | None = None, home_region: str | None = None) -> objects.Brand:
        """Create a brand; the caller becomes its admin."""
        return self._post(
            objects.Brand, "/v1/brands", given(id=brand_id, name=name or brand_id, home_region=home_region)
        )

    def list(self) -> Iterator[objects.Brand]:
        return self._pages(objects.Brand, "/v1/brands")

    def get(self, brand: BrandLike) -> objects.Brand:
        return self._get(objects.Brand, brand_path(brand))


class Keys(Resource):
    """API keys, created and revoked by logged-in admins; `Onbrand(url, token=key)` uses one."""

    def create(
        self, brand: BrandLike, name: str, scopes: Sequence[str], *, expires_at: datetime | None = None
    ) -> objects.ApiKey:
        """Create a key that acts for the caller in one brand. The result's `key` cannot be read again.

        Args:
            scopes: any of ``read``, ``upload``, ``train``, ``generate`` and ``manage`` (admin rights).
            expires_at: expiry with time zone; None never expires.
        """
        ends = None if expires_at is None else expires_at.isoformat()
        body = given(name=name, scopes=[*scopes], expires_at=ends)
        return self._post(objects.ApiKey, brand_path(brand, "keys"), body)

    def list(self, brand: BrandLike) -> Iterator[objects.ApiKey]:
        return self._pages(objects.ApiKey, brand_path(brand, "keys"))

    def get(self, brand: BrandLike, key_id: str) -> objects.ApiKey:
        return self._get(objects.ApiKey, brand_path(brand, "keys", key_id))

    def revoke(self, brand: BrandLike, key_id: str) -> None:
        self._transport.send("DELETE", brand_path(brand, "keys", key_id))


class Assets(Resource):
    """Training pictures."""

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

    def list(self, brand: BrandLike) -> Iterator[objects.Asset]:
        return self._pages(objects.Asset, brand_path(brand, "assets"))

    def get(self, brand: BrandLike, asset_id: str) -> objects.Asset:
        return self._get(objects.Asset, brand_path(brand, "assets", asset_id))

    def set_caption(self, brand: BrandLike, asset_id: str, caption: str) -> objects.Asset:
        """Add a new version of the caption; earlier ones are kept."""
        path = brand_path(brand, "assets", asset_id)
        return self._read(objects.Asset, self._transport.json("PATCH", path, json={"caption": caption}))

    def link(self, brand: BrandLike, asset_id: str) -> objects.Link:
        return self._get(objects.Link, brand_path(brand, "assets", asset_id, "content"))

    def delete(self, brand: BrandLike, asset_id: str) -> None:
        self._transport.send("DELETE", brand_path(brand, "assets", asset_id))


class Documents(Resource):
    """Documents of a brand."""

    def upload(self, brand: BrandLike, file: File, title: str | None = None) -> objects.Document:
        """Upload a PDF or Markdown file as the first or next version of its title.

        Args:
            file: a path, a (name, bytes) pair or an open binary file; its name ends in ``.pdf`` or ``.md``.
            title: defaults to the file's name without its extension.
        """
        path = brand_path(brand, "documents")
        fields = {"title": title} if title is not None else {}
        return self._post(objects.Document, path, data=fields, files=[("file", as_part(file))], timeout=120.0)

    def list(self, brand: BrandLike) -> Iterator[objects.Document]:
        """The newest version of each document."""
        return self._pages(objects.Document, brand_path(brand, "documents"))

    def get(self, brand: BrandLike, document_id: str) -> objects.Document:
        return self._get(objects.Document, brand_path(brand, "documents", document_id))

    def versions(self, brand: BrandLike, document_id: str) -> builtins.list[objects.Document]:
        """All versions of the document, given the id of any of them; newest first."""
        return list(self._pages(objects.Document, brand_path(brand, "documents", document_id, "versions")))

    def link(self, brand: BrandLike, document_id: str) -> objects.Link:
        return self._get(objects.Link, brand_path(brand, "documents", document_id, "content"))

    def delete(self, brand: BrandLike, document_id: str) -> None:
        """Delete one version (admins only)."""
        self._transport.send("DELETE", brand_path(brand, "documents", document_id))


class TrainingJobs(Resource):
    """Training jobs."""

    def check(
        self,
        brand: BrandLike,
        model_type: str,
        *,
        training_asset_ids: Sequence[str],
        training_config: Mapping[str, Any] | None = None,
    ) -> objects.DataCheck:
        """Check the pictures and captions that such a job would train on; no job is created."""
        body = given(
            model_type=model_type,
            training_config=dict(training_config or {}),
            training_asset_ids=list(training_asset_ids),
        )
        return self._post(objects.DataCheck, f"{brand_path(brand, 'training-jobs')}:check", body, timeout=1800.0)

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

    def list(self, brand: BrandLike) -> Iterator[objects.TrainingJob]:
        return self._pages(objects.TrainingJob, brand_path(brand, "training-jobs"))

    def get(self, brand: BrandLike, job_id: str) -> objects.TrainingJob:
        return self._get(objects.TrainingJob, brand_path(brand, "training-jobs", job_id))

    def rename(self, brand: BrandLike, job_id: str, name: str) -> objects.TrainingJob:
        path = brand_path(brand, "training-jobs", job_id)
        return self._read(objects.TrainingJob, self._transport.json("PATCH", path, json={"name": name}))

    def cancel(self, brand: BrandLike, job_id: str) -> objects.TrainingJob:
        return self._post(objects.TrainingJob, brand_path(brand, "training-jobs", job_id, "cancel"))

    def stop(self, brand: BrandLike, job_id: str) -> objects.TrainingJob:
        """Stop a job that trains now; it publishes its best step so far."""
        return self._post(objects.TrainingJob, brand_path(brand, "training-jobs", job_id, "stop"))

    def retry(self, brand: BrandLike, job_id: str) -> objects.TrainingJob:
        """Create a job like a failed or canceled one; it resumes from that job's last checkpoint if it fits."""
        return self._post(objects.TrainingJob, brand_path(brand, "training-jobs", job_id, "retry"))

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
        self._transport.send("DELETE", brand_path(brand, "training-jobs", job_id))


class Models(Resource):
    """Published adapters."""

    def list(self, brand: BrandLike) -> Iterator[objects.Model]:
        return self._pages(objects.Model, brand_path(brand, "models"))

    def get(self, brand: BrandLike, model: str) -> objects.Model:
        """One adapter, by id or by name (``flux-lora-v2``)."""
        return self._get(objects.Model, brand_path(brand, "models", model))

    def link(self, brand: BrandLike, model: str) -> objects.Link:
        """A signed link to the safetensors file; the platform records the request."""
        return self._get(objects.Link, brand_path(brand, "models", model, "download"))

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

    def delete(self, brand: BrandLike, model: str) -> None:
        self._transport.send("DELETE", brand_path(brand, "models", model))


class Generations(Resource):
    """Generations."""

    def create(
        self,
        brand: BrandLike,
        prompt: str,
        *,
        model: str | None = None,
        model_type: str | None = None,
        negative_prompt: str | None = None,
        num_images: int | None = None,
        width: int | None = None,
        height: int | None = None,
        seed: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        true_cfg_scale: float | None = None,
        lora_scale: float | None = None,
        models: Sequence[Mapping[str, Any]] | None = None,
        sampler: str | None = None,
        exclusive: bool | None = None,
        preview_every: int | None = None,
        quality: str | None = None,
        output_format: str | None = None,
        output_compression: int | None = None,
        wait_seconds: int = 0,
        idempotency_key: str | None = None,
    ) -> objects.Generation:
        """Draw `num_images` pictures of `prompt` with the adapter `model`, or with the base of `model_type`.

        Args:
            models: instead of `model`: the sum of up to four adapters, each ``{"model": ..., "scale": ...}``.
            sampler: ``euler`` or ``dpm++2m``; ``flow-euler`` for flux.
            exclusive: share no forward pass with another brand.
            preview_every: steps between previews of each picture in `events` (``preview``, a data URL).
            quality: ``low``, ``medium`` or ``high``, instead of `num_inference_steps`. `output_compression`: 0 to 100.
            wait_seconds: return when done, or after this many seconds; 0 returns at once.
        """
        body = given(
            prompt=prompt,
            model=model,
            model_type=model_type,
            negative_prompt=negative_prompt,
            num_images=num_images,
            width=width,
            height=height,
            seed=seed,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            true_cfg_scale=true_cfg_scale,
            lora_scale=lora_scale,
            models=None if models is None else [dict(use) for use in models],
            sampler=sampler,
            exclusive=exclusive,
            preview_every=preview_every,
            quality=quality,
            output_format=output_format,
            output_compression=output_compression,
        )
        return self._begin(brand, body, wait_seconds, idempotency_key)

    def _begin(self, brand: BrandLike, body: Any, wait_seconds: int, idempotency_key: str | None) -> objects.Generation:
        return self._post(
            objects.Generation,
            brand_path(brand, "generations"),
            body,
            headers={"prefer": f"wait={wait_seconds}"} if wait_seconds else {},
            idempotency_key=idempotency_key,
            timeout=wait_seconds + 60.0,
        )

    def list(self, brand: BrandLike) -> Iterator[objects.Generation]:
        return self._pages(objects.Generation, brand_path(brand, "generations"))

    def get(self, brand: BrandLike, generation_id: str) -> objects.Generation:
        return self._get(objects.Generation, brand_path(brand, "generations", generation_id))

    def cancel(self, brand: BrandLike, generation_id: str) -> objects.Generation:
        return self._post(objects.Generation, brand_path(brand, "generations", generation_id, "cancel"))

    def events(self, brand: BrandLike, generation_id: str, after: int | None = None) -> Iterator[objects.Event]:
        return self._events(brand_path(brand, "generations", generation_id, "events"), after)


class Images(Resource):
    """Generated pictures."""

    def list(self, brand: BrandLike) -> Iterator[objects.Image]:
        return self._pages(objects.Image, brand_path(brand, "images"))

    def get(self, brand: BrandLike, image_id: str) -> objects.Image:
        return self._get(objects.Image, brand_path(brand, "images", image_id))

    def link(self, brand: BrandLike, image_id: str) -> objects.Link:
        return self._get(objects.Link, brand_path(brand, "images", image_id, "content"))

    def delete(self, brand: BrandLike, image_id: str) -> None:
        self._transport.send("DELETE", brand_path(brand, "images", image_id))
