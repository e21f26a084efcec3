"""Generations that nobody draws any more, since their ingress or their replica died: they end honestly.

Runs beside the internal routes. It learns ids and states from the dispatcher's queue, and ends a row with a ticket for
just that one.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from onbrand.brand import Ticket
from onbrand.db.session import Doors
from onbrand.errors import Conflict, NotFound, OnbrandError
from onbrand.services import generation, training
from onbrand.services.training import QueueEntry

log = logging.getLogger(__name__)

LOOK_SECONDS = 20.0
SILENT_SECONDS = 120.0
"""A replica reports every few seconds; one that is silent for so long is gone."""
UNBEGUN_SECONDS = 900.0
"""A pending generation may wait for an engine to start, but not for ever."""


async def watch(doors: Doors) -> None:
    """End what is abandoned, again and again, until canceled."""
    while True:
        try:
            await end_abandoned(doors, datetime.now(UTC))
        except OnbrandError as problem:
            log.warning("abandoned generations could not be looked for: %s", problem.code)
        await asyncio.sleep(LOOK_SECONDS)


async def end_abandoned(doors: Doors, now: datetime) -> int:
    """End every generation that is abandoned at `now`; how many they were."""
    async with doors.dispatch_session() as session:
        queue = await training.queue(session)
    abandoned = [entry for entry in queue if entry.kind == "generation" and is_abandoned(entry, now)]
    for entry in abandoned:
        await _end(doors, entry)
    return len(abandoned)


def is_abandoned(entry: QueueEntry, now: datetime) -> bool:
    """Whether nothing was heard of it for too long."""
    if entry.heartbeat_at is None:
        return (now - entry.created_at).total_seconds() > UNBEGUN_SECONDS
    return (now - entry.heartbeat_at).total_seconds() > SILENT_SECONDS


async def _end(doors: Doors, entry: QueueEntry) -> None:
    ticket = Ticket.issue(entry.brand_id, entry.job_id, entry.user_id, "generation", 60)
    code = "canceled" if entry.cancel_requested else "engine_lost"
    try:
        async with doors.system_session(ticket) as session:
            await generation.fail_generation(session, ticket, code, "nothing was heard of the engine; try again")
    except (Conflict, NotFound):
        return  # it ended meanwhile
    log.warning("generation %s was abandoned and is ended: %s", entry.job_id, code)
