"""Generations, the system's side: reads and reports of a replica's ticket; a generation ends exactly once.

Every function takes a session opened with the ticket; the row policies check brand, generation and member again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio.to_thread
from psycopg.types.json import Jsonb
from pydantic import TypeAdapter, ValidationError

from onbrand.brand import Ticket
from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import Conflict, EngineLost, InvalidInput, TicketRefused
from onbrand.internal.training import ReportResponse
from onbrand.sandbox.image_headers import image_facts
from onbrand.services.audit import write_audit_line
from onbrand.services.events import ENDED_STATES, append_event, must_be_finite
from onbrand.services.generations import CutText
from onbrand.services.images import Image
from onbrand.services.pagination import must_be_there
from onbrand.services.storage_quota import must_have_fitted, must_not_be_full
from onbrand.storage.layout import Key, generated_image
from onbrand.storage.store import BrandStore

_EXT = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
_MESSAGE_CHARS = 2_000
LOST_MAX = 8
"""Maximum engine losses of a generation. It is not started again after more, since it may be their cause."""
security_log = logging.getLogger("onbrand.security")

RECEIPT_NAMES = (
    "brand_id",
    "adapters",
    "base_revision",
    "sampler",
    "num_inference_steps",
    "seed",
    "batch_sizes",
    "slot_generation",
)
"""Required fields of a picture's receipt."""


async def must_be_open(session: Session, ticket: Ticket) -> None:
    """Raise NotFound, or Conflict when the ticket's generation has ended."""
    row = await session.maybe(
        "select status from app.generations where brand_id = %s and id = %s", [ticket.brand_id, ticket.job_id]
    )
    _must_be_open(must_be_there(row, "generation"))


async def start_generation(session: Session, ticket: Ticket) -> ReportResponse:
    """Set the generation to `running`; repeating is allowed. Raises NotFound, Conflict (it has ended)."""
    before = await _lock_open(session, ticket)
    if before["status"] == "pending":
        await session.run(
            "update app.generations set status = 'running', started_at = now(), heartbeat_at = now() where id = %s",
            [ticket.job_id],
        )
        await append_event(session, ticket, "status", {"status": "running"})
        await _record(session, ticket, "generation.start")
    return ReportResponse(cancel_requested=before["cancel_requested_at"] is not None)


async def report_generation(session: Session, ticket: Ticket, progress: int, lost: bool = False) -> ReportResponse:
    """Store progress 0 to 100, with an event if it changed, and the heartbeat.

    Args:
        lost: the engine was lost, and the caller asks another one.

    Raises NotFound, Conflict (it has ended), InvalidInput, EngineLost (it was lost too often already).
    """
    if not 0 <= progress <= 100:
        raise InvalidInput("progress is 0 to 100", param="progress")
    before = await _lock_open(session, ticket)
    await _keep(session, ticket, before, lost, progress)
    if progress != before["progress"]:
        await append_event(session, ticket, "progress", {"progress": progress})
    return ReportResponse(cancel_requested=before["cancel_requested_at"] is not None)


async def take_over(session: Session, ticket: Ticket, heard_at: datetime | None) -> bool:
    """Take ownership if the last heartbeat is still `heard_at`, else return False.

    A generation that was running counts as lost once more.

    Raises NotFound, Conflict (it has ended), EngineLost (it was lost too often already).
    """
    row = await _lock_open(session, ticket)
    if row["heartbeat_at"] != heard_at:
        return False
    await _keep(session, ticket, row, row["status"] == "running", row["progress"])
    return True


async def _keep(session: Session, ticket: Ticket, row: Mapping[str, Any], lost: bool, progress: int) -> None:
    """Write progress, the heartbeat, and one more loss if `lost`."""
    num_lost = row["num_lost"] + lost
    if num_lost > LOST_MAX:
        raise EngineLost(f"the engine was lost {num_lost} times while it drew this; try again, or tell the operators")
    await session.run(
        "update app.generations set progress = %s, num_lost = %s, heartbeat_at = now() where id = %s",
        [progress, num_lost, ticket.job_id],
    )


@dataclass(frozen=True, slots=True)
class AddedImage:
    """A stored image, and whether all images of its generation are stored."""

    image: Image
    completed: bool


async def add_image(
    session: Session,
    store: BrandStore,
    ticket: Ticket,
    index: int,
    seed: int,
    data: bytes,
    content_type: str,
    width: int,
    height: int,
    receipt: Mapping[str, Any],
    limits: Limits | None = None,
) -> AddedImage:
    """Store picture `index`, row and bytes; the last one completes the generation. Repeating an index returns the
    stored picture.

    Raises NotFound, Conflict (it is not running), TooLarge (the brand or the member has too much), UnsupportedMedia,
    InvalidInput (also for a receipt that lacks one of `RECEIPT_NAMES`), and TicketRefused for a receipt with another
    brand or other adapters than requested: such a picture is never shown.
    """
    limits = limits or Limits()
    facts = image_facts(data)
    if (facts.content_type, facts.width, facts.height) != (content_type, width, height):
        raise InvalidInput("the picture is not of the type and size that is said of it", param="file")
    generation = await _lock(session, ticket)
    if not 0 <= index < generation["num_images"]:
        raise InvalidInput(f"index is 0 to {generation['num_images'] - 1}", param="index")
    if (there := await _find_image(session, ticket, index)) is not None:
        return AddedImage(there, generation["status"] == "completed")
    _must_be_open(generation)
    await _must_be_drawn_as_asked(session, ticket, receipt)
    if generation["status"] != "running":
        raise Conflict("the generation has not started")
    await must_not_be_full(session, ticket.brand_id, len(data), limits)
    image = await _insert_image(session, store, ticket, generation, index, seed, data, facts, receipt)
    await must_have_fitted(session, ticket.brand_id, limits)
    stored = await session.one(
        "select count(*) as num from app.generated_images where generation_id = %s", [ticket.job_id]
    )
    completes = bool(stored["num"] == generation["num_images"])
    if completes:
        await _end(session, ticket, "completed", None)
    return AddedImage(image, completes)


async def fail_generation(session: Session, ticket: Ticket, code: str, message: str) -> None:
    """End it with a reason; the code `canceled` ends it as canceled. Raises NotFound, Conflict (it ended otherwise)."""
    status = "canceled" if code == "canceled" else "failed"
    row = await _lock(session, ticket)
    if row["status"] == status:
        return
    _must_be_open(row)
    error = None if status == "canceled" else {"code": code[:100], "message": message[:_MESSAGE_CHARS]}
    await _end(session, ticket, status, error)


async def _end(session: Session, ticket: Ticket, status: str, error: dict[str, str] | None) -> None:
    await session.run(
        "update app.generations set status = %s, error = %s, completed_at = now(),"
        " progress = case when %s = 'completed' then 100 else progress end where id = %s",
        [status, Jsonb(error) if error else None, status, ticket.job_id],
    )
    await append_event(session, ticket, "status", {"status": status, **({"error": error} if error else {})})
    verb = {"completed": "generation.finish", "failed": "generation.fail", "canceled": "generation.canceled"}[status]
    await _record(session, ticket, verb, **({"code": error["code"]} if error else {}))


async def _record(session: Session, ticket: Ticket, what: str, **about: Any) -> None:
    """Write a line to the brand's record; call it last in the transaction."""
    await write_audit_line(session, ticket.brand_id, what, {"generation_id": ticket.job_id, **about})


async def _lock(session: Session, ticket: Ticket) -> Mapping[str, Any]:
    """The generation's row, locked until the transaction ends."""
    row = await session.maybe(
        "select * from app.generations where brand_id = %s and id = %s for update", [ticket.brand_id, ticket.job_id]
    )
    return must_be_there(row, "generation")


async def _lock_open(session: Session, ticket: Ticket) -> Mapping[str, Any]:
    row = await _lock(session, ticket)
    _must_be_open(row)
    return row


def _must_be_open(row: Mapping[str, Any]) -> None:
    if row["status"] in ENDED_STATES:
        raise Conflict(f"the generation is {row['status']} already")


async def _must_be_drawn_as_asked(session: Session, ticket: Ticket, receipt: Mapping[str, Any]) -> None:
    """The receipt must be complete, and its brand and adapters must match the rows."""
    _must_be_cuts(receipt.get("cut", []))
    missing = [name for name in RECEIPT_NAMES if name not in receipt]
    if missing:
        raise InvalidInput(f"the picture's receipt lacks {', '.join(missing)}", param="receipt")
    rows = await session.all(
        "select sha256, scale from app.generation_adapters where brand_id = %s and generation_id = %s order by index",
        [ticket.brand_id, ticket.job_id],
    )
    asked = {"brand_id": ticket.brand_id, "adapters": [dict(row) for row in rows]}
    wrong = [name for name, value in asked.items() if receipt[name] != value]
    if wrong:
        security_log.error("generation %s: a picture's receipt says another %s", ticket.job_id, wrong[0])
        raise TicketRefused("the picture was not drawn as its generation was asked for")


def _must_be_cuts(said: object) -> None:
    """Raise InvalidInput unless it is a list of `CutText`."""
    try:
        TypeAdapter(list[CutText]).validate_python(said)
    except ValidationError:
        raise InvalidInput("the receipt's cut is not a list of prompts that were cut", param="receipt") from None


async def _find_image(session: Session, ticket: Ticket, index: int) -> Image | None:
    row = await session.maybe(
        "select * from app.generated_images where brand_id = %s and generation_id = %s and index = %s",
        [ticket.brand_id, ticket.job_id, index],
    )
    return None if row is None else Image.of(row)


async def _insert_image(
    session: Session,
    store: BrandStore,
    ticket: Ticket,
    generation: Mapping[str, Any],
    index: int,
    seed: int,
    data: bytes,
    facts: Any,
    receipt: Mapping[str, Any],
) -> Image:
    digest = await anyio.to_thread.run_sync(hashlib.sha256, data)
    key = await _take_key(session, ticket, _EXT[facts.content_type])
    await session.run(
        "insert into storage.objects (bucket_id, name, user_id, content_type, bytes) values (%s, %s, %s, %s, %s)",
        [key.bucket, key.name, ticket.on_behalf_of, facts.content_type, len(data)],
    )
    row = await session.one(
        "insert into app.generated_images (brand_id, generation_id, model_id, user_id, index, seed, object_name,"
        " content_type, width, height, bytes, sha256, receipt)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) returning *",
        [
            ticket.brand_id, ticket.job_id, generation["model_id"], ticket.on_behalf_of, index, seed, key.name,
            facts.content_type, facts.width, facts.height, len(data), digest.hexdigest(),
            Jsonb(must_be_finite(receipt, "receipt")),
        ],
    )  # fmt: skip
    image = Image.of(row)
    await append_event(session, ticket, "image", {"index": index, "image_id": image.id, "seed": seed})
    session.on_rollback(partial(anyio.to_thread.run_sync, store.delete, key))
    await anyio.to_thread.run_sync(store.write, key, data, facts.content_type)
    await _record(session, ticket, "image.store", image_id=image.id)
    return image


async def _take_key(session: Session, ticket: Ticket, ext: str) -> Key:
    """A new key of today (UTC): ``acme/2024-12-04-001.jpg``. Numbers are never reused."""
    day = datetime.now(UTC).date()
    taken = await session.one(
        "select private.next_number(%s, %s, 1) as number", [ticket.brand_id, f"image:{day.isoformat()}"]
    )
    return generated_image(ticket.brand_id, day, taken["number"], ext)
