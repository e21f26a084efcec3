"""Invitations, and that a brand keeps an admin under concurrent changes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from typing import Any

import httpx
import psycopg
import pytest

from onbrand.db.session import Database
from onbrand.errors import Conflict, Unavailable
from onbrand.services import brands, invitations
from tests.conftest import BrandOfPeople, MakeBrand, MakeUser, Person, join
from tools.harness.in_process_platform import Platform


@pytest.fixture
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


@pytest.fixture
async def guest(make_user: MakeUser) -> Person:
    return await make_user("guest")


async def invite(platform: Platform, brand: BrandOfPeople, email: str, **more: Any) -> dict[str, Any]:
    async with platform.client(brand.admin) as admin:
        answer = await admin.post(f"/v1/brands/{brand.id}/invitations", json={"email": email, **more})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def accept(platform: Platform, person: Person, token: str) -> httpx.Response:
    async with platform.client(person) as client:
        return await client.post("/v1/invitations/accept", json={"token": token})


def told(answer: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    return {name: value for name, value in body.items() if name != "request_id"}


# invitations


@pytest.mark.parametrize("role", ["member", "admin"])
async def test_who_accepts_is_in_with_the_role(
    platform: Platform, acme: BrandOfPeople, guest: Person, role: str, owner: psycopg.Connection
) -> None:
    made = await invite(platform, acme, guest.email.upper(), role=role)
    assert (made["email"], made["role"], made["status"]) == (guest.email, role, "open")
    answer = await accept(platform, guest, made["token"])
    assert (answer.status_code, answer.json()["id"], answer.json()["role"]) == (201, acme.id, role)
    async with platform.client(acme.admin) as admin:
        listed = (await admin.get(f"/v1/brands/{acme.id}/invitations")).json()["data"][0]
    assert listed == {name: value for name, value in made.items() if name != "token"} | {"status": "accepted"}
    lines = owner.execute(
        "select action, detail from audit.events where brand_id = %s and action like 'invitation.%%' order by seq"
        " offset 4",  # those of the brand's two members
        [acme.id],
    ).fetchall()
    assert lines == [
        ("invitation.create", {"invitation_id": made["id"], "role": role}),
        ("invitation.accept", {"invitation_id": made["id"]}),
    ]


async def test_only_a_digest_is_kept_and_a_repeated_call_says_no_token(
    platform: Platform, acme: BrandOfPeople, owner: psycopg.Connection
) -> None:
    async with platform.client(acme.admin) as admin:
        first, again = [
            await admin.post(
                f"/v1/brands/{acme.id}/invitations", json={"email": "a@example.com"}, headers={"idempotency-key": "k"}
            )
            for _ in "12"
        ]
    assert again.json() == first.json() | {"token": None}
    secret = first.json()["token"].rsplit("_", 1)[1]
    kept = owner.execute(
        "select (select string_agg(t::text, '') from app.invitations t)"
        " || (select string_agg(t::text, '') from app.idempotency_keys t)"
        " || (select string_agg(t::text, '') from audit.events t)"
    ).fetchone()
    assert secret not in str(kept)
    assert hashlib.sha256(secret.encode()).hexdigest() in str(kept)


async def _of_another(platform: Platform, acme: BrandOfPeople, guest: Person, token: str) -> httpx.Response:
    return await accept(platform, acme.member, token)


async def _used(platform: Platform, acme: BrandOfPeople, guest: Person, token: str) -> httpx.Response:
    assert (await accept(platform, guest, token)).status_code == 201
    async with platform.client(acme.admin) as admin:
        await admin.delete(f"/v1/brands/{acme.id}/members/{guest.user_id}")
    return await accept(platform, guest, token)


async def _revoked(platform: Platform, acme: BrandOfPeople, guest: Person, token: str) -> httpx.Response:
    async with platform.client(acme.admin) as admin:
        for _ in "12":
            gone = await admin.delete(f"/v1/brands/{acme.id}/invitations/{uuid.UUID(token.split('_')[1])}")
            assert gone.status_code == 204
    return await accept(platform, guest, token)


async def _changed(platform: Platform, acme: BrandOfPeople, guest: Person, token: str) -> httpx.Response:
    return await accept(platform, guest, token[:-1] + ("0" if token[-1] != "0" else "1"))


async def _made_up(platform: Platform, acme: BrandOfPeople, guest: Person, token: str) -> httpx.Response:
    return await accept(platform, guest, f"obi_{uuid.uuid4().hex}_{token.rsplit('_', 1)[1]}")


async def _nonsense(platform: Platform, acme: BrandOfPeople, guest: Person, token: str) -> httpx.Response:
    return await accept(platform, guest, "nonsense")


@pytest.mark.parametrize("way", [_of_another, _used, _revoked, _changed, _made_up, _nonsense])
async def test_every_invitation_that_is_not_ones_own_and_open_gets_the_same_answer(
    platform: Platform, acme: BrandOfPeople, guest: Person, way: Any, owner: psycopg.Connection
) -> None:
    made = await invite(platform, acme, guest.email)
    answer = await way(platform, acme, guest, made["token"])
    never = await accept(platform, guest, f"obi_{'0' * 32}_{'0' * 64}")
    assert (answer.status_code, told(answer)) == (404, told(never))
    members = owner.execute("select count(*) from app.brand_users where brand_id = %s", [acme.id]).fetchone()
    assert members == (3,)


async def test_an_invitation_ends(
    platform: Platform, acme: BrandOfPeople, guest: Person, owner: psycopg.Connection
) -> None:
    made = await invite(platform, acme, guest.email, days=1)
    owner.execute(
        "update app.invitations set created_at = now() - interval '2 d', expires_at = now() - interval '1 s'"
        " where id = %s",
        [made["id"]],
    )
    owner.commit()
    assert (await accept(platform, guest, made["token"])).status_code == 404
    async with platform.client(acme.admin) as admin:
        listed = (await admin.get(f"/v1/brands/{acme.id}/invitations")).json()["data"]
    assert [each["status"] for each in listed if each["id"] == made["id"]] == ["expired"]


@pytest.mark.parametrize("end", ["removed", "demoted", "removed and back", "demoted and back"])
async def test_an_invitation_ends_with_the_inviters_right_to_invite(
    platform: Platform, acme: BrandOfPeople, guest: Person, make_user: MakeUser, end: str
) -> None:
    second = await make_user("second")
    await join(platform.db, acme.id, acme.admin, second, "admin")
    async with platform.client(acme.admin) as admin, platform.client(second) as theirs:
        at = f"/v1/brands/{acme.id}/members"
        made = (await theirs.post(f"/v1/brands/{acme.id}/invitations", json={"email": guest.email})).json()
        if "demoted" in end:
            await admin.patch(f"{at}/{second.user_id}", json={"role": "member"})
        else:
            await admin.delete(f"{at}/{second.user_id}")
        if end == "demoted and back":
            await admin.patch(f"{at}/{second.user_id}", json={"role": "admin"})
        if end == "removed and back":
            await join(platform.db, acme.id, acme.admin, second, "admin")
    assert (await accept(platform, guest, made["token"])).status_code == 404


async def test_two_accept_at_once_and_one_is_in(platform: Platform, acme: BrandOfPeople, guest: Person) -> None:
    made = await invite(platform, acme, guest.email)
    answers = await asyncio.gather(*(accept(platform, guest, made["token"]) for _ in range(6)))
    assert sorted(answer.status_code for answer in answers) == [201, 404, 404, 404, 404, 404]


async def test_who_accepts_what_another_call_is_accepting_waits_and_is_refused(
    platform: Platform, acme: BrandOfPeople, guest: Person, owner: psycopg.Connection
) -> None:
    token = (await invite(platform, acme, guest.email))["token"]
    async with platform.db.user_session(guest.scope) as session:
        await invitations.accept(session, token)
        late = asyncio.create_task(accept(platform, guest, token))
        async with asyncio.timeout(10):
            while not _someone_waits(owner):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert (await late).status_code == 404


def _someone_waits(owner: psycopg.Connection) -> bool:
    owner.rollback()
    waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    return owner.execute(waiting).fetchone() is not None


async def test_a_role_that_one_has_already_stays(platform: Platform, acme: BrandOfPeople, guest: Person) -> None:
    made = await invite(platform, acme, guest.email, role="member")
    await join(platform.db, acme.id, acme.admin, guest, "admin")
    async with platform.client(acme.admin) as admin:
        again = await admin.post(f"/v1/brands/{acme.id}/invitations", json={"email": guest.email})
        assert (again.status_code, again.json()["param"]) == (409, "email")
    assert (await accept(platform, guest, made["token"])).json()["role"] == "admin"


async def test_what_was_accepted_is_not_revoked(platform: Platform, acme: BrandOfPeople, guest: Person) -> None:
    made = await invite(platform, acme, guest.email)
    await accept(platform, guest, made["token"])
    async with platform.client(acme.admin) as admin:
        answer = await admin.delete(f"/v1/brands/{acme.id}/invitations/{made['id']}")
        assert answer.status_code == 409


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"email": "no address"}, "email"),
        ({"email": "a@example.com", "role": "owner"}, "role"),
        ({"email": "a@example.com", "days": 31}, "days"),
        ({"email": "a@example.com", "days": 0}, "days"),
        ({"email": "a@example.com", "user_id": "x"}, "user_id"),
    ],
)
async def test_a_bad_invitation_names_the_field(
    platform: Platform, acme: BrandOfPeople, body: dict[str, Any], param: str
) -> None:
    async with platform.client(acme.admin) as admin:
        answer = await admin.post(f"/v1/brands/{acme.id}/invitations", json=body)
    assert (answer.status_code, answer.json()["param"]) == (422, param)


async def test_a_token_that_is_bound_to_a_brand_accepts_nothing(
    platform: Platform, acme: BrandOfPeople, make_brand: MakeBrand
) -> None:
    other = await make_brand("other")
    made = await invite(platform, acme, other.member.email)
    async with platform.client(other.member, brand_id=other.id) as client:
        answer = await client.post("/v1/invitations/accept", json={"token": made["token"]})
        assert answer.status_code == 403


# the last admin


async def _remove(db: Database, actor: Person, brand_id: str, user_id: str) -> str:
    try:
        async with db.user_session(actor.scope.in_brand(brand_id)) as session:
            await brands.remove_member(session, brand_id, user_id)
        return "done"
    except Conflict:
        return "last"
    except Unavailable:
        return "busy"


async def _demote(db: Database, actor: Person, brand_id: str, user_id: str) -> str:
    try:
        async with db.user_session(actor.scope) as session:
            await brands.set_role(session, brand_id, user_id, "member")
        return "done"
    except Conflict:
        return "last"
    except Unavailable:
        return "busy"


async def num_admins(db: Database, brand_id: str, owner: psycopg.Connection) -> int:
    owner.rollback()
    row = owner.execute(
        "select count(*) from app.brand_users where brand_id = %s and role = 'admin'", [brand_id]
    ).fetchone()
    return int(row[0]) if row else 0


@pytest.mark.parametrize("ways", [(_remove, _remove), (_demote, _demote), (_remove, _demote)])
@pytest.mark.parametrize("whom", ["each other", "themselves"])
async def test_two_admins_at_once_never_leave_none(
    db: Database, make_brand: MakeBrand, owner: psycopg.Connection, ways: tuple[Any, Any], whom: str
) -> None:
    for _ in range(4):
        brand = await make_brand("pulled")
        first, second = brand.admin, brand.member
        async with db.user_session(first.scope) as session:
            await brands.set_role(session, brand.id, second.user_id, "admin")
        targets = (second, first) if whom == "each other" else (first, second)
        ends = await asyncio.gather(
            ways[0](db, first, brand.id, targets[0].user_id),
            ways[1](db, second, brand.id, targets[1].user_id),
            return_exceptions=True,
        )
        assert await num_admins(db, brand.id, owner) == 1, ends
        assert "busy" not in ends, "two who take the same locks take them in the same order"


async def test_a_key_and_its_maker_at_once_never_leave_none(
    platform: Platform, make_brand: MakeBrand, owner: psycopg.Connection
) -> None:
    for _ in range(4):
        brand = await make_brand("pulled")
        at = f"/v1/brands/{brand.id}"
        async with platform.client(brand.admin) as admin, platform.client() as key:
            await admin.patch(f"{at}/members/{brand.member.user_id}", json={"role": "admin"})
            made = await admin.post(f"{at}/keys", json={"name": "k", "scopes": ["manage"]})
            key.headers["authorization"] = f"Bearer {made.json()['key']}"
            await asyncio.gather(
                key.delete(f"{at}/members/{brand.member.user_id}"),
                admin.delete(f"{at}/members/{brand.admin.user_id}"),
            )
        assert await num_admins(platform.db, brand.id, owner) == 1


async def test_a_key_cannot_remove_the_last_admin_that_is_its_maker(platform: Platform, acme: BrandOfPeople) -> None:
    at = f"/v1/brands/{acme.id}"
    async with platform.client(acme.admin) as admin, platform.client() as key:
        made = await admin.post(f"{at}/keys", json={"name": "k", "scopes": ["manage"]})
        key.headers["authorization"] = f"Bearer {made.json()['key']}"
        for answer in (
            await key.delete(f"{at}/members/{acme.admin.user_id}"),
            await key.patch(f"{at}/members/{acme.admin.user_id}", json={"role": "member"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        (listed,) = (await admin.get(f"{at}/keys")).json()["data"]
        assert listed["revoked_at"] is None


async def test_an_accepted_invitation_lowers_nobody(
    platform: Platform, acme: BrandOfPeople, guest: Person, owner: psycopg.Connection
) -> None:
    """The last admin, invited as a member before they were one, stays the last admin."""
    made = await invite(platform, acme, guest.email, role="member")
    await join(platform.db, acme.id, acme.admin, guest, "admin")
    answers = await asyncio.gather(
        accept(platform, guest, made["token"]),
        _remove(platform.db, guest, acme.id, acme.admin.user_id),
    )
    assert await num_admins(platform.db, acme.id, owner) == 1, answers


async def test_every_change_of_members_leaves_one_line(
    platform: Platform, make_brand: MakeBrand, guest: Person, owner: psycopg.Connection
) -> None:
    brand = await make_brand("told")
    at = f"/v1/brands/{brand.id}/members"
    async with platform.client(brand.admin) as admin:
        made = (await admin.post(at, json={"email": guest.email, "role": "admin"})).json()
        await accept(platform, guest, made["token"])
        await admin.patch(f"{at}/{guest.user_id}", json={"role": "member"})
        await admin.patch(f"{at}/{guest.user_id}", json={"role": "admin"})
        await admin.delete(f"{at}/{brand.member.user_id}")
    async with platform.client(guest) as leaving:
        await leaving.delete(f"{at}/{guest.user_id}")
    lines = owner.execute(
        "select action, detail from audit.events where brand_id = %s order by seq offset 5", [brand.id]
    ).fetchall()
    assert lines == [
        ("invitation.create", {"invitation_id": made["id"], "role": "admin"}),
        ("invitation.accept", {"invitation_id": made["id"]}),
        ("member.set_role", {"user_id": guest.user_id, "role": "member"}),
        ("member.set_role", {"user_id": guest.user_id, "role": "admin"}),
        ("member.remove", {"user_id": brand.member.user_id}),
        ("member.remove", {"user_id": guest.user_id}),
    ]
    assert guest.email not in json.dumps(lines)
