"""Import of LoRA files of other trainers: a job makes the uploaded file a model without training.

The web tier has no torch: a child process checks names, shapes and values (`sandbox.weights`), and the job's process on
the cluster converts and verifies (`onbrand.training.lora_import`).
The file is never served, and is deleted with the job at the latest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from functools import partial
from typing import Any

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field

from onbrand.brand import Ticket
from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import Conflict, InvalidInput, NotFound
from onbrand.internal.training import IMPORT_KEY
from onbrand.lora_names import NUMBER_MAX, Dropped, ImportOptions, TextEncoderOption
from onbrand.services.audit import write_audit_line
from onbrand.services.events import ENDED_STATES
from onbrand.services.job_validation import checked_config
from onbrand.services.jobs import JobRow, insert_job
from onbrand.services.pagination import forbidden_as_not_found, must_be_there
from onbrand.services.storage_quota import must_have_room_to_import
from onbrand.services.training_job import TrainingJob
from onbrand.storage.layout import import_file
from onbrand.storage.store import BrandStore
from onbrand.visible import must_be_name

IMPORT_BYTES_MAX = 512 * 2**20
"""Maximum size of a file, which is sent in one request and read into memory once."""


class NewImport(BaseModel):
    """A member's description of the file.

    Args:
        trigger_word: replaces ``[brand]`` in prompts; None: the brand's id.
        text_encoder: handling of text-encoder layers: refuse the file, or import it without them.
        lora_alpha: alpha of all layers, if PEFT's `adapter_config.json` holds it and the file does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_type: str
    trigger_word: str | None = None
    name: str | None = None
    text_encoder: TextEncoderOption = "refuse"
    lora_alpha: float | None = Field(None, gt=0, le=NUMBER_MAX, allow_inf_nan=False)

    @property
    def options(self) -> ImportOptions:
        """The options for the file's layers."""
        return ImportOptions(self.text_encoder, self.lora_alpha)


def is_import(config: Mapping[str, Any]) -> bool:
    """Whether a job with this configuration imports a file instead of training."""
    return IMPORT_KEY in config


def must_be_importable(new: NewImport, served: Container[str]) -> dict[str, Any]:
    """The fields to keep in the job's configuration. Raises InvalidInput naming the field."""
    said = {} if new.trigger_word is None else {"trigger_word": new.trigger_word}
    checked_config(new.model_type, said)
    if new.model_type not in served:
        raise InvalidInput(f"{new.model_type} is not served here", param="model_type")
    return said


async def create_import(
    session: Session,
    store: BrandStore,
    brand_id: str,
    user_id: str,
    new: NewImport,
    data: bytes,
    served: Container[str],
    limits: Limits = Limits(),
    dropped: Dropped | None = None,
) -> TrainingJob:
    """Create a pending job that makes `data`, which a child process has checked, the brand's next version.

    Args:
        dropped: the layers to leave out, found by the child process; kept in the job's configuration.

    Raises:
        InvalidInput: a field is out of bounds.
        NotFound: not the caller's brand.
        TooManyRequests: too many of the brand's jobs are open.
        TooLarge: the brand or the caller would have too much.
    """
    said = must_be_importable(new, served)
    name = must_be_name(new.name if new.name is not None else f"{new.model_type} import")
    digest = (await anyio.to_thread.run_sync(hashlib.sha256, data)).hexdigest()
    async with forbidden_as_not_found("brand"):
        await must_have_room_to_import(session, brand_id, len(data), limits)
    facts: dict[str, Any] = {"sha256": digest, "bytes": len(data), **_said(new.options)}
    if dropped is not None:
        facts["dropped"] = dropped.as_json()
    config = said | {IMPORT_KEY: facts}
    job = await insert_job(session, brand_id, user_id, JobRow(name, new.model_type, config), [], limits)
    key = import_file(brand_id, job.id)
    session.on_rollback(partial(anyio.to_thread.run_sync, store.delete, key))
    await anyio.to_thread.run_sync(store.write, key, data, "application/octet-stream")
    await write_audit_line(session, brand_id, "model.import", {"job_id": job.id, "sha256": digest, "bytes": len(data)})
    return job


def _said(options: ImportOptions) -> dict[str, Any]:
    alpha = {} if options.lora_alpha is None else {"lora_alpha": options.lora_alpha}
    return {"text_encoder": options.text_encoder, **alpha}


async def read_import(session: Session, store: BrandStore, ticket: Ticket) -> bytes:
    """The uploaded file of the ticket's job. Raises NotFound (none, or its bytes changed), Conflict (it has ended)."""
    row = await session.maybe(
        "select status, training_config from app.lora_training_jobs where brand_id = %s and id = %s",
        [ticket.brand_id, ticket.job_id],
    )
    job = must_be_there(row, "training job")
    if job["status"] in ENDED_STATES:
        raise Conflict(f"the job is {job['status']} already")
    if not is_import(job["training_config"]):
        raise NotFound("this job brings no file")
    data = await anyio.to_thread.run_sync(store.read, import_file(ticket.brand_id, ticket.job_id))
    digest = (await anyio.to_thread.run_sync(hashlib.sha256, data)).hexdigest()
    if digest != job["training_config"][IMPORT_KEY]["sha256"]:
        raise NotFound("the file is not the one that was sent")
    return data


async def drop_import(store: BrandStore, ticket: Ticket, config: Mapping[str, Any]) -> None:
    """Delete the uploaded file of a job that has ended; a training job has none."""
    if is_import(config):
        await anyio.to_thread.run_sync(store.delete, import_file(ticket.brand_id, ticket.job_id))
