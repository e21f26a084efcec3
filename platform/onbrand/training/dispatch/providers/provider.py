"""The interface between the dispatcher and the providers of machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from onbrand.brand import Ticket

ProviderStatus = Literal["pending", "running", "succeeded", "failed", "stopped", "lost"]
PROVIDER_ENDED: tuple[ProviderStatus, ...] = ("succeeded", "failed", "stopped", "lost")
"""States in which no worker of the submission runs. `lost`: the provider does not know the submission (any more)."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Room for workers.

    Args:
        free: workers that could start now.
        total: workers that fit on the present machines.
        most: workers that fit with all machines that the provider can add; `total` if it can add none.
    """

    free: int
    total: int
    most: int


class Provider(Protocol):
    """Blocking calls; each raises Unavailable when the provider does not answer."""

    name: str

    def capacity(self) -> Capacity | None:
        """Room for workers; None if unknown because the provider has its own queue."""

    def submit(self, ticket: Ticket, attempt: int) -> str:
        """Start attempt number `attempt` of the ticket's job and return the provider's id.

        Idempotent: submitting the same attempt again returns the same id and starts nothing.
        """

    def is_of(self, ticket: Ticket, submission: str) -> bool:
        """True if a submission made by someone else belongs to the ticket's job and has not ended."""

    def status(self, provider_job_id: str) -> ProviderStatus:
        """State of the submission. States of the provider that have no equivalent here count as `running`."""

    def stop(self, provider_job_id: str) -> None:
        """Ask the provider to stop the submission; does nothing if it has ended or is unknown."""
