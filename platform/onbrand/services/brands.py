"""Brands and their members. The caller's role is looked up in every call; a removed member is out at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from onbrand.brand import must_be_brand_id
from onbrand.config import Limits
from onbrand.db.session import Session
from onbrand.errors import Conflict, Forbidden, InvalidInput, NotFound
from onbrand.services.identity import must_be_email
from onbrand.services.rows import Row, known_id, must_be_there

Role = Literal["member", "admin"]
_REGION = re.compile(r"[a-z0-9-]{2,32}")

_BRAND = """
select b.id, b.name, b.home_region, bu.role, b.created_at
from app.brands b join app.brand_users bu on bu.brand_id = b.id and bu.user_id = private.uid()
"""
_MEMBER = """
select bu.brand_id, bu.user_id, e.email, bu.role, bu.created_at
from app.brand_users bu left join private.member_emails(%(brand_id)s) e on e.user_id = bu.user_id
where bu.brand_id = %(brand_id)s
"""


class Brand(Row):
    """A brand, and the caller's role in it."""

    id: str
    name: str
    home_region: str
    role: Role
    created_at: datetime


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
        most: brands of one account.

    Raises:
        InvalidInput: the id, the name or the region is not one.
        Conflict: the id is taken, or the account has as many brands as it may.
        Forbidden: the caller's token is bound to one brand.
    """
    must_be_brand_id(brand_id)
    if not _REGION.fullmatch(region):
        raise InvalidInput("region must be a name like us-east-1", param="region")
    await session.run("select set_config('onbrand.brands_per_account', %s, true)", [str(most)])
    try:
        await session.run(
            "insert into app.brands (id, name, home_region, user_id) values (%s, %s, %s, private.uid())",
            [brand_id, _must_be_name(brand_id if name is None else name), region],
        )
    except Conflict as problem:
        if problem.fields.get("sqlstate") == "OB005":
            raise Conflict(f"an account may have {most} brands, and this one has; use one of them") from None
        raise Conflict(f"the brand id '{brand_id}' is taken; choose another", param="id") from None
    except Forbidden:
        raise Forbidden("a token that is bound to one brand cannot make another; log in without one") from None
    await record(session, brand_id, "brand.create", {})
    return await get_brand(session, brand_id)


async def list_brands(session: Session) -> list[Brand]:
    """The caller's brands, by id."""
    return [Brand.of(row) for row in await session.all(f"{_BRAND} order by b.id")]


async def get_brand(session: Session, brand_id: str) -> Brand:
    """One of the caller's brands. Raises NotFound."""
    row = await session.maybe(f"{_BRAND} where b.id = %s", [brand_id])
    return Brand.of(must_be_there(row, "brand"))


async def account_of(session: Session, brand_id: str) -> str:
    """Whose the brand is: who made it. All brands of an account share what one account may take. Raises NotFound."""
    row = await session.maybe("select user_id from app.brands where id = %s", [brand_id])
    return str(must_be_there(row, "brand")["user_id"])


async def must_be_admin(session: Session, brand_id: str, verb: str) -> None:
    """Raise NotFound to strangers, Forbidden to members; `verb` completes "only an admin may ..."."""
    if (await get_brand(session, brand_id)).role != "admin":
        raise Forbidden(f"only an admin of the brand may {verb}")


async def list_members(session: Session, brand_id: str) -> list[Member]:
    """Everyone for an admin, oneself for a member, by time. Raises NotFound to strangers."""
    await get_brand(session, brand_id)
    rows = await session.all(f"{_MEMBER} order by bu.created_at, bu.user_id", {"brand_id": brand_id})
    return [Member.of(row) for row in rows]


async def add_member(session: Session, brand_id: str, email: str, role: str = "member") -> Member:
    """Let the account with this address in. Raises NotFound (brand, account), Forbidden, Conflict, InvalidInput."""
    must_be_role(role)
    email = must_be_email(email)
    await must_be_admin(session, brand_id, "add members")
    found = await session.one("select private.find_user(%s, %s) as user_id", [brand_id, email])
    if found["user_id"] is None:
        raise NotFound("nobody has an account with this address; they have to sign up first", param="email")
    try:
        await session.run(
            "insert into app.brand_users (brand_id, user_id, role) values (%s, %s, %s)",
            [brand_id, found["user_id"], role],
        )
    except Conflict:
        raise Conflict("they are a member already", param="email") from None
    await record(session, brand_id, "member.add", {"user_id": found["user_id"], "role": role})
    return await _member(session, brand_id, found["user_id"])


async def set_role(session: Session, brand_id: str, user_id: str, role: str) -> Member:
    """Make a member an admin or the reverse. Raises Conflict for the last admin."""
    must_be_role(role)
    user_id = known_id(user_id, "member")
    await must_be_admin(session, brand_id, "change roles")
    num_changed = await session.run(
        "update app.brand_users set role = %s where brand_id = %s and user_id = %s", [role, brand_id, user_id]
    )
    if num_changed == 0:
        raise NotFound("there is no such member")
    await record(session, brand_id, "member.set_role", {"user_id": user_id, "role": role})
    return await _member(session, brand_id, user_id)


async def remove_member(session: Session, brand_id: str, user_id: str) -> None:
    """End a membership, at once. Raises Conflict for the last admin."""
    user_id = known_id(user_id, "member")
    await must_be_admin(session, brand_id, "remove members")
    found = await session.maybe(
        "select 1 from app.brand_users where brand_id = %s and user_id = %s", [brand_id, user_id]
    )
    must_be_there(found, "member")
    me = await session.one("select private.uid() as id")
    if me["id"] == user_id:  # afterwards they may not write in the brand's record
        await _lock_members(session, brand_id)
        await record(session, brand_id, "member.remove", {"user_id": user_id})
    num_removed = await session.run(
        "delete from app.brand_users where brand_id = %s and user_id = %s", [brand_id, user_id]
    )
    if num_removed == 0:
        raise NotFound("there is no such member")
    if me["id"] != user_id:
        await record(session, brand_id, "member.remove", {"user_id": user_id})


async def is_member(session: Session, brand_id: str, email: str) -> bool:
    """Whether this address's account is a member already; only an admin is told."""
    row = await session.maybe(
        "select 1 from app.brand_users where brand_id = %(brand_id)s"
        " and user_id = private.find_user(%(brand_id)s, %(email)s)",
        {"brand_id": brand_id, "email": must_be_email(email)},
    )
    return row is not None


async def record(session: Session, brand_id: str, what: str, detail: Mapping[str, Any]) -> None:
    """One line in the brand's chained record: who did `what` (``model.download``). Ids only, no content."""
    from psycopg.types.json import Jsonb

    await session.run("select private.record(%s, %s, %s)", [brand_id, what, Jsonb(dict(detail))])


async def _lock_members(session: Session, brand_id: str) -> None:
    """The lock of the trigger that keeps an admin, before the record's: all who take both take them in this order."""
    await session.run("select pg_advisory_xact_lock(hashtextextended('members:' || %s, 0))", [brand_id])


async def _member(session: Session, brand_id: str, user_id: str) -> Member:
    row = await session.maybe(f"{_MEMBER} and bu.user_id = %(user_id)s", {"brand_id": brand_id, "user_id": user_id})
    return Member.of(must_be_there(row, "member"))


def _must_be_name(name: str) -> str:
    name = name.strip()
    if not 1 <= len(name) <= 200:
        raise InvalidInput("name must have 1 to 200 characters", param="name")
    return name


def must_be_role(role: str) -> None:
    """Raise InvalidInput for what is no role."""
    if role not in ("member", "admin"):
        raise InvalidInput("role must be 'member' or 'admin'", param="role")
