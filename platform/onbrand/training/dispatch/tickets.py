"""Delivery of a training job's ticket to its workers: a file with mode 0600, or a Ray actor for nodes without the file.

Never through the environment, the command line or Ray's metadata, as the dashboard shows those.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onbrand.brand import must_be_brand_id
from onbrand.config import Settings
from onbrand.errors import TicketRefused, Unavailable
from onbrand.folders import write_private
from onbrand.storage.runs import must_be_job_id, run_folder, runs_bucket

if TYPE_CHECKING:
    from ray.actor import ActorHandle


def ticket_folder(settings: Settings, brand_id: str, job_id: str) -> Path:
    """Folder of the ticket: the run's folder, which every node sees; with runs on S3, one on the dispatcher's disk.

    Only the platform has keys for the runs' bucket, so a worker could not read a ticket there.
    """
    if runs_bucket(settings) is None:
        return run_folder(settings, brand_id, job_id)
    return settings.folder / "tickets" / must_be_brand_id(brand_id) / must_be_job_id(job_id)


def write_ticket(settings: Settings, brand_id: str, job_id: str, token: str) -> None:
    """Write `token` for the workers atomically, mode 0600; replaces an older one."""
    write_private(ticket_folder(settings, brand_id, job_id) / "ticket", token)


def read_ticket(settings: Settings, brand_id: str, job_id: str) -> str:
    """The newest token of this job. Raises TicketRefused if the dispatcher left none."""
    return FileTickets(ticket_folder(settings, brand_id, job_id)).newest()


def remove_ticket(settings: Settings, brand_id: str, job_id: str) -> None:
    """Remove the ticket of a job that has ended, if it is there."""
    folder = ticket_folder(settings, brand_id, job_id)
    (folder / "ticket").unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty if it holds checkpoints
        folder.rmdir()


@dataclass(frozen=True, slots=True)
class FileTickets:
    """Reads the ticket's file in `folder`."""

    folder: Path

    def newest(self) -> str:
        """The token in the file. Raises TicketRefused if there is no file."""
        try:
            return (self.folder / "ticket").read_text()
        except FileNotFoundError:
            raise TicketRefused("this job has no ticket; jobs are started by the platform's dispatcher") from None


@dataclass(frozen=True, slots=True)
class DeskTickets:
    """Asks the `TicketActor` of this job, on any node of the cluster."""

    desk: ActorHandle

    def newest(self) -> str:
        """The actor's token. Raises TicketRefused if it has none, Unavailable if it does not answer."""
        import ray

        try:
            token: str | None = ray.get(self.desk.newest.remote())
        except ray.exceptions.RayError as problem:
            raise Unavailable(f"the job's ticket actor does not answer ({type(problem).__name__})") from None
        if token is None:
            raise TicketRefused("this job has no ticket; jobs are started by the platform's dispatcher")
        return token


TicketSource = FileTickets | DeskTickets
"""Source of the job's ticket for its processes. It holds no ticket itself, so it can be sent to other processes."""


class TicketActor:
    """A Ray actor on the driver's node that returns the ticket to this job's processes, which hold its handle.

    It has no name, so other processes cannot look it up.
    """

    def __init__(self, folder: Path) -> None:
        self._file = FileTickets(folder)

    def newest(self) -> str | None:
        """The token in the file; None if there is no file."""
        try:
            return self._file.newest()
        except TicketRefused:
            return None


def handed_out(settings: Settings, brand_id: str, job_id: str) -> TicketSource:
    """The ticket source for this job's processes on other nodes. The driver calls it; its actor ends with it."""
    folder = ticket_folder(settings, brand_id, job_id)
    if runs_bucket(settings) is None:
        return FileTickets(folder)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(TicketActor).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=3)
    return DeskTickets(desk.remote(folder))
