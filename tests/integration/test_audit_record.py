"""The audit log of a brand on a real PostgreSQL: who may append, what an event contains, and detection of tampering."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import uuid
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from onbrand.brand import Scope
from onbrand.client import AuditEvent, Head
from onbrand.client.audit_chain import check_chain
from onbrand.config import Settings
from onbrand.db.audit import Record
from onbrand.db.logins import DatabaseUrls
from onbrand.db.session import Database
from onbrand.errors import ConfigurationError, Forbidden, InvalidInput, OnbrandError
from onbrand.services import audit
from onbrand.services.audit import write_audit_line
from tests.conftest import BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform

UNLOCKED = (
    "alter table audit.events disable trigger append_only; %s;"
    " alter table audit.events enable always trigger append_only"
)
ASSET = "3f2b7a52-0000-4000-8000-000000000001"


@pytest.fixture
async def acme(make_brand: MakeBrand, db: Database) -> BrandOfPeople:
    """A brand with a few audit events."""
    brand = await make_brand("acme")
    for verb in ("asset.upload", "asset.recaption", "image.delete"):
        async with db.user_session(brand.member.scope) as session:
            await write_audit_line(session, brand.id, verb, {"asset_id": ASSET})
    return brand


@contextlib.contextmanager
def tampering(database: DatabaseUrls, brand_id: str, statement: str) -> Iterator[None]:
    """Run `statement` as the owner with the guards off; everything is rolled back at the end."""
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        kept = owner.execute("select * from audit.events where brand_id = %s", [brand_id]).fetchall()
        owner.execute(UNLOCKED % statement.replace(":brand", f"'{brand_id}'"))  # type: ignore[arg-type]
        try:
            yield
        finally:
            with owner.transaction():
                owner.execute("alter table audit.events disable trigger append_only")
                owner.execute("delete from audit.events where brand_id = %s", [brand_id])
                slots = ", ".join(["%s"] * len(kept[0]))
                for line in kept:
                    values = [json.dumps(value) if isinstance(value, dict) else value for value in line]
                    owner.execute(f"insert into audit.events values ({slots})", values)  # type: ignore[arg-type]
                owner.execute("alter table audit.events enable always trigger append_only")


def verdict_of(database: DatabaseUrls, brand_id: str, anchor: Head | None = None) -> Any:
    with Record(database.owner_url) as lines:
        return check_chain(brand_id, (AuditEvent.model_validate(line) for line in lines.lines(brand_id)), anchor)


async def test_python_computes_the_chain_that_the_database_wrote(acme: BrandOfPeople, database: DatabaseUrls) -> None:
    verdict = verdict_of(database, acme.id)
    assert verdict.holds
    assert verdict.num_events == len(await lines_of(database, acme.id)) > 3


async def lines_of(database: DatabaseUrls, brand_id: str) -> list[dict[str, Any]]:
    with Record(database.owner_url) as lines:
        return list(lines.lines(brand_id))


@pytest.mark.parametrize(
    "detail",
    [
        {"asset_id": "a", "bb": 1, "a": 2, "aaa_id": None, "t": True, "list": ["x", "y"], "empty": [], "nothing": ""},
        {"asset_id": '"quoted"\\and/slashed', "tags": ['"', "\\", "~", "!"]},
        {"asset_ids": [str(uuid.UUID(int=n)) for n in range(500)], "num": -(10**17)},
    ],
)
async def test_every_plain_detail_is_hashed_alike_by_both(
    acme: BrandOfPeople, db: Database, database: DatabaseUrls, detail: dict[str, Any]
) -> None:
    async with db.user_session(acme.member.scope) as session:
        await write_audit_line(session, acme.id, "asset.upload", detail)
    assert verdict_of(database, acme.id).holds


TAMPERED = {
    "changed": "update audit.events set action = 'asset.delete' where brand_id = :brand and seq = 4",
    "who it was, changed": "update audit.events set user_id = gen_random_uuid() where brand_id = :brand and seq = 4",
    "deleted": "delete from audit.events where brand_id = :brand and seq = 4",
    "the first deleted": "delete from audit.events where brand_id = :brand and seq = 1",
    "changed and hashed anew": "update audit.events set action = 'asset.delete' where brand_id = :brand and seq = 4;"
    " update audit.events e set hash = audit.event_hash(e) where brand_id = :brand and seq = 4",
    "moved": "delete from audit.events where brand_id = :brand and seq = 4;"
    " update audit.events set seq = 4 where brand_id = :brand and seq = 5",
    "put in at the end": "insert into audit.events (seq, brand_id, at, actor, credential, action, detail, prev, hash)"
    " select max(seq) + 1, brand_id, now(), 'system', 'x', 'job.fail', '{\"job_id\": 1}', sha256('x'), sha256('y')"
    " from audit.events where brand_id = :brand group by brand_id",
}


@pytest.mark.parametrize("how", TAMPERED)
async def test_a_line_that_the_owner_tampered_with_is_found(
    how: str, acme: BrandOfPeople, database: DatabaseUrls
) -> None:
    with tampering(database, acme.id, TAMPERED[how]):
        assert not verdict_of(database, acme.id).holds
    assert verdict_of(database, acme.id).holds


async def test_lines_that_are_gone_at_the_end_are_found_by_a_kept_head(
    acme: BrandOfPeople, database: DatabaseUrls
) -> None:
    kept = verdict_of(database, acme.id).head
    with tampering(database, acme.id, "delete from audit.events where brand_id = :brand and seq > 4"):
        assert verdict_of(database, acme.id).holds
        assert "had" in verdict_of(database, acme.id, kept).fault


REFUSED = [
    "update audit.events set action = 'asset.delete' where brand_id = :brand",
    "delete from audit.events where brand_id = :brand",
    "truncate audit.events",
    "insert into audit.events select seq + 1000, brand_id, at, actor, action, detail, prev, hash, user_id, credential"
    " from audit.events where brand_id = :brand",
]


@pytest.mark.parametrize("way", ["", "set local session_replication_role = replica"])
@pytest.mark.parametrize("statement", REFUSED, ids=lambda text: text.split()[0])
async def test_the_record_is_append_only_for_the_databases_owner_too(
    statement: str, way: str, acme: BrandOfPeople, owner: psycopg.Connection
) -> None:
    if way:
        owner.execute(way)  # type: ignore[arg-type]
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        owner.execute(statement.replace(":brand", f"'{acme.id}'"))  # type: ignore[arg-type]


@pytest.mark.parametrize("statement", REFUSED[:3], ids=lambda text: text.split()[0])
async def test_not_even_who_writes_the_record_may_change_it(
    statement: str, acme: BrandOfPeople, owner: psycopg.Connection
) -> None:
    owner.execute("set local role onbrand_definer")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        owner.execute(statement.replace(":brand", f"'{acme.id}'"))  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["authenticated", "brand_system", "onbrand_dispatcher", "onbrand_identity", "anon"])
def test_no_role_but_the_helpers_may_write_it(role: str, owner: psycopg.Connection) -> None:
    for verb in ("insert", "update", "delete", "truncate"):
        row = owner.execute("select has_table_privilege(%s, 'audit.events', %s)", [role, verb]).fetchone()
        assert row == (False,), verb


WORDS = [
    {"asset_id": ASSET, "caption": "a photo of the new shoe"},
    {"asset_id": ASSET, "note": "one\ttab"},
    {"asset_id": ASSET, "note": "ümlaut"},
    {"asset_id": ASSET, "note": "x" * 301},
    {"asset_id": ASSET, "list": ["fine", "not fine"]},
    {"asset_id": ASSET, "inner": {"caption": "x"}},
    {"asset_id": ASSET, "inner": [["x"]]},
    {"asset_id": ASSET, "loss": 0.5},
    {"asset_id": ASSET, "a caption as a name": 1},
    {"name": "names-no-object"},
    {},
]


@pytest.mark.parametrize("detail", WORDS, ids=str)
async def test_text_that_people_wrote_does_not_fit_in_a_line(
    detail: dict[str, Any], acme: BrandOfPeople, db: Database, database: DatabaseUrls
) -> None:
    before = await lines_of(database, acme.id)
    with pytest.raises(OnbrandError) as refused:
        async with db.user_session(acme.member.scope) as session:
            await write_audit_line(session, acme.id, "asset.upload", detail)
    assert (refused.value.status, refused.value.fields["sqlstate"]) == (500, "OB009")
    assert await lines_of(database, acme.id) == before


@pytest.mark.parametrize("action", ["upload", "asset.", "Asset.upload", "asset.upload now", "asset.up;load", ""])
async def test_an_action_is_a_noun_and_a_verb(action: str, acme: BrandOfPeople, db: Database) -> None:
    with pytest.raises(OnbrandError):
        async with db.user_session(acme.member.scope) as session:
            await write_audit_line(session, acme.id, action, {"asset_id": ASSET})


async def test_who_acts_is_read_off_the_session(acme: BrandOfPeople, db: Database, platform: Platform) -> None:
    async with platform.client(acme.admin) as client:
        made = await client.post(f"/v1/brands/{acme.id}/keys", json={"name": "CI", "scopes": ["upload"]})
    key_id = made.json()["id"]
    scope = Scope(acme.admin.user_id, acme.id, key_id, frozenset({"upload"}), purpose="upload")
    async with db.user_session(scope) as session:
        await write_audit_line(session, acme.id, "asset.upload", {"asset_id": ASSET})
    ticket = acme.ticket(job_id := str(uuid.uuid4()))
    async with db.system_session(ticket) as session:
        await write_audit_line(session, acme.id, "job.start", {"job_id": job_id})
    async with db.user_session(acme.admin.scope) as session:
        lines = (await audit.list_events(session, acme.id)).data
    told = {(line.action, line.actor, line.user_id, line.credential) for line in lines}
    assert ("asset.upload", "key", acme.admin.user_id, key_id) in told
    assert ("job.start", "system", acme.member.user_id, job_id) in told
    assert ("image.delete", "user", acme.member.user_id, None) in told


async def test_nobody_writes_in_another_brands_record(acme: BrandOfPeople, make_brand: MakeBrand, db: Database) -> None:
    globex = await make_brand("globex")
    for session_of in (
        lambda: db.user_session(globex.admin.scope),
        lambda: db.system_session(globex.ticket(str(uuid.uuid4()))),
    ):
        with pytest.raises(Forbidden):
            async with session_of() as session:
                await write_audit_line(session, acme.id, "asset.upload", {"asset_id": ASSET})


async def test_lines_of_one_brand_at_the_same_time_make_one_chain(
    acme: BrandOfPeople, db: Database, database: DatabaseUrls
) -> None:
    async def write(number: int) -> None:
        async with db.user_session(acme.member.scope) as session:
            await write_audit_line(session, acme.id, "asset.recaption", {"asset_id": ASSET, "version": number})

    before = verdict_of(database, acme.id).num_events
    await asyncio.gather(*(write(number) for number in range(30)))
    verdict = verdict_of(database, acme.id)
    assert (verdict.holds, verdict.num_events) == (True, before + 30)


async def test_what_is_rolled_back_leaves_no_line(acme: BrandOfPeople, db: Database, database: DatabaseUrls) -> None:
    before = await lines_of(database, acme.id)
    with pytest.raises(RuntimeError):  # noqa: PT012 - the session is what is tested
        async with db.user_session(acme.member.scope) as session:
            await write_audit_line(session, acme.id, "asset.upload", {"asset_id": ASSET})
            raise RuntimeError
    assert await lines_of(database, acme.id) == before


# reading it


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_join_to_the_whole_record(order: audit.Order, acme: BrandOfPeople, db: Database) -> None:
    seen: list[int] = []
    cursor: str | None = None
    async with db.user_session(acme.admin.scope) as session:
        while True:
            page = await audit.list_events(session, acme.id, 2, cursor, order)
            seen += [line.seq for line in page.data]
            cursor = page.next_cursor
            if cursor is None:
                break
    assert sorted(seen) == list(range(1, len(seen) + 1))
    assert seen == sorted(seen, reverse=order == "desc")


async def test_a_member_reads_no_line(acme: BrandOfPeople, db: Database) -> None:
    async with db.user_session(acme.member.scope) as session:
        assert (await audit.list_events(session, acme.id)).data == []


@pytest.mark.parametrize("cursor", ["x", "bGluZSBhYmM", "bGluZQ", "____", "é", "bGluZSAtMQ"])
async def test_a_cursor_that_is_none_of_ours_is_refused(cursor: str, acme: BrandOfPeople, db: Database) -> None:
    with pytest.raises(InvalidInput):
        async with db.user_session(acme.admin.scope) as session:
            await audit.list_events(session, acme.id, 2, cursor)


async def test_the_route_shows_the_record_to_admins_only(acme: BrandOfPeople, platform: Platform) -> None:
    path = f"/v1/brands/{acme.id}/audit-events"
    async with platform.client(acme.admin) as client:
        body = (await client.get(path, params={"limit": 2})).json()
        assert [len(body["data"]), body["has_more"]] == [2, True]
        assert set(body["data"][0]) == {
            "seq", "brand_id", "at", "actor", "user_id", "credential", "action", "detail", "prev", "hash",
        }  # fmt: skip
        assert (await client.get(path, params={"order": "sideways"})).status_code == 422
    async with platform.client(acme.member) as client:
        assert (await client.get(path)).status_code == 403
    async with platform.client() as client:
        assert (await client.get(path)).status_code == 401


# the command


@pytest.fixture
def command(platform: Platform, tmp_path: Path, database: DatabaseUrls) -> Callable[..., Any]:
    """`await command(person, "verify", ...)`: the exit code and the JSON document of `onbrand audit`."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("ONBRAND_")}
    known |= {"XDG_CONFIG_HOME": str(tmp_path), "ONBRAND_URL": platform.url}

    async def run(person: Any, *arguments: str) -> tuple[int, Any]:
        own = {"ONBRAND_TOKEN": platform.token(person)}
        if "--database" in arguments:
            own |= {"ONBRAND_DATABASE_URL": database.owner_url}
        asked = [sys.executable, "-m", "onbrand.cli", "audit", *arguments, "--json"]
        process = await asyncio.create_subprocess_exec(*asked, env=known | own, stdout=PIPE, stderr=PIPE)
        out, _ = await process.communicate()
        return process.returncode or 0, json.loads(out)

    return run


async def test_an_admin_verifies_and_lists_over_http(
    acme: BrandOfPeople, command: Callable[..., Any], database: DatabaseUrls
) -> None:
    code, said = await command(acme.admin, "verify", "--brand", acme.id)
    expected = verdict_of(database, acme.id)
    assert (code, said) == (
        0,
        {"brand_id": acme.id, "num_events": expected.num_events, "head": str(expected.head), "holds": True},
    )
    code, said = await command(acme.admin, "list", "--brand", acme.id, "--limit", "2")
    assert (code, [line["action"] for line in said["data"]]) == (0, ["image.delete", "asset.recaption"])
    assert (await command(acme.member, "verify", "--brand", acme.id))[0] == 8


async def test_the_command_remembers_what_it_saw(
    acme: BrandOfPeople, command: Callable[..., Any], database: DatabaseUrls
) -> None:
    assert (await command(acme.admin, "verify", "--brand", acme.id))[0] == 0
    with tampering(database, acme.id, "delete from audit.events where brand_id = :brand and seq > 4"):
        code, said = await command(acme.admin, "verify", "--brand", acme.id)
        assert (code, said["error"]["code"]) == (1, "record_broken")
    assert (await command(acme.admin, "verify", "--brand", acme.id))[0] == 0


async def test_a_head_may_be_given(acme: BrandOfPeople, command: Callable[..., Any]) -> None:
    code, said = await command(acme.admin, "verify", "--brand", acme.id, "--head", "2:" + "0" * 64)
    assert (code, said["error"]["code"]) == (1, "record_broken")
    assert "line 2" in said["error"]["message"]
    assert (await command(acme.admin, "verify", "--brand", acme.id, "--head", "nonsense"))[0] == 5


async def test_operators_verify_all_brands_in_the_database(
    acme: BrandOfPeople,
    command: Callable[..., Any],
    settings: Settings,
    database: DatabaseUrls,
) -> None:
    where = ["--database", "--data-dir", str(settings.folder)]
    code, said = await command(acme.admin, "verify", *where)
    assert code == 0
    assert acme.id in {line["brand_id"] for line in said["data"]}
    with tampering(database, acme.id, "delete from audit.events where brand_id = :brand"):
        code, said = await command(acme.admin, "verify", *where)
        assert (code, acme.id in said["error"]["message"]) == (1, True)
        assert (await command(acme.admin, "verify", *where, "--brand", acme.id))[0] == 1


def test_a_login_that_sees_a_part_of_the_record_is_refused(database: DatabaseUrls) -> None:
    with pytest.raises(ConfigurationError, match="may not read"), Record(database.web_url):
        pass
