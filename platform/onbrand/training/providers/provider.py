"""The seam between the dispatcher and whoever has the machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from onbrand.brand import Ticket

ProviderStatus = Literal["pending", "running", "succeeded", "failed", "stopped", "lost"]
ENDED: tuple[ProviderStatus, ...] = ("succeeded", "failed", "stopped", "lost")
"""States after which no worker of the submission runs. `lost`: the provider knows nothing of it (any more)."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room for workers.

    Args:
        free: workers that could begin now.
        total: workers that the machines that are there can hold.
        most: with all machines that the provider can get; `total` where it can get none.
    """

    free: int
    total: int
    most: int


class Provider(Protocol):
    """Blocking calls; each raises Unavailable when the provider does not answer."""

    name: str

    def capacity(self) -> Capacity | None:
        """Room for workers; None where that is not known, and the provider has a queue of its own."""
        ...

    def submit(self, ticket: Ticket, attempt: int) -> str:
        """Start attempt number `attempt` of the ticket's job and return the provider's id of it.

        The same attempt submitted again is the same submission: the id is returned and nothing is started twice.
        """
        ...

    def is_of(self, ticket: Ticket, submission: str) -> bool:
        """Whether a submission that somebody else made is one of the ticket's job, and has not ended."""
        ...

    def status(self, provider_job_id: str) -> ProviderStatus:
        """Where the submission stands. What the provider says and we do not know is `running`: keep polling."""
        ...

    def stop(self, provider_job_id: str) -> None:
        """Ask for the end; a submission that ended or never was is left alone."""
        ...
