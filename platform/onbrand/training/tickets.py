"""A training job's ticket on its way to the workers: a file only we can read, and a desk where a node has no such file.

Never the environment, the command line or Ray's metadata: the dashboard shows those.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from onbrand.brand import must_be_brand_id
from onbrand.config import Settings
from onbrand.errors import TicketRefused, Unavailable
from onbrand.storage.runs import must_be_job_id, run_folder, runs_bucket

if TYPE_CHECKING:
    from ray.actor import ActorHandle

__all__ = ["DeskTickets", "FileTickets", "TicketSource", "must_be_job_id", "read_ticket", "remove_ticket"]


def ticket_folder(settings: Settings, brand_id: str, job_id: str) -> str:
    """Where the ticket lies: in the run's folder, which every node sees; with runs on S3, on the dispatcher's own disk.

    Nobody but the platform has a key of the runs' bucket, so no worker could fetch a ticket from there.
    """
    if runs_bucket(settings) is None:
        return str(run_folder(settings, brand_id, job_id))
    return str(settings.folder / "tickets" / must_be_brand_id(brand_id) / must_be_job_id(job_id))


def write_ticket(settings: Settings, brand_id: str, job_id: str, token: str) -> None:
    """Leave `token` for the workers, replacing an older one in a single step; mode 0600."""
    folder = ticket_folder(settings, brand_id, job_id)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    draft = f"{folder}/.ticket.{secrets.token_hex(8)}"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(token)
    os.replace(draft, f"{folder}/ticket")


def read_ticket(settings: Settings, brand_id: str, job_id: str) -> str:
    """The newest token of this job. Raises TicketRefused if the dispatcher left none."""
    return FileTickets(ticket_folder(settings, brand_id, job_id)).newest()


def remove_ticket(settings: Settings, brand_id: str, job_id: str) -> None:
    """The job has ended: its ticket goes. Nothing happens if it is gone."""
    folder = ticket_folder(settings, brand_id, job_id)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{folder}/ticket")
    with contextlib.suppress(OSError):  # checkpoints may lie in it
        os.rmdir(folder)


class TicketSource(Protocol):
    """Where a process of the job gets its ticket. Can be sent to other processes: it holds no ticket itself."""

    def newest(self) -> str:
        """The newest token. Raises TicketRefused when there is none (any more), Unavailable."""
        ...


@dataclass(frozen=True, slots=True)
class FileTickets:
    """The file in `folder`."""

    folder: str

    def newest(self) -> str:
        try:
            with open(f"{self.folder}/ticket") as file:
                return file.read()
        except FileNotFoundError:
            raise TicketRefused("this job has no ticket; jobs are started by the platform's dispatcher") from None


@dataclass(frozen=True, slots=True)
class DeskTickets:
    """The `Desk` of this job, wherever in the cluster it is."""

    desk: ActorHandle

    def newest(self) -> str:
        import ray

        try:
            token: str | None = ray.get(self.desk.newest.remote())
        except ray.exceptions.RayError as problem:
            raise Unavailable(f"the job's ticket desk does not answer ({type(problem).__name__})") from None
        if token is None:
            raise TicketRefused("this job has no ticket; jobs are started by the platform's dispatcher")
        return token


class Desk:
    """A Ray actor beside the driver, which shows the ticket's file to those who hold its handle: this job's processes.

    It has no name, so that nobody else can ask for it.
    """

    def __init__(self, folder: str) -> None:
        self._file = FileTickets(folder)

    def newest(self) -> str | None:
        try:
            return self._file.newest()
        except TicketRefused:
            return None


def handed_out(settings: Settings, brand_id: str, job_id: str) -> TicketSource:
    """How this job's processes on other nodes get its ticket; called in the driver. The desk ends with the driver."""
    folder = ticket_folder(settings, brand_id, job_id)
    if runs_bucket(settings) is None:
        return FileTickets(folder)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=3)
    return DeskTickets(desk.remote(folder))
