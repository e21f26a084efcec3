"""Accounts and brands for tests and benchmarks on a platform in this process."""

from __future__ import annotations

from dataclasses import dataclass

from onbrand.brand import Scope, Ticket

PASSWORD = "a long enough password"
"""The password of every account."""


@dataclass(frozen=True)
class Person:
    """A user with an account and the password `PASSWORD`. Transactions are within the brand `at`, if any."""

    user_id: str
    email: str
    at: str | None = None

    @property
    def scope(self) -> Scope:
        return Scope(self.user_id, within=self.at)


@dataclass(frozen=True)
class BrandOfPeople:
    """A brand with an admin and two members."""

    id: str
    admin: Person
    member: Person
    member2: Person

    def ticket(self, job_id: str, kind: str = "training", on_behalf_of: str | None = None) -> Ticket:
        """The system's ticket for one of the brand's jobs, on behalf of `member` unless said otherwise."""
        return Ticket.issue(self.id, job_id, on_behalf_of or self.member.user_id, kind, 600)  # type: ignore[arg-type]
