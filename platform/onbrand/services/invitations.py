"""Invitations: an admin names an address and a role; the account of that address accepts or declines.

Sign-up does not verify an address, so its account also needs the invitation's token, which the admin hands over:
`obi_<id>_<secret>`, shown once (there is no mail server); only a SHA-256 is kept. An account whose address an outside
issuer has verified finds the invitation in its own list, and needs no token.
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
from onbrand.services import audit, brands
from onbrand.services.identity import must_be_email
from onbrand.services.pagination import Page, Row, known_id, must_be_there, page_of, page_where

DAYS_MAX = 30
_TOKEN = re.compile(r"obi_([0-9a-f]{32})_([0-9a-f]{64})")
_COLUMNS = """t.id, t.brand_id, t.user_id, t.email, t.role, t.created_at, t.expires_at,
  case when t.accepted_at is not null then 'accepted' when t.declined then 'declined'
    when t.revoked_at is not null then 'revoked' when t.expires_at <= now() then 'expired' else 'open' end as status"""


class Invitation(Row):
    """An invitation without its secret; `user_id` is the inviter."""

    id: str
    brand_id: str
    user_id: str
    email: str
    role: brands.Role
    status: Literal["open", "accepted", "declined", "revoked", "expired"]
    created_at: datetime
    expires_at: datetime


class NewInvitation(Invitation):
    """A new invitation with its token, shown to the inviter once."""

    token: str | None = Field(repr=False)


class ReceivedInvitation(Row):
    """An open invitation as the invited account sees it."""

    id: str
    brand_id: str
    role: brands.Role
    created_at: datetime
    expires_at: datetime


async def invite(
    session: Session, brand_id: str, email: str, role: str = "member", days: int = 7, most_open: int | None = None
) -> NewInvitation:
    """Invite an address; its `token` is not available later.

    Args:
        most_open: maximum open invitations of the brand; None: any number.

    Raises InvalidInput, Forbidden (no admin), Conflict (a member already, or too many open invitations).
    """
    brands.must_be_role(role)
    email = must_be_email(email)
    if not 1 <= days <= DAYS_MAX:
        raise InvalidInput(f"days must be 1 to {DAYS_MAX}", param="days")
    await brands.must_be_admin(session, brand_id, "invite")
    if await brands.is_member(session, brand_id, email):
        raise Conflict("they are a member already", param="email")
    await _must_have_room(session, brand_id, most_open)
    secret = secrets.token_hex(32)
    row = await session.one(
        "insert into app.invitations as t (brand_id, user_id, email, role, hash, expires_at)"
        f" values (%s, private.uid(), %s, %s, %s, now() + %s) returning {_COLUMNS}",
        [brand_id, email, role, _hash_of(secret), timedelta(days=days)],
    )
    await audit.write_audit_line(session, brand_id, "invitation.create", {"invitation_id": row["id"], "role": role})
    return NewInvitation.of({**row, "token": f"obi_{row['id'].replace('-', '')}_{secret}"})


async def _must_have_room(session: Session, brand_id: str, most_open: int | None) -> None:
    row = await session.one(
        "select count(*)::integer as num from app.invitations where brand_id = %s"
        " and accepted_at is null and revoked_at is null and expires_at > now()",
        [brand_id],
    )
    if most_open is not None and row["num"] >= most_open:
        raise Conflict(f"{row['num']} invitations of this brand are open, of {most_open} at most; revoke some")


async def list_invitations(
    session: Session, brand_id: str, limit: int = 20, cursor: str | None = None
) -> Page[Invitation]:
    """The brand's invitations, newest first, ended ones too; admins only."""
    return await page_of(session, Invitation, f"select {_COLUMNS} from app.invitations t", brand_id, limit, cursor)


async def revoke(session: Session, brand_id: str, invitation_id: str) -> None:
    """End an invitation; repeating is allowed. Raises NotFound, Forbidden, Conflict (accepted already)."""
    invitation_id = known_id(invitation_id, "invitation")
    await brands.must_be_admin(session, brand_id, "revoke invitations")
    num_revoked = await session.run(
        "update app.invitations set revoked_at = now()"
        " where brand_id = %s and id = %s and revoked_at is null and accepted_at is null",
        [brand_id, invitation_id],
    )
    if num_revoked:
        await audit.write_audit_line(session, brand_id, "invitation.revoke", {"invitation_id": invitation_id})
        return
    row = await session.maybe(
        "select accepted_at from app.invitations where brand_id = %s and id = %s", [brand_id, invitation_id]
    )
    if must_be_there(row, "invitation")["accepted_at"] is not None:
        raise Conflict("this invitation was accepted; remove the member instead")


async def list_received(session: Session, limit: int = 20, cursor: str | None = None) -> Page[ReceivedInvitation]:
    """Open invitations to the caller's verified address, newest first; none for an address that is not verified."""
    select = (
        "select t.* from private.my_invitations(%(at)s::timestamptz, %(after)s::uuid, %(limit)s::integer) t where true"
    )
    return await page_where(session, ReceivedInvitation, select, {}, limit, cursor)


async def accept(session: Session, token: str) -> brands.Brand:
    """Become a member by the token of an invitation to the address of the caller's account.

    An existing role stays. Raises NotFound, with the same message for every reason: unknown, used, declined, revoked,
    expired, or for another address.
    """
    return await _joined(session, await _answer(session, *_parts_of(token), accepts=True))


async def accept_received(session: Session, invitation_id: str) -> brands.Brand:
    """Become a member by an invitation to the caller's verified address. Raises NotFound, as `accept`."""
    return await _joined(session, await _answer(session, known_id(invitation_id, "invitation"), None, accepts=True))


async def decline(session: Session, token: str) -> None:
    """End the invitation of a token. Raises NotFound, as `accept`."""
    await _answer(session, *_parts_of(token), accepts=False)


async def decline_received(session: Session, invitation_id: str) -> None:
    """End an invitation to the caller's verified address. Raises NotFound, as `accept`."""
    await _answer(session, known_id(invitation_id, "invitation"), None, accepts=False)


async def _joined(session: Session, brand_id: str) -> brands.Brand:
    async with session.in_brand(brand_id):
        return await brands.get_brand(session, brand_id)


async def _answer(session: Session, invitation_id: str, hashed: str | None, *, accepts: bool) -> str:
    verb = "accept" if accepts else "decline"
    row = await session.one(f"select private.{verb}_invitation(%s, %s) as brand_id", [invitation_id, hashed])
    if row["brand_id"] is None:
        raise _none_for_you(None if hashed is None else "token")
    return str(row["brand_id"])


def _parts_of(token: str) -> tuple[str, str]:
    """An invitation's id and its secret's hash. Raises NotFound."""
    parts = _TOKEN.fullmatch(token.strip())
    if not parts:
        raise _none_for_you("token")
    return parts[1], _hash_of(parts[2])


def _none_for_you(param: str | None) -> NotFound:
    return NotFound(
        "there is no such invitation for your address; ask the admin who invited you for a new one", param=param
    )


def _hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
