"""Fails the jobs that earlier tests left open, so that a dispatcher does not start them."""

from onbrand.brand import Ticket
from onbrand.db.session import Database
from onbrand.services import job_queue, training_worker


async def fail_all_open_jobs(db: Database) -> None:
    """End every pending or training job of the test database."""
    async with db.dispatch_session() as session:
        await job_queue.end_orphaned(session)
        left = [entry for entry in await job_queue.queue(session) if entry.kind == "training"]
    for entry in left:
        ticket = Ticket.issue(entry.brand_id, entry.job_id, entry.user_id, "training", 60)
        async with db.system_session(ticket) as session:
            await training_worker.fail(session, ticket, "swept", "left by another test")
