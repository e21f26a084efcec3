"""Members of a brand, and invitations into it: `client.members`, `client.invitations`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from onbrand.client import accounts
from onbrand.client.resource_bases import BrandLike, BrandResource, brand_path, given

_TOKEN_PREFIX = "obi_"


class Members(BrandResource[accounts.Member]):
    """The members of a brand."""

    kind, name = accounts.Member, "members"

    def add(self, brand: BrandLike, email: str, role: str = "member") -> accounts.Invitation:
        """Invite an address for seven days; its account becomes a member when it accepts. See `Invitations.create`."""
        return self._post(accounts.Invitation, brand_path(brand, "members"), {"email": email, "role": role})

    def set_role(self, brand: BrandLike, user_id: str, role: str) -> accounts.Member:
        return self._change(brand, user_id, role=role)

    def remove(self, brand: BrandLike, user_id: str) -> None:
        """End a membership: admins can end any, members only their own."""
        self._delete(brand, user_id)

    def leave(self, brand: BrandLike) -> None:
        """End the caller's own membership. Raises Conflict for the last admin."""
        self._delete(brand, "me")


class Invitations(BrandResource[accounts.Invitation]):
    """Invitations: admins invite an address; its account accepts or declines with the token that they hand over.

    An account with a verified address finds the invitation in `received` and needs no token.
    """

    kind, name = accounts.Invitation, "invitations"

    def create(
        self, brand: BrandLike, email: str, role: str = "member", *, days: int | None = None
    ) -> accounts.Invitation:
        """Invite an address. The result's `token` cannot be read again."""
        body = given(email=email, role=role, days=days)
        return self._post(accounts.Invitation, brand_path(brand, "invitations"), body)

    def revoke(self, brand: BrandLike, invitation_id: str) -> None:
        self._delete(brand, invitation_id)

    def received(self) -> Iterator[accounts.ReceivedInvitation]:
        """Open invitations to the caller's verified address, newest first."""
        return self._pages(accounts.ReceivedInvitation, "/v1/invitations")

    def accept(self, invitation: str | accounts.ReceivedInvitation) -> accounts.Brand:
        """Become a member of the brand that invites the caller's address.

        Args:
            invitation: the token that the admin handed over, or one of `received` (or its id).
        """
        return self._read(accounts.Brand, self._answer(invitation, "accept"))

    def decline(self, invitation: str | accounts.ReceivedInvitation) -> None:
        """End an invitation to the caller's address, given as in `accept`."""
        self._answer(invitation, "decline")

    def _answer(self, invitation: str | accounts.ReceivedInvitation, verb: str) -> Any:
        said = invitation if isinstance(invitation, str) else invitation.id
        if said.startswith(_TOKEN_PREFIX):
            return self._transport.json("POST", f"/v1/invitations/{verb}", json={"token": said})
        return self._transport.json("POST", f"/v1/invitations/{quote(said, safe='')}/{verb}")
