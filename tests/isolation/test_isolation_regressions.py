"""Known ways to break isolation between brands, with one test each."""

from __future__ import annotations

import json
import re
import uuid

import anyio
import psycopg
import pytest

from onbrand.brand import Scope, Ticket
from onbrand.config import Limits
from onbrand.db.logins import login_name
from onbrand.db.session import Database
from onbrand.errors import Conflict, Forbidden, InvalidInput, NotFound, OnbrandError
from onbrand.services import (
    asset_checks,
    assets,
    brands,
    generations,
    images,
    invitations,
    job_validation,
    jobs,
    models,
)
from tests import signing
from tests.stored_assets import store_assets

CANARY = "canary-4b1d0c7e"


def become(connection: psycopg.Connection, fixtures, user_id: str, **claims: object) -> None:
    """Let a connection act as a user for the rest of its transaction, within ACME unless told otherwise."""
    signing.become(connection, fixtures.signer, sub=user_id, **{"brand_id": fixtures.ids["brand"], **claims})


CARELESS = {
    "using true": "create policy careless on app.models for select to authenticated using (true)",
    "an alias that hides the row": "create policy careless on app.models for select to authenticated using"
    " (exists (select 1 from app.brand_users bu where bu.user_id = private.uid() and bu.brand_id = brand_id))",
    "to everyone": "create policy careless on app.models using (true)",
}


@pytest.mark.parametrize("policy", CARELESS.values(), ids=list(CARELESS))
def test_a_careless_policy_does_not_cross_brands(policy: str, owner, fixtures):
    owner.execute(policy)
    become(owner, fixtures, fixtures.ids["other_member"])
    assert owner.execute("select id from app.models").fetchall() == []


def test_the_owner_of_the_tables_sees_nothing(owner, fixtures):
    owner.execute("set local role onbrand_owner")
    for table in ("brands", "brand_users", "brand_assets", "lora_training_jobs", "models", "generations"):
        assert owner.execute(f"select 1 from app.{table}").fetchall() == []


async def test_a_pool_of_one_keeps_nothing_of_the_last_user(database, fixtures, secrets):
    db = await Database.open(database.web_url, database.system_url, claims_key=secrets.claims, pool=(1, 1))
    try:
        for name in ("member", "other_member") * 8:  # beyond the fifth time psycopg prepares the statement
            async with db.user_session(Scope(fixtures.ids[name], within=fixtures.ids["brand"])) as session:
                rows = await session.all("select id from app.models")
                assert [row["id"] for row in rows] == ([fixtures.ids["model"]] if name == "member" else [])
        with pytest.raises(Forbidden):
            async with db.user_session(None) as session:
                await session.all("select id from app.models")
        async with db.user_session(Scope(str(uuid.uuid4()))) as session:
            assert await session.all("select id from app.models") == []
    finally:
        await db.close()


async def test_settings_left_on_a_connection_do_not_reach_the_next_user(database, fixtures, secrets):
    db = await Database.open(database.web_url, claims_key=secrets.claims, pool=(1, 1))
    claims = json.dumps({"sub": fixtures.ids["member"]})
    try:
        async with db.user_session(Scope(fixtures.ids["other_member"], within=fixtures.ids["brand"])) as session:
            await session.run("select set_config('request.jwt.claims', %s, false)", [claims])
            await session.run("select set_config('role', 'authenticated', false)")
        async with db.user_session(Scope(fixtures.ids["other_member"], within=fixtures.ids["brand"])) as session:
            assert await session.all("select id from app.models") == []
        with pytest.raises(Forbidden):
            async with db.user_session(None) as session:
                await session.all("select id from app.models")
    finally:
        await db.close()


async def test_a_door_leaves_nothing_on_its_connection(database, fixtures, secrets):
    db = await Database.open(database.web_url, claims_key=secrets.claims, pool=(1, 1))
    try:
        async with db.user_session(Scope(fixtures.ids["member"], within=fixtures.ids["brand"])) as session:
            assert await session.all("select id from app.models")
        async with db._web.connection() as connection:
            cursor = await connection.execute(
                "select current_user::text as role, current_setting('request.jwt.claims', true) as claims"
            )
            assert await cursor.fetchone() == {"role": login_name("web", "onbrand"), "claims": ""}
    finally:
        await db.close()


async def test_after_a_transaction_the_context_is_gone(database, fixtures, secrets):
    with psycopg.connect(database.web_url, autocommit=True) as connection:
        with connection.transaction():
            become(connection, fixtures, fixtures.ids["member"])
        left = connection.execute("select current_setting('request.jwt.claims', true), current_user").fetchone()
    assert left == ("", login_name("web", "onbrand"))


@pytest.mark.parametrize(
    "role", ["brand_system", "onbrand_dispatcher", "onbrand_definer", "onbrand_owner", "onbrand_identity", "postgres"]
)
def test_the_web_login_becomes_nobody_else(role: str, database):
    with psycopg.connect(database.web_url) as connection, pytest.raises(psycopg.errors.Error) as refused:
        connection.execute(f"set role {role}")
    assert refused.value.sqlstate in ("42501", "22023")


@pytest.mark.parametrize("role", ["authenticated", "anon", "onbrand_definer", "onbrand_owner", "onbrand_identity"])
def test_the_system_login_becomes_no_user(role: str, database):
    with psycopg.connect(database.system_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(f"set role {role}")


@pytest.mark.parametrize(
    "statement",
    [
        "set session authorization onbrand_system_onbrand",
        "create temporary table x (i int)",
        "create table app.x (i int)",
        "create function private.uid2() returns int language sql as 'select 1'",
        "create schema mine",
        "alter table app.models disable row level security",
        "alter role current_user bypassrls",
        "set session_replication_role = 'replica'",
        "copy app.models to '/tmp/x'",
        "select pg_read_file('/etc/passwd')",
    ],
)
def test_a_login_cannot_change_what_holds_it(statement: str, database):
    with psycopg.connect(database.web_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


def test_turning_row_security_off_gives_an_error_and_no_row(database, fixtures):
    with psycopg.connect(database.web_url) as connection:
        become(connection, fixtures, fixtures.ids["other_member"])
        connection.execute("set row_security = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select id from app.models")


@pytest.mark.parametrize("column", ["status", "model_url", "progress", "metrics", "user_id", "training_config"])
async def test_the_owner_of_a_job_forges_nothing(column: str, db, fixtures):
    with pytest.raises(Forbidden):
        async with db.user_session(Scope(fixtures.ids["member"], within=fixtures.ids["brand"])) as session:
            await session.run(
                f"update app.lora_training_jobs set {column} = {column} where id = %s", [fixtures.ids["job"]]
            )


def said(problem: OnbrandError, *ids: str) -> str:
    """The text of an error without the ids that the caller sent."""
    text = json.dumps([type(problem).__name__, problem.message, problem.fields, problem.status], sort_keys=True)
    for each in ids:
        text = text.replace(each, "ID")
    return text


GETTERS = {
    "asset": assets.get_asset,
    "job": jobs.get_job,
    "model": models.get_model,
    "generation": generations.get_generation,
    "image": images.get_image,
}


@pytest.mark.parametrize("thing", GETTERS)
async def test_anothers_thing_and_nothing_get_the_same_answer(thing: str, db, fixtures):
    answers = []
    for brand_id in (fixtures.ids["other_brand"], fixtures.ids["brand"]):
        for thing_id in (fixtures.ids[thing], str(uuid.uuid4())):
            with pytest.raises(NotFound) as refused:
                async with db.user_session(
                    Scope(fixtures.ids["other_member"], within=fixtures.ids["brand"])
                ) as session:
                    await GETTERS[thing](session, brand_id, thing_id)
            answers.append(said(refused.value, thing_id))
    assert len(set(answers)) == 1


async def test_a_job_with_anothers_asset_and_with_none_get_the_same_answer(db, fixtures):
    answers = []
    for asset_id in (fixtures.ids["asset"], str(uuid.uuid4()), "no-id"):
        new = job_validation.NewJob(name="x", model_type="sd15", training_asset_ids=[asset_id])
        with pytest.raises(NotFound) as refused:
            async with db.user_session(Scope(fixtures.ids["other_member"], within=fixtures.ids["brand"])) as session:
                await jobs.create_job(session, fixtures.ids["other_brand"], fixtures.ids["other_member"], new)
        answers.append(said(refused.value, asset_id))
    assert len(set(answers)) == 1


async def test_a_brand_of_others_and_none_get_the_same_answer(db, fixtures):
    answers = []
    for brand_id in (fixtures.ids["brand"], "never-was-there"):
        with pytest.raises(NotFound) as refused:
            async with db.user_session(Scope(fixtures.ids["other_admin"], within=fixtures.ids["brand"])) as session:
                await brands.list_members(session, brand_id)
        answers.append(said(refused.value, brand_id))
        for email in (fixtures.ids["member_email"], "nobody@example.com"):
            with pytest.raises(NotFound) as refused:
                async with db.user_session(Scope(fixtures.ids["other_admin"], within=fixtures.ids["brand"])) as session:
                    await invitations.invite(session, brand_id, email)
            answers.append(said(refused.value, brand_id))
    assert len(set(answers)) == 1


FOREIGN_KEYS = {
    "a caption of an asset": "insert into app.asset_captions (brand_id, asset_id, version, caption, user_id)"
    " values (%(brand)s, %(id)s, 1, 'x', %(me)s)",
    "a generation with a model": "insert into app.generations (brand_id, user_id, model_id, model_type, model_name,"
    " prompt, num_images, width, height, seed, num_inference_steps, guidance_scale, true_cfg_scale, lora_scale,"
    " output_format) values (%(brand)s, %(me)s, %(id)s, 'sd15', 'x', 'x', 1, 64, 64, 1, 1, 1, 1, 1, 'png')",
}


@pytest.mark.parametrize(("name", "thing"), list(zip(FOREIGN_KEYS, ["asset", "model"], strict=True)))
def test_a_foreign_key_tells_nothing_of_other_brands(name: str, thing: str, database, fixtures):
    answers = []
    for thing_id in (fixtures.ids[thing], str(uuid.uuid4())):
        with psycopg.connect(database.web_url) as connection:
            become(connection, fixtures, fixtures.ids["other_member"], brand_id=fixtures.ids["other_brand"])
            with pytest.raises(psycopg.errors.ForeignKeyViolation) as refused:
                connection.execute(
                    FOREIGN_KEYS[name],
                    {"brand": fixtures.ids["other_brand"], "id": thing_id, "me": fixtures.ids["other_member"]},
                )
        diag = refused.value.diag
        answers.append(f"{diag.sqlstate} {diag.message_primary} {diag.message_detail}".replace(thing_id, "ID"))
    assert answers[0] == answers[1]


async def test_two_brands_may_hold_the_same_picture(db, store, make_brand, pictures):
    for _ in range(2):
        brand = await make_brand()
        async with db.user_session(brand.member.scope) as session:
            files = [asset_checks.Upload("same.png", pictures(4242), object="logo")]
            try:
                made = await store_assets(
                    session, store.brand(brand.id), brand.id, brand.member.user_id, files, Limits()
                )
            except Conflict:
                pytest.fail("the answer tells that another brand has this picture")
        assert made[0].object_name.endswith("/logo-001.png")


@pytest.mark.parametrize("table", ["brand_assets", "generated_images", "models", "lora_training_jobs"])
def test_not_even_its_owner_moves_a_row_to_another_brand(table: str, owner, fixtures):
    owner.execute("alter table app.lora_training_jobs disable trigger job_guard")
    with pytest.raises(psycopg.errors.Error) as refused:
        owner.execute(
            f"update app.{table} set brand_id = %s where brand_id = %s",
            [fixtures.ids["other_brand"], fixtures.ids["brand"]],
        )
    assert (refused.value.sqlstate, "immutable" in str(refused.value)) == ("42501", True)


def test_an_id_cannot_be_chosen_so_it_cannot_collide_with_anothers(database, fixtures):
    with psycopg.connect(database.web_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):  # noqa: PT012
        become(connection, fixtures, fixtures.ids["other_member"])
        connection.execute(
            "insert into app.lora_training_jobs (id, brand_id, user_id, name, model_type)"
            " values (%s, %s, %s, 'x', 'sd15')",
            [fixtures.ids["job"], fixtures.ids["other_brand"], fixtures.ids["other_member"]],
        )


def test_no_column_holds_a_list_of_ids(owner):
    rows = owner.execute(
        "select attrelid::regclass::text, attname from pg_attribute a join pg_class c on c.oid = a.attrelid"
        " join pg_namespace n on n.oid = c.relnamespace where n.nspname in ('app', 'storage') and c.relkind = 'r'"
        " and a.atttypid in ('uuid[]'::regtype, 'text[]'::regtype)"
        " and (c.relname, a.attname) <> ('api_keys', 'scopes')"  # words of a fixed list
    ).fetchall()
    assert rows == []


def test_what_is_sent_by_notify_is_a_digest_or_a_fixed_word(owner):
    """Any login may listen. `tests/integration/test_db_changes.py` listens, too."""
    rows = owner.execute(
        "select prosrc from pg_proc where prosrc ~* 'pg_notify|notify ' and pronamespace in"
        " (select oid from pg_namespace where nspname in ('app', 'private', 'storage', 'audit', 'identity'))"
    ).fetchall()
    sent = [argument for (source,) in rows for argument in re.findall(r"pg_notify\('onbrand_changes', (.*)\);", source)]
    assert len(sent) == len(rows) > 0
    assert all(re.fullmatch(r"'[a-z]+'|private\.lock_key\('[a-z]+', [a-z_.:]+\)::text", each) for each in sent)


@pytest.mark.parametrize(
    "brand_id", ["eu-west-1", "us-acme", "Acme", "a", "acme/globex", "..", "-acme", "a" * 64, "a.b"]
)
async def test_a_brand_is_not_named_like_a_region_or_a_path(brand_id: str, db, owner, make_user):
    person = await make_user()
    with pytest.raises(InvalidInput):
        async with db.user_session(person.scope) as session:
            await brands.create_brand(session, brand_id)
    with pytest.raises(psycopg.errors.CheckViolation):
        owner.execute("insert into app.brands (id, name, user_id) values (%s, 'x', %s)", [brand_id, person.user_id])


@pytest.mark.parametrize(
    "name",
    ["{brand}/../{other}/x.png", "{brand}//x", "{brand}/./x", "{brand}", "/x", "{brand}/x\u202e.png", "{brand}/a b"],
)
def test_an_object_row_has_a_plain_key(name: str, owner, fixtures):
    name = name.format(brand=fixtures.ids["brand"], other=fixtures.ids["other_brand"])
    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.InsufficientPrivilege)):
        owner.execute(
            "insert into storage.objects (bucket_id, name, user_id, content_type, bytes)"
            " values ('training-data', %s, %s, 'x', 1)",
            [name, fixtures.ids["member"]],
        )


async def test_an_error_of_the_database_tells_no_value(db, fixtures):
    with pytest.raises(OnbrandError) as refused:
        async with db.user_session(Scope(fixtures.ids["member"], within=fixtures.ids["brand"])) as session:
            await session.run(
                "insert into app.asset_captions (brand_id, asset_id, version, caption, user_id)"
                " values (%s, %s, -1, %s, %s)",
                [fixtures.ids["brand"], fixtures.ids["asset"], CANARY, fixtures.ids["member"]],
            )
    assert CANARY not in repr(refused.value) + str(refused.value.fields)
    assert "insert" not in str(refused.value)
    assert refused.value.__suppress_context__


async def test_the_servers_log_tells_no_caption(db, fixtures, settings, database):
    log = settings.folder / "postgres" / "log"
    if not log.exists():
        pytest.skip("the database is not the embedded one; its log is its operator's")
    for version in (-1, 1, 99999999999):
        with pytest.raises(OnbrandError):
            async with db.user_session(Scope(fixtures.ids["member"], within=fixtures.ids["brand"])) as session:
                await session.run(
                    "insert into app.asset_captions (brand_id, asset_id, version, caption, user_id)"
                    f" values (%s, %s, {version}, '{CANARY}', %s)",
                    [fixtures.ids["brand"], fixtures.ids["asset"], fixtures.ids["member"]],
                )
    text = log.read_text()
    assert "violates check constraint" in text
    assert CANARY not in text


async def test_a_ticket_that_mixes_a_job_with_another_member_is_worth_nothing(db, fixtures):
    for who in ("member2", "admin", "other_member"):
        ticket = Ticket.issue(fixtures.ids["brand"], fixtures.ids["training_job"], fixtures.ids[who], "training", 60)
        async with db.system_session(ticket) as session:
            assert await session.all("select id from app.lora_training_jobs") == []
            assert await session.all("select id from app.brand_assets") == []


async def test_a_ticket_sees_one_job_its_pictures_and_no_more(db, fixtures):
    ticket = Ticket.issue(fixtures.ids["brand"], fixtures.ids["training_job"], fixtures.ids["member"], "training", 60)
    async with db.system_session(ticket) as session:
        assert [row["id"] for row in await session.all("select id from app.lora_training_jobs")] == [
            fixtures.ids["training_job"]
        ]
        assert [row["id"] for row in await session.all("select id from app.brand_assets")] == [fixtures.ids["asset"]]
        assert await session.all("select id from app.generations") == []


async def test_a_ticket_shows_no_pictures_after_the_end(db, fixtures):
    ticket = Ticket.issue(fixtures.ids["brand"], fixtures.ids["ended_job"], fixtures.ids["member"], "training", 60)
    async with db.system_session(ticket) as session:
        assert len(await session.all("select id from app.lora_training_jobs")) == 1
        assert await session.all("select id from app.brand_assets") == []
        assert await session.all("select caption from app.asset_captions") == []


async def test_the_dispatcher_learns_ids_states_and_numbers_only(db, fixtures):
    async with db.dispatch_session() as session:
        rows = await session.all("select * from private.queue()")
    wanted = (
        "kind brand_id job_id user_id status provider provider_job_id attempts cancel_requested heartbeat_at created_at"
        " num_workers waiting_for waiting_since weight max_running account_id"
    )
    assert set(rows[0]) == set(wanted.split())
    assert "a picture" not in str(rows)


async def test_a_process_without_a_login_cannot_open_its_door(database, secrets):
    db = await Database.open(web_url=database.web_url, claims_key=secrets.claims)
    try:
        ticket = Ticket.issue("acme", str(uuid.uuid4()), str(uuid.uuid4()), "training", 60)
        with pytest.raises(OnbrandError, match="no system login"):
            async with db.system_session(ticket):
                pass
    finally:
        await db.close()


async def test_two_admins_who_drop_each_other_leave_one(db, make_brand):
    brand = await make_brand()
    async with db.user_session(brand.admin.scope) as session:
        await brands.set_role(session, brand.id, brand.member.user_id, "admin")
    ends = []
    barrier = anyio.Event()

    async def drop(who, whom) -> None:
        try:
            async with db.user_session(who.scope) as session:
                await brands.get_brand(session, brand.id)
                await barrier.wait()
                await brands.set_role(session, brand.id, whom.user_id, "member")
            ends.append("done")
        except (Conflict, Forbidden, NotFound):
            ends.append("refused")

    async with anyio.create_task_group() as group:
        group.start_soon(drop, brand.admin, brand.member)
        group.start_soon(drop, brand.member, brand.admin)
        await anyio.sleep(0.05)
        barrier.set()
    assert sorted(ends) == ["done", "refused"]


def test_a_revoked_key_reaches_nothing_from_the_next_statement_on(owner, fixtures):
    _, _, claims = fixtures.claims["key:manage"]
    read = "select id from app.models"
    become(
        owner, fixtures, claims["sub"], **{name: claims[name] for name in ("brand_id", "key_id", "scopes", "purpose")}
    )
    assert len(owner.execute(read).fetchall()) == 1
    owner.execute("reset role")
    owner.execute("update app.api_keys set revoked_at = now() where id = %s", [claims["key_id"]])
    owner.execute("set local role authenticated")
    assert owner.execute(read).fetchall() == []


@pytest.mark.parametrize("verb", ["remove", "demote"])
async def test_the_last_admin_stays(verb: str, db, make_brand):
    brand = await make_brand()
    with pytest.raises(Conflict, match="at least one admin"):  # noqa: PT012
        async with db.user_session(brand.admin.scope) as session:
            if verb == "remove":
                await brands.remove_member(session, brand.id, brand.admin.user_id)
            else:
                await brands.set_role(session, brand.id, brand.admin.user_id, "member")


def test_an_ended_job_is_closed_to_its_tables_owner_too(owner, fixtures):
    for change in ("status = 'training'", "progress = 3", "model_url = 'x'", "cancel_requested_at = now()"):
        with pytest.raises(psycopg.errors.Error) as refused, owner.transaction():
            owner.execute(f"update app.lora_training_jobs set {change} where id = %s", [fixtures.ids["ended_job"]])
        assert refused.value.sqlstate == "OB002"


def test_the_record_is_a_chain(owner, fixtures):
    rows = owner.execute(
        "select prev, hash, audit.event_hash(e) from audit.events e where brand_id = %s order by seq",
        [fixtures.ids["brand"]],
    ).fetchall()
    assert rows
    before = None
    for prev, found, computed in rows:
        assert prev == before
        assert found == computed
        before = found
