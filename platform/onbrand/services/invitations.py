"""Invitations: an admin names an address and a role, and hands over a token that only that address's account can use.

A token is `obi_<id>_<secret>`, shown once to the inviter (there is no mail server); only a SHA-256 is kept.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime, timedelta
from typing import Literal

from pydantic import Field

from onbrand.db.session import Session
from onbrand.errors import Conflict, InvalidInput, NotFound
from onbrand.services import brands
from onbrand.services.identity import must_be_email
from onbrand.services.rows import Page, Row, known_id, must_be_there, page_of

DAYS_MAX = 30
_TOKEN = re.compile(r"obi_([0-9a-f]{32})_([0-9a-f]{64})")
_COLUMNS = """t.id, t.brand_id, t.user_id, t.email, t.role, t.created_at, t.expires_at,
  case when t.accepted_at is not null then 'accepted' when t.revoked_at is not null then 'revoked'
    when t.expires_at <= now() then 'expired' else 'open' end as status"""


class Invitation(Row):
    """An invitation without its secret; `user_id` is who invites."""

    id: str
    brand_id: str
    user_id: str
    email: str
    role: brands.Role
    status: Literal["open", "accepted", "revoked", "expired"]
    created_at: datetime
    expires_at: datetime


class NewInvitation(Invitation):
    """An invitation as the inviter sees it, once."""

    token: str | None = Field(repr=False)


async def invite(session: Session, brand_id: str, email: str, role: str = "member", days: int = 7) -> NewInvitation:
    """Invite an address; its `token` is never to be had again.

    Raises InvalidInput, Forbidden (no admin), Conflict (a member already).
    """
    brands.must_be_role(role)
    email = must_be_email(email)
    if not 1 <= days <= DAYS_MAX:
        raise InvalidInput(f"days must be 1 to {DAYS_MAX}", param="days")
    await brands.must_be_admin(session, brand_id, "invite")
    if await brands.is_member(session, brand_id, email):
        raise Conflict("they are a member already", param="email")
    secret = secrets.token_hex(32)
    row = await session.one(
        "insert into app.invitations as t (brand_id, user_id, email, role, hash, expires_at)"
        f" values (%s, private.uid(), %s, %s, %s, now() + %s) returning {_COLUMNS}",
        [brand_id, email, role, _hash_of(secret), timedelta(days=days)],
    )
    await brands.record(session, brand_id, "invitation.create", {"invitation_id": row["id"], "role": role})
    return NewInvitation.of({**row, "token": f"obi_{row['id'].replace('-', '')}_{secret}"})


async def list_invitations(
    session: Session, brand_id: str, limit: int = 20, cursor: str | None = None
) -> Page[Invitation]:
    """The brand's invitations, newest first, ended ones too; admins only."""
    return await page_of(session, Invitation, f"select {_COLUMNS} from app.invitations t", brand_id, limit, cursor)


async def revoke(session: Session, brand_id: str, invitation_id: str) -> None:
    """End an invitation; again is no error. Raises NotFound, Forbidden, Conflict (accepted already)."""
    invitation_id = known_id(invitation_id, "invitation")
    await brands.must_be_admin(session, brand_id, "revoke invitations")
    num_revoked = await session.run(
        "update app.invitations set revoked_at = now()"
        " where brand_id = %s and id = %s and revoked_at is null and accepted_at is null",
        [brand_id, invitation_id],
    )
    if num_revoked:
        await brands.record(session, brand_id, "invitation.revoke", {"invitation_id": invitation_id})
        return
    row = await session.maybe(
        "select accepted_at from app.invitations where brand_id = %s and id = %s", [brand_id, invitation_id]
    )
    if must_be_there(row, "invitation")["accepted_at"] is not None:
        raise Conflict("this invitation was accepted; remove the member instead")


async def accept(session: Session, token: str) -> brands.Brand:
    """Become a member of the brand that invites the caller's address. A role that one has already stays.

    Raises NotFound, in the same words for every reason: unknown, used, revoked, expired, or another address's.
    """
    parts = _TOKEN.fullmatch(token.strip())
    row = parts and await session.maybe(
        "select private.accept_invitation(%s, %s) as brand_id", [parts[1], _hash_of(parts[2])]
    )
    if not parts or not row or row["brand_id"] is None:
        raise NotFound(
            "there is no such invitation for your address; ask the admin who invited you for a new one", param="token"
        )
    detail = {"invitation_id": known_id(parts[1], "invitation")}
    async with session.in_brand(row["brand_id"]):
        await brands.record(session, row["brand_id"], "invitation.accept", detail)
        return await brands.get_brand(session, row["brand_id"])


def _hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
