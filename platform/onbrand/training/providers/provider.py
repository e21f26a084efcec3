"""The seam between the dispatcher and whoever has the machines."""

from __future__ import annotations

from typing import Literal, Protocol

from onbrand.brand import Ticket

ProviderStatus = Literal["pending", "running", "succeeded", "failed", "stopped", "lost"]
ENDED: tuple[ProviderStatus, ...] = ("succeeded", "failed", "stopped", "lost")
"""States after which no worker of the submission runs. `lost`: the provider knows nothing of it (any more)."""


class Provider(Protocol):
    """Blocking calls; each raises Unavailable when the provider does not answer."""

    name: str

    def submit(self, ticket: Ticket, attempt: int) -> str:
        """Start attempt number `attempt` of the ticket's job and return the provider's id of it.

        The same attempt submitted again is the same submission: the id is returned and nothing is started twice.
        """
        ...

    def status(self, provider_job_id: str) -> ProviderStatus:
        """Where the submission stands. What the provider says and we do not know is `running`: keep polling."""
        ...

    def stop(self, provider_job_id: str) -> None:
        """Ask for the end; a submission that ended or never was is left alone."""
        ...
