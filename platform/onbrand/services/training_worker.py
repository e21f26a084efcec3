"""Training jobs, the system's side: reads and reports of a worker's ticket; a job ends exactly once.

Every function takes a session opened with the ticket; the row policies check brand, job and member again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio.to_thread
from psycopg.types.json import Jsonb

from onbrand.brand import Ticket, with_trigger_word
from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import Conflict, InvalidInput
from onbrand.internal.log_lines import Line
from onbrand.internal.training import ReportResponse, TrainingSpec
from onbrand.sandbox.image_headers import image_facts
from onbrand.services.audit import write_audit_line
from onbrand.services.continuation import start_for_worker
from onbrand.services.data_checks import Finding
from onbrand.services.events import ENDED_STATES, append_event, must_be_finite
from onbrand.services.imports import drop_import
from onbrand.services.job_queue import WaitingFor
from onbrand.services.logs import write
from onbrand.services.pagination import known_id, must_be_there
from onbrand.storage.layout import Drawn, DrawnBy, Key, sample_image
from onbrand.storage.store import BrandStore

_EXT = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
_MESSAGE_CHARS = 2_000
security_log = logging.getLogger("onbrand.security")


async def must_be_open(session: Session, ticket: Ticket) -> None:
    """Raise NotFound, or Conflict when the ticket's job has ended."""
    await _open_job(session, ticket)


async def spec_for_worker(session: Session, ticket: Ticket) -> TrainingSpec:
    """The job of the ticket. Raises NotFound, Conflict (it has ended)."""
    job = await _open_job(session, ticket)
    rows = await session.all(
        "select a.id, a.object, a.content_type, a.sha256, a.width, a.height, a.features,"
        " split_part(a.object_name, '/', 2) as file,"
        " (select c.caption from app.asset_captions c where c.brand_id = a.brand_id and c.asset_id = a.id"
        "  order by c.version desc limit 1) as caption"
        " from app.brand_assets a order by a.created_at, a.id"
    )
    word = trigger_word_of(ticket.brand_id, job["training_config"])
    assets = [{**row, "caption": with_trigger_word(row["caption"], word)} for row in rows]
    return TrainingSpec.model_validate(
        {
            **job,
            "job_id": job["id"],
            "assets": assets,
            "run_id": job["run_id"] or job["id"],
            "start": await start_for_worker(session, job),
        }
    )


def trigger_word_of(brand_id: str, config: Mapping[str, Any]) -> str:
    """The replacement of ``[brand]``: the configured word, else the brand's id."""
    return config.get("trigger_word") or brand_id


async def run_of(session: Session, ticket: Ticket) -> str:
    """The run that the ticket's job writes: its own, or that of the job it retries. Raises NotFound, Conflict."""
    job = await _open_job(session, ticket)
    return str(job["run_id"] or job["id"])


async def asset_names(session: Session, ticket: Ticket) -> list[str]:
    """The keys of the pictures of the ticket's job. Raises NotFound, Conflict (it has ended)."""
    await _open_job(session, ticket)
    rows = await session.all("select a.object_name from app.brand_assets a order by a.object_name")
    return [row["object_name"] for row in rows]


async def read_asset(session: Session, store: BrandStore, asset_id: str) -> tuple[bytes, str]:
    """Bytes and content type of a picture of the ticket's job. Raises NotFound for any other."""
    row = await session.maybe(
        "select object_name, content_type from app.brand_assets where id = %s", [known_id(asset_id, "asset")]
    )
    row = must_be_there(row, "asset")  # type: ignore[assignment]
    key = Key("training-data", row["object_name"])  # type: ignore[index]
    return await anyio.to_thread.run_sync(store.read, key), row["content_type"]  # type: ignore[index]


async def submitted(session: Session, ticket: Ticket, provider_job_id: str, attempt: int) -> None:
    """Store the attempt and the provider's id for it; repeating the same attempt changes nothing.

    Raises NotFound, Conflict (it has ended, or a later attempt began).
    """
    job = await _lock_open_job(session, ticket)
    if job["attempts"] == attempt and job["provider_job_id"] == provider_job_id:
        return
    if job["attempts"] != attempt - 1:
        raise Conflict(f"attempt {job['attempts']} of this job has begun already")
    await session.run(
        "update app.lora_training_jobs set attempts = %s, provider_job_id = %s, heartbeat_at = now(),"
        " waiting_for = null, waiting_since = null where brand_id = %s and id = %s",
        [attempt, provider_job_id, ticket.brand_id, ticket.job_id],
    )
    await write(session, ticket, [Line(code="submitted", facts={"attempt": attempt})])
    await record_of_job(session, ticket, "job.submit")


async def waits(session: Session, ticket: Ticket, reason: WaitingFor) -> None:
    """Store the reason why the job waits, for its owner. Raises NotFound, Conflict (it has ended)."""
    job = await _lock_open_job(session, ticket)
    if job["waiting_for"] == reason:
        return
    await session.run(
        "update app.lora_training_jobs set waiting_for = %s, waiting_since = now() where brand_id = %s and id = %s",
        [reason, ticket.brand_id, ticket.job_id],
    )
    await append_event(session, ticket, "waiting", {"for": reason})


async def report(
    session: Session,
    ticket: Ticket,
    progress: int | None = None,
    metrics: Mapping[str, Any] | None = None,
    lines: Sequence[Line] = (),
    findings: Sequence[Finding] | None = None,
) -> ReportResponse:
    """Store progress 0 to 100, metrics and log lines; the first report sets the job to `training`.

    Args:
        findings: of the data check; they replace earlier ones in the job's `metrics` and appear in no event.

    Raises NotFound, Conflict (it has ended), InvalidInput.
    """
    if progress is not None and not 0 <= progress <= 100:
        raise InvalidInput("progress is 0 to 100", param="progress")
    numbers = must_be_finite(metrics or {})
    found = {} if findings is None else {"findings": [finding.model_dump(mode="json") for finding in findings]}
    before = await _lock_open_job(session, ticket)
    await session.run(
        "update app.lora_training_jobs set status = 'training', started_at = coalesce(started_at, now()),"
        " heartbeat_at = now(), progress = coalesce(%s, progress), metrics = metrics || %s"
        " where brand_id = %s and id = %s",
        [progress, Jsonb(numbers | found), ticket.brand_id, ticket.job_id],
    )
    if before["status"] == "pending":
        await append_event(session, ticket, "status", {"status": "training"})
    await write(session, ticket, lines)
    said = {"progress": progress, "metrics": numbers or None}
    if any(value is not None for value in said.values()):
        await append_event(
            session, ticket, "progress", {name: value for name, value in said.items() if value is not None}
        )
    if before["status"] == "pending":
        await record_of_job(session, ticket, "job.start")
    return ReportResponse(
        cancel_requested=before["cancel_requested_at"] is not None,
        stop_requested=before["stop_requested_at"] is not None,
    )


async def add_sample(
    session: Session,
    store: BrandStore,
    ticket: Ticket,
    step: int,
    index: int,
    data: bytes,
    content_type: str = "image/png",
    drawn_by: DrawnBy = "adapter",
    limits: Limits | None = None,
) -> str:
    """Store a sample picture; repeating it changes nothing. Returns its bucket and key.

    Args:
        drawn_by: the `base` draws each prompt once, for comparison with the adapter; `step` is 0 then.
    """
    if content_type not in _EXT or not 0 <= step <= 10**6 or not 0 <= index < 100:
        raise InvalidInput("a sample has a picture's type, a step and an index below 100", param="step")
    image_facts(data)
    job = await _lock_open_job(session, ticket)
    key = sample_image(ticket.brand_id, ticket.job_id, Drawn(drawn_by, step, index), _EXT[content_type])
    url = f"{key.bucket}/{key.name}"
    if url in job["sample_images_urls"]:
        return url
    await session.run(
        "update app.lora_training_jobs set sample_images_urls = sample_images_urls || to_jsonb(%s::text),"
        " status = 'training', started_at = coalesce(started_at, now()), heartbeat_at = now()"
        " where brand_id = %s and id = %s",
        [url, ticket.brand_id, ticket.job_id],
    )
    await store_object(session, store, ticket, key, data, content_type)
    await append_event(
        session, ticket, "sample", {"step": step, "index": index, "drawn_by": drawn_by, "object_name": key.name}
    )
    await record_of_job(session, ticket, "job.sample", step=step, index=index)
    return url


async def fail(session: Session, ticket: Ticket, code: str, message: str, store: BrandStore | None = None) -> None:
    """End the job as failed, with a reason for its owner. Raises NotFound, Conflict (it ended otherwise).

    Args:
        store: to delete an import's file from; without it the file stays until the job is deleted.
    """
    error = {"code": code[:100], "message": message[:_MESSAGE_CHARS]}
    await _end(session, ticket, "failed", error, store)


async def canceled(session: Session, ticket: Ticket, store: BrandStore | None = None) -> None:
    """End the job at its owner's request. Raises NotFound, Conflict (no request, or it ended otherwise).

    Args:
        store: as for `fail`.
    """
    job = await lock_job(session, ticket)
    if job["status"] not in ENDED_STATES and job["cancel_requested_at"] is None:
        raise Conflict("nobody asked to cancel this job")
    await _end(session, ticket, "canceled", None, store)


async def _end(
    session: Session, ticket: Ticket, status: str, error: dict[str, str] | None, store: BrandStore | None
) -> None:
    job = await lock_job(session, ticket)
    if job["status"] == status:
        return
    if job["status"] in ENDED_STATES:
        raise Conflict(f"the job is {job['status']} already")
    await session.run(
        "update app.lora_training_jobs set status = %s, error = %s, completed_at = now()"
        " where brand_id = %s and id = %s",
        [status, Jsonb(error) if error else None, ticket.brand_id, ticket.job_id],
    )
    await append_event(session, ticket, "status", {"status": status, **({"error": error} if error else {})})
    if error is None:
        await record_of_job(session, ticket, "job.canceled")
    else:
        await record_of_job(session, ticket, "job.fail", code=error["code"])
    if store is not None:
        await drop_import(store, ticket, job["training_config"])


async def record_of_job(session: Session, ticket: Ticket, what: str, **about: Any) -> None:
    """Write a line to the brand's record; call it last in the transaction."""
    await write_audit_line(session, ticket.brand_id, what, {"job_id": ticket.job_id, **about})


async def _open_job(session: Session, ticket: Ticket) -> Mapping[str, Any]:
    row = await session.maybe(
        "select * from app.lora_training_jobs where brand_id = %s and id = %s", [ticket.brand_id, ticket.job_id]
    )
    return _must_be_open(must_be_there(row, "training job"))


async def lock_job(session: Session, ticket: Ticket) -> Mapping[str, Any]:
    """The job's row, locked until the transaction ends: reports, samples and endings come one after another."""
    row = await session.maybe(
        "select * from app.lora_training_jobs where brand_id = %s and id = %s for update",
        [ticket.brand_id, ticket.job_id],
    )
    return must_be_there(row, "training job")


async def _lock_open_job(session: Session, ticket: Ticket) -> Mapping[str, Any]:
    return _must_be_open(await lock_job(session, ticket))


def _must_be_open(job: Mapping[str, Any]) -> Mapping[str, Any]:
    if job["status"] in ENDED_STATES:
        raise Conflict(f"the job is {job['status']} already")
    return job


async def store_object(
    session: Session, store: BrandStore, ticket: Ticket, key: Key, data: bytes, content_type: str
) -> None:
    """Insert the object's row, then write its bytes; a rollback deletes the bytes."""
    await session.run(
        "insert into storage.objects (bucket_id, name, user_id, content_type, bytes) values (%s, %s, %s, %s, %s)",
        [key.bucket, key.name, ticket.on_behalf_of, content_type, len(data)],
    )
    session.on_rollback(partial(anyio.to_thread.run_sync, store.delete, key))
    await anyio.to_thread.run_sync(store.write, key, data, content_type)
