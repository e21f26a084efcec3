"""Publication of a job's adapter: the brand's next version of its family."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import anyio.to_thread
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onbrand.brand import Ticket
from onbrand.db.session import Session
from onbrand.errors import AdapterRefused, Conflict, InvalidInput, NotFound
from onbrand.families.spec import RANK_MAX
from onbrand.sandbox.checker import Checker
from onbrand.services.events import ENDED_STATES, append_event, must_be_finite
from onbrand.services.imports import drop_import
from onbrand.services.models import Model, find_model_of_job, write_metadata
from onbrand.services.training_worker import lock_job, record_of_job, security_log, store_object
from onbrand.storage.layout import model_file
from onbrand.storage.store import BrandStore


class PublishFacts(BaseModel):
    """The worker's description of the adapter to publish."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=1, le=RANK_MAX)
    trigger_word: str = Field(min_length=1, max_length=100)
    base_revision: str = Field(min_length=1, max_length=200)
    metrics: dict[str, Any] = Field(default_factory=dict)


async def publish(
    session: Session,
    store: BrandStore,
    ticket: Ticket,
    data: bytes,
    facts: Mapping[str, Any] | PublishFacts,
    checker: Checker | None = None,
) -> Model:
    """Make `data` the brand's next version of the job's family and complete the job: rows and bytes together.

    Publishing the same file again (after a lost answer) returns the same model.

    Raises NotFound, Conflict (the job ended otherwise), InvalidInput, and AdapterRefused, a security event: our
    trainers verify a file before they publish it.
    """
    checked = _checked(facts)
    try:
        checker = checker or Checker()
        await checker.run(checker.weights, data)
    except AdapterRefused as problem:
        security_log.warning("adapter of job %s refused: %s", ticket.job_id, problem.message)
        raise
    digest = (await anyio.to_thread.run_sync(hashlib.sha256, data)).hexdigest()
    job = await lock_job(session, ticket)
    if job["status"] in ENDED_STATES:
        return await _published_before(session, ticket, job, digest)
    if job["status"] == "pending":
        await session.run(
            "update app.lora_training_jobs set status = 'training', started_at = now() where id = %s", [ticket.job_id]
        )
    model = await _insert_model(session, store, ticket, job["model_type"], data, digest, checked)
    await session.run(
        "update app.lora_training_jobs set status = 'completed', progress = 100, completed_at = now(),"
        " heartbeat_at = now(), model_id = %s, model_url = %s, error = null where brand_id = %s and id = %s",
        [model.id, f"models/{model.object_name}", ticket.brand_id, ticket.job_id],
    )
    await append_event(session, ticket, "status", {"status": "completed", "model": model.name})
    await write_metadata(session, store, ticket.brand_id)
    await record_of_job(session, ticket, "model.publish", model_id=model.id, name=model.name, sha256=model.sha256)
    await drop_import(store, ticket, job["training_config"])
    return model


def _checked(facts: Mapping[str, Any] | PublishFacts) -> PublishFacts:
    try:
        checked = facts if isinstance(facts, PublishFacts) else PublishFacts(**facts)
    except (ValidationError, TypeError) as problem:
        name = problem.errors()[0]["loc"][0] if isinstance(problem, ValidationError) else "facts"
        raise InvalidInput(f"the adapter's {name} is not acceptable", param=str(name)) from None
    must_be_finite(checked.metrics)
    return checked


async def _published_before(session: Session, ticket: Ticket, job: Mapping[str, Any], digest: str) -> Model:
    model = await find_model_of_job(session, ticket.brand_id, ticket.job_id)
    if job["status"] != "completed" or model is None or model.sha256 != digest:
        raise Conflict(f"the job is {job['status']} already")
    return model


async def _insert_model(
    session: Session, store: BrandStore, ticket: Ticket, family: str, data: bytes, digest: str, facts: PublishFacts
) -> Model:
    taken = await session.one("select private.next_number(%s, %s, 1) as version", [ticket.brand_id, f"model:{family}"])
    key = model_file(ticket.brand_id, family, taken["version"])
    await store_object(session, store, ticket, key, data, key.content_type)
    await session.run(
        "insert into app.models (brand_id, job_id, user_id, model_type, version, object_name, sha256, bytes, rank,"
        " trigger_word, base_revision, metrics) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            ticket.brand_id, ticket.job_id, ticket.on_behalf_of, family, taken["version"], key.name, digest, len(data),
            facts.rank, facts.trigger_word, facts.base_revision, Jsonb(facts.metrics),
        ],
    )  # fmt: skip
    model = await find_model_of_job(session, ticket.brand_id, ticket.job_id)
    if model is None:
        raise NotFound("there is no such model")
    return model
