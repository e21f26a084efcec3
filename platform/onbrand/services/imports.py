"""LoRA files of other trainers: taken as they are, kept apart, and made into a model by a job that trains nothing.

The web tier knows no torch: a child looks at names, shapes and values (`storage.weights`), the job's own process on the
cluster converts and proves (`onbrand.training.importing`). What was sent is never served, and goes when the job ends.
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
from onbrand.lora_names import NUMBER_MAX, Dropped, ImportWishes, TextEncoderWish
from onbrand.services.brands import record
from onbrand.services.jobs import ENDED, IMPORT_KEY, JobRow, TrainingJob, checked_config, insert_job, must_be_name
from onbrand.services.room import must_have_room_to_import
from onbrand.services.rows import hidden, must_be_there
from onbrand.storage.layout import import_file
from onbrand.storage.store import BrandStore

IMPORT_BYTES_MAX = 512 * 2**20
"""What is sent in one request and read into memory once."""


class NewImport(BaseModel):
    """What a member says of the file.

    Args:
        trigger_word: what stands for ``[brand]`` in prompts; None: the brand's id.
        text_encoder: what becomes of layers of text encoders: the file is refused, or imported without them.
        lora_alpha: alpha of all layers, where the file does not say it and PEFT's `adapter_config.json` does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_type: str
    trigger_word: str | None = None
    name: str | None = None
    text_encoder: TextEncoderWish = "refuse"
    lora_alpha: float | None = Field(None, gt=0, le=NUMBER_MAX, allow_inf_nan=False)

    @property
    def wishes(self) -> ImportWishes:
        """What it says of the file's layers."""
        return ImportWishes(self.text_encoder, self.lora_alpha)


def is_import(config: Mapping[str, Any]) -> bool:
    """Whether a job with this configuration brings a file instead of training one."""
    return IMPORT_KEY in config


def must_be_importable(new: NewImport, served: Container[str]) -> dict[str, Any]:
    """What is kept of it in the job's configuration. Raises InvalidInput naming the field."""
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
    """A pending job that will make `data`, which a child has looked at, the brand's next version.

    Args:
        dropped: what the child says will be left out; kept in the job's configuration.

    Raises:
        InvalidInput: a field is out of bounds.
        NotFound: not the caller's brand.
        TooManyRequests: as many of the brand's jobs are open as may be.
        TooLarge: the brand or the caller would have too much.
    """
    said = must_be_importable(new, served)
    name = must_be_name(new.name if new.name is not None else f"{new.model_type} import")
    digest = (await anyio.to_thread.run_sync(hashlib.sha256, data)).hexdigest()
    async with hidden("brand"):
        await must_have_room_to_import(session, brand_id, len(data), limits)
    facts: dict[str, Any] = {"sha256": digest, "bytes": len(data), **_said(new.wishes)}
    if dropped is not None:
        facts["dropped"] = dropped.as_json()
    config = said | {IMPORT_KEY: facts}
    job = await insert_job(session, brand_id, user_id, JobRow(name, new.model_type, config), [], limits)
    key = import_file(brand_id, job.id)
    session.on_rollback(partial(anyio.to_thread.run_sync, store.delete, key))
    await anyio.to_thread.run_sync(store.write, key, data, "application/octet-stream")
    await record(session, brand_id, "model.import", {"job_id": job.id, "sha256": digest, "bytes": len(data)})
    return job


def _said(wishes: ImportWishes) -> dict[str, Any]:
    alpha = {} if wishes.lora_alpha is None else {"lora_alpha": wishes.lora_alpha}
    return {"text_encoder": wishes.text_encoder, **alpha}


async def read_import(session: Session, store: BrandStore, ticket: Ticket) -> bytes:
    """The file of the ticket's job, as it was sent. Raises NotFound (it brings none), Conflict (it has ended)."""
    row = await session.maybe(
        "select status, training_config from app.lora_training_jobs where brand_id = %s and id = %s",
        [ticket.brand_id, ticket.job_id],
    )
    job = must_be_there(row, "training job")
    if job["status"] in ENDED:
        raise Conflict(f"the job is {job['status']} already")
    if not is_import(job["training_config"]):
        raise NotFound("this job brings no file")
    data = await anyio.to_thread.run_sync(store.read, import_file(ticket.brand_id, ticket.job_id))
    digest = (await anyio.to_thread.run_sync(hashlib.sha256, data)).hexdigest()
    if digest != job["training_config"][IMPORT_KEY]["sha256"]:
        raise NotFound("the file is not the one that was sent")
    return data


async def drop_import(store: BrandStore, ticket: Ticket, config: Mapping[str, Any]) -> None:
    """The job has ended: what was sent goes. Nothing happens for a job that trained."""
    if is_import(config):
        await anyio.to_thread.run_sync(store.delete, import_file(ticket.brand_id, ticket.job_id))
