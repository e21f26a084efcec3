"""Recovery of generations whose ingress process died: they are drawn again with the same request.

Runs in the process of the internal routes. Reads ids and states from the dispatcher's queue, and takes over each row
with a ticket for that row only. The same adapters and seed give the same images; stored images are kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

from onbrand.background.generations import RUNNING_MAX, GenerationTasks
from onbrand.brand import Ticket
from onbrand.db.session import Database
from onbrand.errors import Conflict, NotFound, OnbrandError
from onbrand.internal.generation import RenderRequest
from onbrand.services import generation_worker, generations, job_queue
from onbrand.services.job_queue import QueueEntry

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""A generation is abandoned after this time without a heartbeat; its owner sends one every few seconds."""


class Recovery:
    """Draws abandoned generations again.

    Args:
        generation_tasks: those of this process; None without an engine: abandoned ones are then failed.
    """

    def __init__(self, db: Database, generation_tasks: GenerationTasks | None) -> None:
        self._db, self._tasks = db, generation_tasks
        self._listening_since: datetime | None = None

    async def run(self) -> None:
        """Look every LOOK_SECONDS until canceled."""
        while True:
            try:
                await self.look(datetime.now(UTC))
            except OnbrandError as problem:
                self._listening_since = None
                log.warning("abandoned generations could not be looked for: %s", problem.code)
            except Exception as problem:
                self._listening_since = None
                log.error("abandoned generations could not be looked for: %s", type(problem).__name__)
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self, now: datetime) -> int:
        """Recover the generations that are abandoned at `now`, as many as there is room for; how many were found.

        No heartbeat arrives while this process or the database is down: silence counts from the first look afterwards.
        """
        self._listening_since = self._listening_since or now
        found = abandoned(await self._queue(), self._listening_since, now)
        room = RUNNING_MAX if self._tasks is None else self._tasks.room
        for entry in found[:room]:
            await self._take_care(entry)
        return len(found)

    async def _queue(self) -> list[QueueEntry]:
        async with self._db.dispatch_session() as session:
            return await job_queue.queue(session)

    async def _take_care(self, entry: QueueEntry) -> None:
        try:
            if self._tasks is not None and self._tasks.is_running(entry.job_id):
                return  # this process runs it, but its heartbeats do not reach the database
            if self._tasks is None:
                await self._end(entry, "engine_lost", "nothing was heard of the engine; try again")
            elif entry.cancel_requested:
                await self._end(entry, "canceled", "canceled")
            else:
                await self._draw(entry, self._tasks)
        except (Conflict, NotFound):
            pass  # it ended meanwhile, or was deleted
        except OnbrandError as problem:
            log.warning("generation %s is abandoned and could not be taken over: %s", entry.job_id, problem.code)

    async def _draw(self, entry: QueueEntry, generation_tasks: GenerationTasks) -> None:
        try:
            request = await self._taken_over(entry, generation_tasks)
        except Conflict:
            raise
        except OnbrandError as problem:
            if problem.status in (429, 503):
                raise
            await self._end(entry, problem.code, problem.message)
            return
        if request is not None:
            log.warning("generation %s was abandoned; it is drawn again", entry.job_id)
            generation_tasks.start(*request)

    async def _taken_over(
        self, entry: QueueEntry, generation_tasks: GenerationTasks
    ) -> tuple[str, RenderRequest] | None:
        """Take ownership of the row; its family and request, or None if a new heartbeat arrived meanwhile.

        Raises Conflict (it has ended), NotFound (a model of it was deleted), EngineLost.
        """
        ticket = _ticket(entry)
        signed = generation_tasks.ticket_for(entry.brand_id, entry.job_id, entry.user_id)
        async with self._db.system_session(ticket) as session:
            if not await generation_worker.take_over(session, ticket, entry.heartbeat_at):
                return None
            row = await generations.get_generation(session, entry.brand_id, entry.job_id)
            return row.model_type, await generations.render_request(session, row, signed)

    async def _end(self, entry: QueueEntry, code: str, message: str) -> None:
        ticket = _ticket(entry)
        async with self._db.system_session(ticket) as session:
            await generation_worker.fail_generation(session, ticket, code, message)
        log.warning("generation %s was abandoned and is ended: %s", entry.job_id, code)


def abandoned(queue: Iterable[QueueEntry], listening_since: datetime, now: datetime) -> list[QueueEntry]:
    """Generations without a heartbeat for SILENT_SECONDS: round-robin over accounts, oldest first in each."""
    turns: Counter[str] = Counter()
    found: list[tuple[int, int, QueueEntry]] = []
    for entry in queue:
        heard_at = max(entry.heartbeat_at or entry.created_at, listening_since)
        if entry.kind == "generation" and (now - heard_at).total_seconds() > SILENT_SECONDS:
            found.append((turns[entry.account], len(found), entry))
            turns[entry.account] += 1
    return [entry for *_, entry in sorted(found, key=lambda each: each[:2])]


def _ticket(entry: QueueEntry) -> Ticket:
    return Ticket.issue(entry.brand_id, entry.job_id, entry.user_id, "generation", 60)
