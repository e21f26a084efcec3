"""The dispatcher: submits training jobs to providers and detects dead submissions. The jobs table is the only queue.

It runs in the System deployment and knows only ids, states and numbers of a job. A crash loses nothing, since every
tick starts from the rows. With several dispatchers, one leads for as long as it renews its lease; then another takes
over. A job whose submission ended without a result is submitted again, at most three times.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from onbrand.brand import Ticket
from onbrand.config import Settings
from onbrand.db.changes import QUEUE
from onbrand.db.session import Database, Session
from onbrand.errors import Conflict, NotFound, OnbrandError
from onbrand.secrets_file import Secrets
from onbrand.services import job_queue, training_worker
from onbrand.services.job_queue import Orphan, QueueEntry, WaitingFor
from onbrand.training.dispatch.admission import Bounds, admit, is_too_large
from onbrand.training.dispatch.providers.provider import PROVIDER_ENDED, Capacity, Provider, ProviderStatus
from onbrand.training.dispatch.submission import manual_submission
from onbrand.training.dispatch.tickets import remove_ticket, ticket_folder, write_ticket

MAX_REQUEUES = 3
MAX_ATTEMPTS = 1 + MAX_REQUEUES
LEASE_SECONDS = 10.0
"""How long a dispatcher leads after its last tick. If it dies, no dispatcher acts for so long."""
PLACEMENT_SECONDS = 60.0
"""How long a submission may take until its workers occupy their resources."""
TICK_SECONDS, IDLE_SECONDS = 1.0, 4.0
"""Pause between ticks while there are open jobs, and without any. A change of the queue ends it."""
CANCEL_SECONDS = 45.0
"""Time for a worker to end a canceled job by itself, before the provider is told to stop it."""
STALLED_SECONDS = 900.0
"""A running job without a heartbeat for so long is stopped and submitted again."""

Action = Literal["wait", "submit", "stop", "cancel", "fail"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Observation:
    """State of a job that this dispatcher keeps between ticks; losing it costs a tick."""

    ended_before: bool = False
    cancel_seen_at: float | None = None
    ticket_written_at: float | None = None
    submitted_at: float | None = None


def decide(job: QueueEntry, status: ProviderStatus | None, seen: Observation, at: float, now: datetime) -> Action:
    """The next action for a job.

    Args:
        status: the provider's status of its submission; None if it has none.
        at, now: the monotonic and the wall clock.
    """
    if status is None or (status in PROVIDER_ENDED and seen.ended_before):
        if job.cancel_requested:
            return "cancel"
        return "submit" if job.attempts < MAX_ATTEMPTS else "fail"
    if status in PROVIDER_ENDED:
        return "wait"
    is_overdue = seen.cancel_seen_at is not None and at - seen.cancel_seen_at > CANCEL_SECONDS
    is_stalled = job.heartbeat_at is not None and (now - job.heartbeat_at).total_seconds() > STALLED_SECONDS
    return "stop" if is_overdue or is_stalled else "wait"


class Dispatcher:
    """One of any number of dispatchers; only the leader acts.

    A dispatcher that lost the lead without noticing does no harm: an attempt has one submission and counts once, and a
    row ends once.

    Args:
        bounds: limits on jobs that run at once.
        lease_seconds: how long it leads after a tick.
    """

    def __init__(
        self,
        settings: Settings,
        secrets: Secrets,
        db: Database,
        providers: Iterable[Provider],
        bounds: Bounds | None = None,
        tick_seconds: float = TICK_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._settings, self._secrets, self._db = settings, secrets, db
        self._providers = {provider.name: provider for provider in providers}
        self.bounds = bounds or Bounds(
            settings.train_jobs, settings.train_jobs_per_brand, settings.train_jobs_per_account
        )
        self._tick_seconds, self._lease_seconds = tick_seconds, lease_seconds
        self._name, self._leads_until = str(uuid.uuid4()), 0.0
        self._observations: dict[tuple[str, str], Observation] = {}

    async def run(self) -> None:
        """Tick until cancelled. The next tick retries actions that failed."""
        try:
            with self._db.changes.waiter(QUEUE) as waiter:
                while True:
                    await self._tick_safely()
                    await waiter.wait(self._tick_seconds if self._observations else IDLE_SECONDS)
        finally:
            with suppress(OnbrandError):
                await self.resign()

    async def _tick_safely(self) -> None:
        try:
            await self.tick()
        except OnbrandError as problem:
            log.warning("the dispatcher's tick failed (%s)", problem.code)
        except Exception as problem:
            log.error("the dispatcher's tick failed unexpectedly (%s)", type(problem).__name__)

    async def resign(self) -> None:
        """Release the lease, so that another dispatcher can lead at once."""
        if self._leads:
            async with self._db.dispatch_session() as session:
                await self._lead(session, 0)

    @property
    def _leads(self) -> bool:
        """True while the lease lasts by this process's clock. `_lead` reads that clock before it asks the database for
        the lease, so this turns False before the lease in the database ends."""
        return time.monotonic() < self._leads_until

    async def _lead(self, session: Session, seconds: float) -> bool:
        began = time.monotonic()
        leads = await job_queue.lead(session, self._name, seconds)
        self._leads_until = began + seconds if leads else 0.0
        return leads

    async def _read_queue(self) -> list[QueueEntry] | None:
        """Take or renew the lead, end the jobs of removed members and read the queue, in one transaction. Returns None
        while another dispatcher leads."""
        async with self._db.dispatch_session() as session:
            if not await self._lead(session, self._lease_seconds):
                return None
            orphans, queue = await job_queue.end_orphaned(session), await job_queue.queue(session)
        await self._stop_orphaned(orphans)
        return queue

    async def tick(self) -> None:
        """Look at every open job once and do what `decide` says. Does nothing while another dispatcher leads."""
        entries = await self._read_queue()
        if entries is None:
            self._observations.clear()
            return
        queue = [entry for entry in entries if entry.kind == "training"]
        self._forget_all_but(queue)
        for job in queue:
            if job.provider not in self._providers:
                await self._guarded(job, self._refuse)
        queue = [job for job in queue if job.provider in self._providers]
        statuses = {job.job_id: await self._status(job) for job in queue}
        running = [job for job in queue if statuses[job.job_id] in ("pending", "running")]
        wanting: list[QueueEntry] = []
        for job in queue:
            observation = self._observation_of(job)
            action = decide(job, statuses[job.job_id], observation, time.monotonic(), datetime.now(UTC))
            self._note(job, statuses[job.job_id], observation)
            if action == "submit":
                wanting.append(job)
            else:
                await self._guarded(job, self._actions[action])
        await self._start(wanting, running)

    async def _start(self, wanting: list[QueueEntry], running: list[QueueEntry]) -> None:
        """Submit the jobs that may start, provider by provider, and tell the others why they wait."""
        for name, provider in self._providers.items():
            waiting = [job for job in wanting if job.provider == name]
            if not waiting:
                continue
            room = self._without_recent_submissions(await asyncio.to_thread(provider.capacity), running)
            turns = admit(waiting, running, self.bounds, room)
            for job in turns.begin:
                if self._leads:
                    await self._guarded(job, self._submit)
            for job, reason in turns.wait:
                act = self._give_up if self._is_hopeless(job, reason, room) else self._tell_reason(reason)
                await self._guarded(job, act)
            running = running + turns.begin

    def _without_recent_submissions(self, room: Capacity | None, running: list[QueueEntry]) -> Capacity | None:
        """Capacity less the workers of recent submissions, which may not occupy their resources yet."""
        if room is None:
            return None
        since = time.monotonic() - PLACEMENT_SECONDS
        recent = [job for job in running if (self._observation_of(job).submitted_at or -math.inf) > since]
        return replace(room, free=max(0, room.free - sum(job.num_workers for job in recent)))

    def _is_hopeless(self, job: QueueEntry, reason: WaitingFor, room: Capacity | None) -> bool:
        """True if the job needs more than the cluster can have and waited `train_placement_seconds` for machines."""
        if reason != "resources" or not is_too_large(job, room) or job.waiting_since is None:
            return False
        waited = (datetime.now(UTC) - job.waiting_since).total_seconds()
        return job.waiting_for == "resources" and waited > self._settings.train_placement_seconds

    def _tell_reason(self, reason: WaitingFor) -> Callable[[QueueEntry], Awaitable[None]]:
        async def tell(job: QueueEntry) -> None:
            if job.waiting_for != reason:
                await self._write_row(job, training_worker.waits, reason)

        return tell

    async def _give_up(self, job: QueueEntry) -> None:
        await self._end(
            job,
            "no_resources",
            f"this platform neither has nor can get machines for {job.num_workers} workers at once; "
            "lower num_workers, or ask the operators for more machines",
        )

    async def _stop_orphaned(self, orphans: Iterable[Orphan]) -> None:
        """Stop the ended jobs of removed members. Their tickets are refused from then on, so the workers end too."""
        for orphan in orphans:
            log.warning("%s %s is ended: its member was removed", orphan.kind, orphan.job_id)
            provider = self._providers.get(orphan.provider or "")
            if provider is None or orphan.provider_job_id is None:
                continue
            try:
                await asyncio.to_thread(provider.stop, orphan.provider_job_id)
            except OnbrandError as problem:
                log.warning("job %s was not stopped (%s); it ends at its next word", orphan.job_id, problem.code)

    async def _status(self, job: QueueEntry) -> ProviderStatus | None:
        if job.provider_job_id is None:
            return None
        return await asyncio.to_thread(self._provider(job).status, job.provider_job_id)

    def _provider(self, job: QueueEntry) -> Provider:
        return self._providers[job.provider or ""]

    def _observation_of(self, job: QueueEntry) -> Observation:
        return self._observations.setdefault((job.brand_id, job.job_id), Observation())

    def _note(self, job: QueueEntry, status: ProviderStatus | None, observation: Observation) -> None:
        observation.ended_before = status in PROVIDER_ENDED
        if job.cancel_requested and observation.cancel_seen_at is None:
            observation.cancel_seen_at = time.monotonic()

    def _forget_all_but(self, queue: Iterable[QueueEntry]) -> None:
        """Forget jobs that left the queue, as they have ended, and remove their tickets."""
        for ended in self._observations.keys() - {(job.brand_id, job.job_id) for job in queue}:
            del self._observations[ended]
            remove_ticket(self._settings, *ended)

    async def _guarded(self, job: QueueEntry, act: Callable[[QueueEntry], Awaitable[None]]) -> None:
        """Run `act` so that its errors do not affect other jobs. A row that ended or was deleted meanwhile is fine."""
        try:
            await act(job)
        except (Conflict, NotFound):
            pass
        except OnbrandError as problem:
            log.warning("job %s: %s; trying again", job.job_id, problem.code)

    @property
    def _actions(self) -> dict[Action, Callable[[QueueEntry], Awaitable[None]]]:
        return {"wait": self._keep_ticket_fresh, "stop": self._stop, "cancel": self._cancel, "fail": self._fail}

    def _ticket(self, job: QueueEntry) -> Ticket:
        return Ticket.issue(job.brand_id, job.job_id, job.user_id, "training", self._settings.ticket_seconds)

    async def _submit(self, job: QueueEntry) -> None:
        """Write the ticket, submit, update the row: in this order, so that the next tick recovers from a crash."""
        ticket, attempt = self._ticket(job), job.attempts + 1
        await self._write(job, ticket)
        provider_job_id = await asyncio.to_thread(self._submission, job, ticket, attempt)
        async with self._db.system_session(ticket) as session:
            await training_worker.submitted(session, ticket, provider_job_id, attempt)
        self._observation_of(job).ended_before = False
        self._observation_of(job).submitted_at = time.monotonic()
        log.info("job %s: attempt %d submitted as %s", job.job_id, attempt, provider_job_id)

    def _submission(self, job: QueueEntry, ticket: Ticket, attempt: int) -> str:
        """A new submission; for the first attempt, a manual submission of this job that already waits, if any."""
        manual = manual_submission(ticket_folder(self._settings, job.brand_id, job.job_id)) if attempt == 1 else None
        if manual is not None and self._provider(job).is_of(ticket, manual):
            return manual
        return self._provider(job).submit(ticket, attempt)

    async def _keep_ticket_fresh(self, job: QueueEntry) -> None:
        """Renew the ticket file in time: a worker that restarts must never read an expired ticket."""
        written = self._observation_of(job).ticket_written_at
        if written is None or time.monotonic() - written > self._settings.ticket_seconds / 3:
            await self._write(job, self._ticket(job))

    async def _write(self, job: QueueEntry, ticket: Ticket) -> None:
        token = ticket.sign(self._secrets.tickets)
        await asyncio.to_thread(write_ticket, self._settings, job.brand_id, job.job_id, token)
        self._observation_of(job).ticket_written_at = time.monotonic()

    async def _stop(self, job: QueueEntry) -> None:
        if job.provider_job_id is not None:
            log.warning("job %s: stopping %s", job.job_id, job.provider_job_id)
            await asyncio.to_thread(self._provider(job).stop, job.provider_job_id)

    async def _cancel(self, job: QueueEntry) -> None:
        await self._write_row(job, training_worker.canceled)

    async def _fail(self, job: QueueEntry) -> None:
        await self._end(
            job,
            "training_lost",
            f"training was started {job.attempts} times, and every time ended without a result; "
            "retry the job, and tell the operators if it happens again",
        )

    async def _refuse(self, job: QueueEntry) -> None:
        known = ", ".join(sorted(self._providers))
        await self._end(job, "unknown_provider", f"this platform has no provider '{job.provider}'; it has: {known}")

    async def _end(self, job: QueueEntry, code: str, message: str) -> None:
        await self._write_row(job, training_worker.fail, code, message)

    async def _write_row(self, job: QueueEntry, act: Callable[..., Awaitable[object]], *what: str) -> None:
        ticket = self._ticket(job)
        async with self._db.system_session(ticket) as session:
            await act(session, ticket, *what)
