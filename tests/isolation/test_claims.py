"""Claims that the platform did not sign, or signed for another purpose, give no access."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql

from onbrand.brand import Scope
from onbrand.db.claims import ClaimsSigner, install_key
from onbrand.db.session import Database
from onbrand.errors import ConfigurationError
from tests.signing import SET, become, forge, stamp_of

MODELS = "select id from app.models"


def claims_of_admin(fixtures) -> dict[str, str]:
    return {"sub": fixtures.ids["admin"], "brand_id": fixtures.ids["brand"]}


Signed = Callable[[str], tuple[str, ...]]
"""Claims for the transaction of a stamp: JSON, scope, signature."""


def models_seen(connection: psycopg.Connection, role: str, signed: Signed) -> int:
    with connection.transaction(force_rollback=True):
        connection.execute(SET, [role, *signed(stamp_of(connection))])
        return len(connection.execute(MODELS).fetchall())


def as_admin(fixtures, signer: ClaimsSigner | None = None, role: str = "authenticated") -> Signed:
    """Claims of ACME's admin, signed by the platform or by another key."""
    return lambda stamp: (signer or fixtures.signer).sign(role, claims_of_admin(fixtures), stamp)


def test_what_the_platform_signs_is_believed(database, fixtures):
    with psycopg.connect(database.web_url) as connection:
        assert models_seen(connection, "authenticated", as_admin(fixtures)) == 1


def moved(scope: str, ids: dict[str, str], name: str, other: str) -> str:
    """The scope with one thing's id in another's place."""
    return scope.replace(ids[name], ids[other])


FORGERIES: dict[str, Callable[[str, str, str, dict[str, str]], tuple[str, str, str]]] = {
    "no signature": lambda text, scope, signature, ids: (text, scope, ""),
    "a changed claim": lambda text, scope, signature, ids: (f"{text} ", scope, signature),
    "another brand": lambda text, scope, signature, ids: (text, moved(scope, ids, "other_brand", "brand"), signature),
    "another user": lambda text, scope, signature, ids: (text, moved(scope, ids, "other_member", "admin"), signature),
    "moved text": lambda text, scope, signature, ids: (text[1:], f"{scope}\n{text[:1]}", signature),
    "another case": lambda text, scope, signature, ids: (text, scope, signature.upper()),
}  # fmt: skip


@pytest.mark.parametrize("how", FORGERIES)
@pytest.mark.parametrize("whose", ["admin", "other_member"])
def test_what_was_changed_after_it_was_signed_shows_nothing(how: str, whose: str, database, fixtures):
    brand = fixtures.ids["brand" if whose == "admin" else "other_brand"]

    def forged(stamp: str) -> tuple[str, ...]:
        signed = fixtures.signer.sign("authenticated", {"sub": fixtures.ids[whose], "brand_id": brand}, stamp)
        changed = FORGERIES[how](*signed, fixtures.ids)
        return changed if changed != signed else ("", "", "")

    with psycopg.connect(database.web_url) as connection:
        assert models_seen(connection, "authenticated", forged) == 0


def test_another_key_shows_nothing(database, fixtures):
    other, named_alike = ClaimsSigner("ab" * 32), ClaimsSigner("ab" * 32)
    named_alike.key_id = fixtures.signer.key_id
    with psycopg.connect(database.web_url) as connection:
        for signer in (other, named_alike):
            assert models_seen(connection, "authenticated", as_admin(fixtures, signer)) == 0


def test_claims_that_were_signed_for_another_role_show_nothing(database, fixtures):
    with psycopg.connect(database.web_url) as connection:
        assert models_seen(connection, "authenticated", as_admin(fixtures, role="anon")) == 0


@pytest.mark.parametrize("where", ["the next one", "another connection's"])
def test_claims_of_another_transaction_show_nothing(where: str, database, fixtures):
    """Claims of another user, or one's own of another brand, cannot be used in a transaction of one's own."""
    with psycopg.connect(database.web_url) as first, psycopg.connect(database.web_url) as second:
        with first.transaction():
            signed = as_admin(fixtures)(stamp_of(first))
            if where == "another connection's":
                assert models_seen(second, "authenticated", lambda _: signed) == 0
        assert models_seen(first, "authenticated", lambda _: signed) == 0


def test_claims_that_change_within_a_statement_are_not_believed(database, fixtures):
    with psycopg.connect(database.web_url) as one, psycopg.connect(database.web_url) as connection:
        text, scope, _ = as_admin(fixtures)(stamp_of(one))
        with connection.transaction(force_rollback=True):
            become(connection, fixtures.signer, sub=fixtures.ids["other_member"], brand_id=fixtures.ids["other_brand"])
            seen = connection.execute(
                "select x.id from (select set_config('request.jwt.claims', %s, true),"
                " set_config('request.scope', %s, true) offset 0) s (a, b)"
                " cross join lateral (select m.id from app.models m where s.a > s.b) x",
                [text, scope],
            ).fetchall()
            assert seen == []
            assert connection.execute("select private.uid(), private.my_brand()").fetchone() == (None, None)


async def test_a_platform_whose_key_the_database_does_not_know_is_told_at_its_start(database):
    with pytest.raises(ConfigurationError, match="key for claims"):
        await Database.open(database.web_url, claims_key="ab" * 32)


async def test_a_key_is_replaced_while_the_one_before_is_in_use(database, secrets, fixtures):
    install_key(database.owner_url, "ab" * 32)
    try:
        for key in (secrets.claims, "ab" * 32):
            db = await Database.open(database.web_url, claims_key=key)
            await db.close()
        install_key(database.owner_url, "cd" * 32)
        with pytest.raises(ConfigurationError):
            await Database.open(database.web_url, claims_key=secrets.claims)
    finally:
        install_key(database.owner_url, secrets.claims)


@pytest.mark.parametrize("login", ["web", "system"])
def test_no_login_reads_a_key(login: str, database):
    url = database.web_url if login == "web" else database.system_url
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("select * from private.claim_keys")


@pytest.mark.parametrize(
    "statement",
    [
        "select * from private.sign_up('new@example.com', 'x')",
        "select * from private.external_user('issuer', 'subject', 'new@example.com')",
        "select private.take_attempt(array[repeat('a', 64)], array[1], array[60])",
    ],
)
def test_a_stolen_web_login_makes_no_account_and_counts_no_attempt(statement: str, database):
    with psycopg.connect(database.web_url) as connection:
        forge(connection, "anon", {})
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


def test_a_stolen_web_login_reads_no_password_hash(database, fixtures):
    statement = "select password_hash from private.find_login(%s)"
    with psycopg.connect(database.web_url) as connection:
        asked = {"asks": ["find_login", fixtures.ids["member_email"]]}
        become(connection, fixtures.signer, "anon", **asked)
        assert len(connection.execute(statement, [fixtures.ids["member_email"]]).fetchall()) == 1
        for forged in (
            forge,
            lambda c, role, _: become(c, fixtures.signer, role, asks=["find_login", "other@example.com"]),
        ):
            forged(connection, "anon", asked)
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(statement, [fixtures.ids["member_email"]])


def test_a_stolen_system_login_sees_no_queue(database, fixtures):
    with psycopg.connect(database.system_url) as connection:
        become(connection, fixtures.signer, "onbrand_dispatcher")
        assert connection.execute("select * from private.queue()").fetchall()
        forge(connection, "onbrand_dispatcher", {})
        assert connection.execute("select * from private.queue()").fetchall() == []
        for statement in ("private.end_orphaned()", "private.sweep_uploads()", "private.lead(gen_random_uuid(), 1)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(f"select * from {statement}")


ASKED = {
    "select private.open_session(repeat('a', 64), '1 hour', '1 hour')": ["open_session", "b" * 64],
    "select private.link_subject('https://id.example', 'x', 'ceo@bigcorp.example')": [
        "link_subject",
        "https://id.example",
        "x",
        None,
    ],
}


@pytest.mark.parametrize("statement", ASKED)
@pytest.mark.parametrize("asks", ["nothing", "something else"])
def test_an_injected_statement_gives_its_user_nothing_that_lasts(statement: str, asks: str, database, fixtures):
    """No session of a page with a cookie of its own choice, no address that counts as verified."""
    claims = {"sub": fixtures.ids["member"]} | ({} if asks == "nothing" else {"asks": ASKED[statement]})
    with psycopg.connect(database.web_url) as connection:
        become(connection, fixtures.signer, **claims)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


LEFT = {
    "a setting": "set default_transaction_read_only = on",
    "claims": "select set_config('request.jwt.claims', '{}', false)",
    "a time-out": "set statement_timeout = 1",
    "row security": "set row_security = off",
    "a lock": "select pg_advisory_lock(42)",
    "a cursor": "declare kept cursor with hold for select 1",
    "a channel": "listen left_behind",
}


@pytest.mark.parametrize("what", LEFT)
async def test_nothing_stays_on_a_connection(what: str, database, fixtures, secrets):
    db = await Database.open(database.web_url, claims_key=secrets.claims, pool=(1, 1))
    here = Scope(fixtures.ids["member"], within=fixtures.ids["brand"])
    state = (
        "select (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) as locks,"
        " (select count(*) from pg_cursors where is_holdable) as cursors,"
        " (select count(*) from pg_listening_channels()) as channels,"
        " current_setting('default_transaction_read_only') as read_only, current_setting('row_security') as secured,"
        " current_setting('statement_timeout') as timeout"
    )
    async with db.user_session(here) as session:
        before = await session.one(state)
    async with db.user_session(here) as session:
        await session.run(LEFT[what])
    async with db.user_session(here) as session:
        assert await session.one(state) == before
        assert await session.all("select id from app.models")
    await db.close()


async def test_a_statement_that_stands_in_for_one_of_ours_meets_nobody(database, fixtures, secrets):
    db = await Database.open(database.web_url, claims_key=secrets.claims, pool=(1, 1))
    here = Scope(fixtures.ids["member"], within=fixtures.ids["brand"])
    question = "select id from app.models where brand_id = %s"
    for _ in range(8):  # prepared by now
        async with db.user_session(here) as session:
            assert await session.all(question, [fixtures.ids["brand"]])
    async with db.user_session(here) as session:
        name = (await session.one("select min(name) as name from pg_prepared_statements"))["name"]
        await session.run(f'deallocate "{name}"')
        await session.run(f"prepare \"{name}\" (text) as select set_config('stolen.text', $1, false) as id")
    async with db.user_session(here) as session:
        assert [row["id"] for row in await session.all(question, [fixtures.ids["brand"]])] == [fixtures.ids["model"]]
    await db.close()


def test_nobody_computes_the_key_of_a_lock(database, owner, fixtures):
    """Without the seed, a login neither takes the lock of a brand nor sees who holds one."""
    with psycopg.connect(database.web_url) as connection:
        become(connection, fixtures.signer, sub=fixtures.ids["member"], brand_id=fixtures.ids["brand"])
        connection.execute("select private.lock_brand('members', %s)", [fixtures.ids["brand"]])
        held = connection.execute(
            "select ((classid::bigint << 32) | objid::bigint) = hashtextextended('members:' || %s, 0) from pg_locks"
            " where locktype = 'advisory' and pid = pg_backend_pid()",
            [fixtures.ids["brand"]],
        ).fetchall()
    assert held == [(False,)]


def test_a_stranger_holds_no_lock_of_a_brand(database, fixtures):
    with psycopg.connect(database.web_url) as connection:
        become(connection, fixtures.signer, sub=fixtures.ids["other_member"], brand_id=fixtures.ids["other_brand"])
        connection.execute("select private.lock_brand('members', %s)", [fixtures.ids["brand"]])
        mine = "select 1 from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
        assert connection.execute(mine).fetchall() == []


@pytest.mark.parametrize(
    "statement",
    [
        "select private.record({brand}, 'brand.set_limits', '{{}}')",
        "select private.record({brand}, 'image.store', '{{\"image_id\": 1}}')",
        "select private.record({brand}, 'member.set_role', '{{\"user_id\": 1}}')",
        "select private.next_number({brand}, 'model:sd15', 1)",
        "select private.next_number({brand}, 'a series of one''s own', 1)",
    ],
)
def test_a_member_records_and_counts_what_members_do(statement: str, database, fixtures):
    with psycopg.connect(database.web_url) as connection:
        become(connection, fixtures.signer, sub=fixtures.ids["member"], brand_id=fixtures.ids["brand"])
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute(sql.SQL(statement).format(brand=sql.Literal(fixtures.ids["brand"])))
        connection.execute("select private.next_number(%s, 'asset:logo', 1)", [fixtures.ids["brand"]])
        connection.execute("select private.record(%s, 'asset.upload', '{\"asset_id\": 1}')", [fixtures.ids["brand"]])
