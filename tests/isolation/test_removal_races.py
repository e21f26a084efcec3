"""An object that a member creates while their membership ends is removed with it, or is not created.

Two real connections race: first the creation commits last, then the removal.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest

from onbrand.brand import Scope
from onbrand.db.claims import STAMP, ClaimsSigner
from onbrand.db.logins import DatabaseUrls
from onbrand.db.session import Database, Identity, Session, _become
from onbrand.errors import Forbidden, NotFound
from onbrand.secrets_file import Secrets
from onbrand.services import brands, invitations, keys
from tests.conftest import BrandOfPeople, MakeBrand, MakeUser, Person, join

NUM_ROUNDS = 25
_WAIT_SECONDS = 10
MEMBERS_MAKE = {
    "an upload": "insert into app.uploads (brand_id, user_id, kind, filename, content_type, bytes)"
    " values (%(brand)s, %(me)s, 'image', 'made', 'image/png', 1)",
    "a training job": "insert into app.lora_training_jobs (brand_id, user_id, name, model_type)"
    " values (%(brand)s, %(me)s, 'made', 'sd15')",
    "a generation": "insert into app.generations (brand_id, user_id, model_type, model_name, prompt, num_images, width,"
    " height, seed, num_inference_steps, guidance_scale, true_cfg_scale, lora_scale, output_format)"
    " values (%(brand)s, %(me)s, 'sd15', 'sd15', 'made', 1, 64, 64, 1, 1, 1, 1, 1, 'png')",
}
ADMINS_MAKE = {
    "a key": "insert into app.api_keys (brand_id, user_id, name, hash, scopes)"
    " values (%(brand)s, %(me)s, 'made', repeat('f', 64), array['read'])",
    "an invitation": "insert into app.invitations (brand_id, user_id, email, role, hash, expires_at)"
    " values (%(brand)s, %(me)s, 'made@example.com', 'admin', repeat('f', 64), now() + interval '1 day')",
    "a role": "update app.brand_users set role = 'admin' where brand_id = %(brand)s and user_id = %(other)s",
    "a removal": "delete from app.brand_users where brand_id = %(brand)s and user_id = %(other)s",
}
MADE = {
    "an upload": "select 1 from app.uploads where brand_id = %(brand)s and filename = 'made'",
    "a training job": "select 1 from app.lora_training_jobs where brand_id = %(brand)s and name = 'made'",
    "a generation": "select 1 from app.generations where brand_id = %(brand)s and prompt = 'made'",
    "a key": "select 1 from app.api_keys where brand_id = %(brand)s and name = 'made'",
    "an invitation": "select 1 from app.invitations where brand_id = %(brand)s and email = 'made@example.com'",
    "a role": "select 1 from app.brand_users where brand_id = %(brand)s and user_id = %(other)s and role = 'admin'",
    "a removal": "select 1 where not exists (select 1 from app.brand_users"
    " where brand_id = %(brand)s and user_id = %(other)s)",
    "a member": "select 1 from app.brand_users where brand_id = %(brand)s and user_id = %(guest)s",
}
LIVES = {
    "a key": f"{MADE['a key']} and revoked_at is null",
    "an invitation": f"{MADE['an invitation']} and revoked_at is null",
}
ENDS = ("removed", "demoted")


@dataclass(frozen=True)
class House:
    """A brand whose second admin is about to leave."""

    db: Database
    brand: BrandOfPeople
    leaver: Person
    guest: Person
    owner: psycopg.Connection

    @property
    def ids(self) -> dict[str, str]:
        other, guest = self.brand.member2.user_id, self.guest.user_id
        return {"brand": self.brand.id, "me": self.leaver.user_id, "other": other, "guest": guest}

    async def end(self, session: Session, how: str) -> None:
        """The brand's first admin ends the leaver's membership or role."""
        if how == "removed":
            await brands.remove_member(session, self.brand.id, self.leaver.user_id)
        else:
            await brands.set_role(session, self.brand.id, self.leaver.user_id, "member")

    async def end_now(self, how: str = "removed") -> None:
        async with self.db.user_session(self.brand.admin.scope) as session:
            await self.end(session, how)

    async def make(self, what: str) -> str:
        """The result of the leaver's statement: `made` or `refused`."""
        statement = (MEMBERS_MAKE | ADMINS_MAKE)[what]
        try:
            async with self.db.user_session(self.leaver.scope) as session:
                return "made" if await session.run(statement, self.ids) else "refused"
        except Forbidden:
            return "refused"

    def has(self, question: str) -> bool:
        self.owner.rollback()
        return self.owner.execute(question, self.ids).fetchone() is not None

    async def waiting(self, doing: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of `doing` that waits for a lock. Fails if it ends without waiting."""
        task = asyncio.create_task(doing)
        waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        async with asyncio.timeout(_WAIT_SECONDS):
            while not task.done() and not self.has(waits):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not task.done(), "it did not wait for the other"
        return task


@pytest.fixture
async def house(db: Database, make_brand: MakeBrand, make_user: MakeUser, owner: psycopg.Connection) -> House:
    brand, leaver, guest = await make_brand("raced"), await make_user("leaver"), await make_user("guest")
    await join(db, brand.id, brand.admin, leaver, "admin")
    return House(db, brand, replace(leaver, at=brand.id), guest, owner)


@pytest.mark.parametrize("what", [*MEMBERS_MAKE, *ADMINS_MAKE])
async def test_a_removal_waits_for_what_is_being_made(house: House, what: str) -> None:
    async with house.db.user_session(house.leaver.scope) as making:
        assert await making.run((MEMBERS_MAKE | ADMINS_MAKE)[what], house.ids) == 1
        removal = await house.waiting(house.end_now())
    await removal
    assert house.has(MADE[what])
    assert not house.has(LIVES.get(what, "select 1 where false"))


@pytest.mark.parametrize("what", [*MEMBERS_MAKE, *ADMINS_MAKE])
async def test_what_comes_while_its_maker_is_removed_waits_and_is_refused(house: House, what: str) -> None:
    async with house.db.user_session(house.brand.admin.scope) as removing:
        await house.end(removing, "removed")
        making = await house.waiting(house.make(what))
    assert await making == "refused"
    assert not house.has(MADE[what])


@pytest.mark.parametrize("what", ADMINS_MAKE)
async def test_what_comes_while_its_maker_is_demoted_waits_and_is_refused(house: House, what: str) -> None:
    async with house.db.user_session(house.brand.admin.scope) as demoting:
        await house.end(demoting, "demoted")
        making = await house.waiting(house.make(what))
    assert await making == "refused"
    assert not house.has(MADE[what])


@pytest.mark.parametrize("what", ADMINS_MAKE)
async def test_a_demotion_waits_for_what_is_being_made(house: House, what: str) -> None:
    async with house.db.user_session(house.leaver.scope) as making:
        assert await making.run(ADMINS_MAKE[what], house.ids) == 1
        demotion = await house.waiting(house.end_now("demoted"))
    await demotion
    assert not house.has(LIVES["an invitation"])


@pytest.mark.parametrize("what", MEMBERS_MAKE)
async def test_a_change_of_role_need_not_wait_for_what_members_make(house: House, what: str) -> None:
    async with house.db.user_session(house.leaver.scope) as making:
        assert await making.run(MEMBERS_MAKE[what], house.ids) == 1
        async with asyncio.timeout(_WAIT_SECONDS):
            await house.end_now("demoted")
    assert house.has(MADE[what])


LEVELS = {
    "each statement": psycopg.IsolationLevel.READ_COMMITTED,
    "the first statement": psycopg.IsolationLevel.REPEATABLE_READ,
}


@pytest.mark.parametrize("view_of", LEVELS)
@pytest.mark.parametrize("what", [*MEMBERS_MAKE, *ADMINS_MAKE])
async def test_an_open_transaction_of_who_was_removed_makes_nothing(
    house: House, database: DatabaseUrls, secrets: Secrets, what: str, view_of: str
) -> None:
    """Also one that goes on seeing the database as it was when the membership stood."""
    async with await psycopg.AsyncConnection.connect(database.web_url) as connection:
        await connection.set_isolation_level(LEVELS[view_of])
        stamp = await (await connection.execute(f"select {STAMP}")).fetchone()
        assert stamp is not None
        leaver = Identity("authenticated", house.leaver.scope.claims(), ClaimsSigner(secrets.claims), stamp[0])
        await _become(connection, leaver)  # type: ignore[arg-type]
        seen = await connection.execute("select 1 from app.brands where id = %(brand)s", house.ids)
        assert seen.rowcount == 1
        await house.end_now()
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.SerializationFailure):
            await connection.execute((MEMBERS_MAKE | ADMINS_MAKE)[what], house.ids)
            await connection.commit()
    assert not house.has(MADE[what])


# the one who accepts


async def _invited(house: House) -> str:
    """The token by which the leaver invites the guest."""
    async with house.db.user_session(house.leaver.scope) as session:
        made = await invitations.invite(session, house.brand.id, house.guest.email, "admin")
    return made.token or ""


async def _accept(house: House, token: str) -> str:
    try:
        async with house.db.user_session(house.guest.scope) as session:
            await invitations.accept(session, token)
        return "made"
    except NotFound:
        return "refused"


@pytest.mark.parametrize("end", ENDS)
async def test_nobody_comes_in_while_who_invited_them_goes(house: House, end: str) -> None:
    token = await _invited(house)
    async with house.db.user_session(house.brand.admin.scope) as removing:
        await house.end(removing, end)
        accepting = await house.waiting(_accept(house, token))
    assert await accepting == "refused"
    assert not house.has(MADE["a member"])


@pytest.mark.parametrize("end", ENDS)
async def test_who_invited_goes_after_who_is_coming_in(house: House, end: str) -> None:
    token = await _invited(house)
    async with house.db.user_session(house.guest.scope) as accepting:
        await invitations.accept(accepting, token)
        removal = await house.waiting(house.end_now(end))
    await removal
    assert house.has(MADE["a member"])


@pytest.mark.parametrize("end", ENDS)
async def test_a_removal_by_plain_sql_waits_for_who_is_coming_in(house: House, end: str) -> None:
    """Without the services' own lock, which makes them wait in turn: by the row."""
    statement = {
        "removed": "delete from app.brand_users where brand_id = %(brand)s and user_id = %(me)s",
        "demoted": "update app.brand_users set role = 'member' where brand_id = %(brand)s and user_id = %(me)s",
    }[end]

    async def end_it() -> None:
        async with house.db.user_session(house.brand.admin.scope) as session:
            await session.run("set local statement_timeout = 8000")
            await session.run(statement, house.ids)

    token = await _invited(house)
    async with house.db.user_session(house.guest.scope) as accepting:
        await invitations.accept(accepting, token)
        removal = await house.waiting(end_it())
    await removal


# coming back


async def test_a_key_made_while_its_maker_goes_is_dead_when_they_come_back(house: House) -> None:
    """Many rounds, each as it happens to fall: made before, or not made."""
    for _ in range(NUM_ROUNDS):
        made, _ = await asyncio.gather(_make_key(house), house.end_now())
        await join(house.db, house.brand.id, house.brand.admin, house.leaver, "admin")
        async with house.db.user_session(None) as nobody:
            assert made is None or await nobody.maybe(*_used(made)) is None
        assert not house.has("select 1 from app.api_keys where brand_id = %(brand)s and revoked_at is null")


async def _make_key(house: House) -> str | None:
    try:
        async with house.db.user_session(house.leaver.scope) as session:
            return (await keys.create_key(session, house.brand.id, "a key", ["manage"])).key
    except (Forbidden, NotFound):
        return None


def _used(key: str) -> tuple[str, list[str]]:
    _, key_id, secret = key.split("_")
    return "select 1 from private.find_key(%s, encode(sha256(%s::bytea), 'hex'))", [key_id, secret]


async def test_who_leaves_while_they_make_keys_is_not_told_to_try_again(house: House) -> None:
    """Locks are taken in one order: none of the two is a deadlock's victim."""
    for _ in range(NUM_ROUNDS):
        await asyncio.gather(_make_key(house), _leave(house.db, house.brand.id, house.leaver.scope))
        await join(house.db, house.brand.id, house.brand.admin, house.leaver, "admin")


async def _leave(db: Database, brand_id: str, scope: Scope) -> None:
    async with db.user_session(scope) as session:
        await brands.leave(session, brand_id)


async def test_who_was_removed_does_not_come_back_by_an_older_invitation(house: House) -> None:
    async with house.db.user_session(house.brand.admin.scope) as session:
        first, second = [
            (await invitations.invite(session, house.brand.id, house.guest.email)).token or "" for _ in "12"
        ]
    assert await _accept(house, first) == "made"
    async with house.db.user_session(house.brand.admin.scope) as session:
        await brands.remove_member(session, house.brand.id, house.guest.user_id)
    assert await _accept(house, second) == "refused"
    assert not house.has(MADE["a member"])


STAYS_WITH_THE_BRAND = {"app.brand_assets", "app.asset_captions", "app.documents", "storage.objects"}
OF_THE_CALLER_ALONE = {"app.idempotency_keys"}
UNGUARDED = """
select c.oid::regclass::text from pg_class c
join pg_attribute b on b.attrelid = c.oid and b.attname = 'brand_id' and not b.attisdropped
join pg_attribute u on u.attrelid = c.oid and u.attname = 'user_id' and not u.attisdropped
where c.relkind in ('r', 'p') and has_column_privilege('authenticated', c.oid, u.attnum, 'insert')
  and not exists (select 1 from pg_trigger t where t.tgrelid = c.oid and t.tgenabled in ('O', 'A') and t.tgfoid in
    ('private.tg_creator_is_admin'::regproc, 'private.tg_creator_is_member'::regproc))"""


def test_every_row_with_a_maker_holds_their_membership_or_stays_with_the_brand(owner: psycopg.Connection) -> None:
    """A new table has to be one or the other."""
    unguarded = {table for (table,) in owner.execute(UNGUARDED)}
    assert unguarded == STAYS_WITH_THE_BRAND | OF_THE_CALLER_ALONE
    owner.execute("create table app.careless (brand_id text, user_id uuid)")
    owner.execute("grant insert on app.careless to authenticated")
    assert ("app.careless",) in owner.execute(UNGUARDED).fetchall()
