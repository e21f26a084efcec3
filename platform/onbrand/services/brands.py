"""Brands and their members. Every call looks up the caller's role, so a removed member loses access at once."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from onbrand.brand import must_be_brand_id
from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import Conflict, Forbidden, InvalidInput, NotFound
from onbrand.services.audit import write_audit_line
from onbrand.services.identity import must_be_email
from onbrand.services.pagination import PAGE_MAX, Page, Row, known_id, must_be_there, page_of
from onbrand.storage.regions import must_be_region
from onbrand.visible import must_be_name

Role = Literal["member", "admin"]

_BRAND = """
select b.id, b.name, b.home_region, bu.role, b.created_at
from app.brands b join app.brand_users bu on bu.brand_id = b.id and bu.user_id = private.uid()
"""
_MEMBER = """
select t.* from (
  select bu.brand_id, bu.user_id, bu.user_id as id, e.email, bu.role, bu.created_at
  from app.brand_users bu left join private.member_emails(%(brand_id)s) e on e.user_id = bu.user_id) t
"""


class Brand(Row):
    """A brand, and the caller's role in it."""

    id: str
    name: str
    home_region: str
    role: Role
    created_at: datetime


class Membership(Row):
    """The caller's role in a brand, and the account that created it; all brands of an account share its limits."""

    brand_id: str
    role: Role
    account_id: str


class Member(Row):
    """A membership."""

    brand_id: str
    user_id: str
    email: str | None
    role: Role
    created_at: datetime


async def create_brand(
    session: Session,
    brand_id: str,
    name: str | None = None,
    region: str = "us-east-1",
    most: int = Limits().brands_per_account,
) -> Brand:
    """Make a brand; the caller becomes its first admin.

    Args:
        most: maximum brands of one account.

    Raises:
        InvalidInput: the id, the name or the region is invalid.
        Conflict: the id is taken, or the account has the maximum of brands.
        Forbidden: the caller's token is bound to one brand.
    """
    must_be_brand_id(brand_id)
    must_be_region(region)
    try:
        async with session.claiming(brands_per_account=most):
            await session.run(
                "insert into app.brands (id, name, home_region, user_id) values (%s, %s, %s, private.uid())",
                [brand_id, must_be_name(brand_id if name is None else name), region],
            )
    except Conflict as problem:
        if problem.fields.get("sqlstate") == "OB005":
            raise Conflict(f"an account may have {most} brands, and this one has; use one of them") from None
        raise Conflict(f"the brand id '{brand_id}' is taken; choose another", param="id") from None
    except Forbidden:
        raise Forbidden("a token that is bound to one brand cannot make another; log in without one") from None
    async with session.in_brand(brand_id):
        await write_audit_line(session, brand_id, "brand.create", {})
        return await get_brand(session, brand_id)


async def list_brands(session: Session, limit: int = PAGE_MAX, cursor: str | None = None) -> Page[Brand]:
    """The caller's brands, ordered by id; a cursor is the previous page's last id. Raises InvalidInput."""
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidInput(f"limit must be 1 to {PAGE_MAX}", param="limit")
    rows = await session.all("select * from private.my_brands(%s, %s)", [cursor, limit + 1])
    found = [Brand.of(row) for row in rows[:limit]]
    more = len(rows) > limit
    return Page[Brand](data=found, has_more=more, next_cursor=found[-1].id if more else None)


async def get_brand(session: Session, brand_id: str) -> Brand:
    """One of the caller's brands. Raises NotFound."""
    row = await session.maybe(f"{_BRAND} where b.id = %s", [brand_id])
    return Brand.of(must_be_there(row, "brand"))


async def membership_of(session: Session, brand_id: str) -> Membership:
    """The caller's membership. Raises NotFound."""
    row = await session.maybe(
        "select b.id as brand_id, bu.role, b.user_id as account_id from app.brands b"
        " join app.brand_users bu on bu.brand_id = b.id and bu.user_id = private.uid() where b.id = %s",
        [brand_id],
    )
    return Membership.of(must_be_there(row, "brand"))


async def must_be_admin(session: Session, brand_id: str, verb: str) -> None:
    """Raise NotFound for strangers, Forbidden for members; `verb` completes "only an admin may ..."."""
    if (await get_brand(session, brand_id)).role != "admin":
        raise Forbidden(f"only an admin of the brand may {verb}")


async def list_members(session: Session, brand_id: str, limit: int = 20, cursor: str | None = None) -> Page[Member]:
    """All members for an admin, only oneself for a member, newest first. Raises NotFound for strangers."""
    await get_brand(session, brand_id)
    return await page_of(session, Member, _MEMBER, brand_id, limit, cursor)


async def set_role(session: Session, brand_id: str, user_id: str, role: str) -> Member:
    """Change a member's role. Raises InvalidInput, NotFound, Forbidden (a member), Conflict (the last admin)."""
    must_be_role(role)
    user_id = known_id(user_id, "member")
    await _lock_members(session, brand_id)
    await must_be_admin(session, brand_id, "change roles")
    await write_audit_line(
        session, brand_id, "member.set_role", {"user_id": user_id, "role": role}
    )  # the caller is still admin
    num_changed = await session.run(
        "update app.brand_users set role = %s where brand_id = %s and user_id = %s", [role, brand_id, user_id]
    )
    if num_changed == 0:
        raise NotFound("there is no such member")
    return await _member(session, brand_id, user_id)


async def remove_member(session: Session, brand_id: str, user_id: str) -> None:
    """End a membership at once: any member's for an admin, one's own for a member.

    Raises NotFound, Forbidden (a member removes another), Conflict (the last admin).
    """
    user_id = known_id(user_id, "member")
    me = await session.one("select private.uid() as id")
    if me["id"] == user_id:
        await leave(session, brand_id)
        return
    await _lock_members(session, brand_id)
    await must_be_admin(session, brand_id, "remove other members")
    num_removed = await session.run(
        "delete from app.brand_users where brand_id = %s and user_id = %s", [brand_id, user_id]
    )
    if num_removed == 0:
        raise NotFound("there is no such member")
    await write_audit_line(session, brand_id, "member.remove", {"user_id": user_id})


async def leave(session: Session, brand_id: str) -> None:
    """End the caller's own membership at once. Raises NotFound for strangers, Conflict for the last admin."""
    await get_brand(session, brand_id)
    await session.one("select private.leave_brand(%s)", [brand_id])


async def is_member(session: Session, brand_id: str, email: str) -> bool:
    """Whether the account of this address is a member already; a member sees only their own."""
    row = await session.maybe(
        "select 1 from private.member_emails(%s) e where e.email = %s", [brand_id, must_be_email(email)]
    )
    return row is not None


async def _lock_members(session: Session, brand_id: str) -> None:
    """Take this lock before all others (the triggers', the record's): two who remove each other wait in turn."""
    await session.run("select private.lock_brand('members', %s)", [brand_id])


async def _member(session: Session, brand_id: str, user_id: str) -> Member:
    row = await session.maybe(
        f"{_MEMBER} where t.brand_id = %(brand_id)s and t.user_id = %(user_id)s",
        {"brand_id": brand_id, "user_id": user_id},
    )
    return Member.of(must_be_there(row, "member"))


def must_be_role(role: str) -> None:
    """Raise InvalidInput for an unknown role."""
    if role not in ("member", "admin"):
        raise InvalidInput("role must be 'member' or 'admin'", param="role")
