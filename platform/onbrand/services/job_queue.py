"""The dispatcher's view of open jobs and generations: ids, states and numbers, no words of people."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from onbrand.db.session import Session
from onbrand.services.pagination import Row

WaitingFor = Literal["brand", "platform", "resources", "operator"]
"""Why a job is not running: its brand's other jobs, all brands' jobs, busy or missing machines, a pause."""


class QueueEntry(Row):
    """The dispatcher's view of an open job or generation: ids, states and numbers only.

    Args:
        num_workers: the minimum to start.
        account_id: the brand's account; accounts take turns, and so do the brands of an account.
        weight: its brand's share; `max_running` is the maximum of the brand's running jobs, None the platform's.
    """

    kind: str
    brand_id: str
    job_id: str
    user_id: str
    status: str
    provider: str | None
    provider_job_id: str | None
    attempts: int
    cancel_requested: bool
    heartbeat_at: datetime | None
    created_at: datetime
    num_workers: int = 1
    waiting_for: WaitingFor | None = None
    waiting_since: datetime | None = None
    weight: float = 1.0
    max_running: int | None = None
    account_id: str | None = None

    @property
    def account(self) -> str:
        """The account that takes the turn, else the brand."""
        return self.account_id or self.brand_id


class Orphan(Row):
    """A job or generation that was ended because its user is no longer a member."""

    kind: str
    brand_id: str
    job_id: str
    provider: str | None
    provider_job_id: str | None


async def queue(session: Session) -> list[QueueEntry]:
    """All open jobs and generations, oldest first; for the dispatcher's session."""
    return [QueueEntry.of(row) for row in await session.all("select * from private.queue()")]


async def end_orphaned(session: Session) -> list[Orphan]:
    """End removed members' open work as failed with the code `member_removed`; for the dispatcher's session."""
    return [Orphan.of(row) for row in await session.all("select * from private.end_orphaned()")]


async def lead(session: Session, holder: str, seconds: float) -> bool:
    """Take or keep the dispatchers' leadership for so many seconds; False if another holds it. 0 gives it back."""
    return bool((await session.one("select private.lead(%s, %s) as leads", [holder, seconds]))["leads"])
