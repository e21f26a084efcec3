"""Claims that the platform did not sign, or signed for something else, reach nothing."""

from __future__ import annotations

import json
import time

import psycopg
import pytest

from onbrand.db.claims import SECONDS, ClaimsSigner, install_key
from onbrand.db.session import Doors
from onbrand.errors import ConfigurationError
from tests.signing import SET, become, forge

MODELS = "select id from app.models"


def claims_of_admin(world) -> dict[str, str]:
    return {"sub": world.ids["admin"], "brand_id": world.ids["brand"]}


def models_seen(connection: psycopg.Connection, role: str, *signed: str) -> int:
    with connection.transaction(force_rollback=True):
        connection.execute(SET, [role, *signed])
        return len(connection.execute(MODELS).fetchall())


def test_what_the_platform_signs_is_believed(database, world):
    with psycopg.connect(database.web_url) as connection:
        assert (
            models_seen(connection, "authenticated", *world.signer.sign("authenticated", claims_of_admin(world))) == 1
        )


@pytest.mark.parametrize(
    "what",
    ["another key", "no signature", "a changed claim", "another brand", "another user", "moved text", "another case"],
)
def test_what_it_did_not_sign_shows_nothing(what: str, database, world):
    stranger = {"sub": world.ids["other_member"], "brand_id": world.ids["other_brand"]}
    text, scope, signature = world.signer.sign("authenticated", claims_of_admin(world))
    _, theirs, their_signature = world.signer.sign("authenticated", stranger)
    forged = {
        "another key": ClaimsSigner("ab" * 32).sign("authenticated", claims_of_admin(world)),
        "no signature": (text, scope, ""),
        "a changed claim": (text.replace(world.ids["admin"], world.ids["member"]), scope, signature),
        "another brand": (text, theirs.replace(world.ids["other_brand"], world.ids["brand"]), their_signature),
        "another user": (text, theirs.replace(world.ids["other_member"], world.ids["admin"]), their_signature),
        "moved text": (text[1:], f"{scope}\n{text[:1]}", signature),
        "another case": (text, scope, signature.upper()),
    }[what]
    with psycopg.connect(database.web_url) as connection:
        assert models_seen(connection, "authenticated", *forged) == 0


def test_a_key_id_that_is_known_does_not_make_another_key_good(database, world):
    other = ClaimsSigner("ab" * 32)
    other.key_id = world.signer.key_id
    with psycopg.connect(database.web_url) as connection:
        assert models_seen(connection, "authenticated", *other.sign("authenticated", claims_of_admin(world))) == 0


def test_claims_that_were_signed_for_another_role_show_nothing(database, world):
    signed = world.signer.sign("anon", claims_of_admin(world))
    with psycopg.connect(database.web_url) as connection:
        assert models_seen(connection, "authenticated", *signed) == 0


def test_claims_end(database, world, monkeypatch: pytest.MonkeyPatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - SECONDS - 5)
    old = world.signer.sign("authenticated", claims_of_admin(world))
    monkeypatch.undo()
    with psycopg.connect(database.web_url) as connection:
        assert models_seen(connection, "authenticated", *old) == 0


def test_claims_that_change_within_a_statement_are_not_believed(database, world):
    forged = json.dumps(claims_of_admin(world))
    with psycopg.connect(database.web_url) as connection, connection.transaction(force_rollback=True):
        become(connection, world.signer, sub=world.ids["other_member"], brand_id=world.ids["other_brand"])
        scope = world.signer.sign("authenticated", claims_of_admin(world))[1]
        seen = connection.execute(
            "select x.id from (select set_config('request.jwt.claims', %s, true), set_config('request.scope', %s, true)"
            " offset 0) s (a, b) cross join lateral (select m.id from app.models m where s.a > s.b) x",
            [forged, scope],
        ).fetchall()
        assert seen == []
        assert connection.execute("select private.uid(), private.my_brand()").fetchone() == (None, None)


async def test_a_platform_whose_key_the_database_does_not_know_is_told_at_its_start(database):
    with pytest.raises(ConfigurationError, match="key for claims"):
        await Doors.open(database.web_url, claims_key="ab" * 32)


async def test_a_key_is_replaced_while_the_one_before_is_in_use(database, secrets, world):
    install_key(database.owner_url, "ab" * 32)
    try:
        for key in (secrets.claims, "ab" * 32):
            doors = await Doors.open(database.web_url, claims_key=key)
            await doors.close()
        install_key(database.owner_url, "cd" * 32)
        with pytest.raises(ConfigurationError):
            await Doors.open(database.web_url, claims_key=secrets.claims)
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


def test_a_stolen_web_login_reads_no_password_hash(database, world):
    statement = "select password_hash from private.find_login(%s)"
    with psycopg.connect(database.web_url) as connection:
        become(connection, world.signer, "anon", email=world.ids["member_email"])
        assert len(connection.execute(statement, [world.ids["member_email"]]).fetchall()) == 1
        forge(connection, "anon", {"email": world.ids["member_email"]})
        assert connection.execute(statement, [world.ids["member_email"]]).fetchall() == []


def test_a_stolen_system_login_sees_no_queue(database, world):
    with psycopg.connect(database.system_url) as connection:
        become(connection, world.signer, "onbrand_dispatcher")
        assert connection.execute("select * from private.queue()").fetchall()
        forge(connection, "onbrand_dispatcher", {})
        assert connection.execute("select * from private.queue()").fetchall() == []
        for statement in ("private.end_orphaned()", "private.sweep_uploads()", "private.lead(gen_random_uuid(), 1)"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(f"select * from {statement}")
