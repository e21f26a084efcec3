"""Nobody becomes a member without accepting, and an email address counts once verified. Members may leave any time."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import httpx
import psycopg
import pytest

from onbrand import client as sdk
from onbrand.db.accounts import release_address, verify_address
from onbrand.db.logins import DatabaseUrls
from onbrand.errors import ConfigurationError, Conflict, NotFound
from onbrand.services import brands, identity, invitations, sessions
from onbrand.services.oidc import Subject
from tests.conftest import PASSWORD, BrandOfPeople, MakeBrand, MakeUser, Person, join
from tools.harness.in_process_platform import Platform


@pytest.fixture
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


@pytest.fixture
async def guest(make_user: MakeUser) -> Person:
    return await make_user("guest")


async def verified(platform: Platform, email: str | None = None) -> Person:
    """A user whose address an external issuer has verified."""
    email = email or f"verified-{uuid.uuid4().hex[:8]}@example.com"
    async with platform.db.user_session(None) as nobody:
        who = Subject("https://id.example", uuid.uuid4().hex, email)
        return Person(await identity.external_user(nobody, who), email)


async def add(platform: Platform, brand: BrandOfPeople, email: str, role: str = "member") -> dict[str, Any]:
    async with platform.client(brand.admin) as admin:
        answer = await admin.post(f"/v1/brands/{brand.id}/members", json={"email": email, "role": role})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def call(platform: Platform, person: Person, method: str, path: str, **more: Any) -> httpx.Response:
    async with platform.client(person) as client:
        return await client.request(method, path, **more)


async def brands_of(platform: Platform, person: Person) -> list[str]:
    return [brand["id"] for brand in (await call(platform, person, "GET", "/v1/brands")).json()["data"]]


def told(answer: httpx.Response) -> tuple[int, dict[str, Any]]:
    return answer.status_code, {name: value for name, value in answer.json().items() if name != "request_id"}


# adding is inviting


async def test_who_is_added_is_invited_and_comes_in_by_accepting(
    platform: Platform, acme: BrandOfPeople, guest: Person
) -> None:
    made = await add(platform, acme, guest.email, "admin")
    assert (made["status"], made["email"], made["role"]) == ("open", guest.email, "admin")
    assert await brands_of(platform, guest) == []
    answer = await call(platform, guest, "POST", "/v1/invitations/accept", json={"token": made["token"]})
    assert (answer.status_code, answer.json()["role"]) == (201, "admin")
    assert await brands_of(platform, guest) == [acme.id]


async def test_adding_tells_nobody_who_has_an_account(platform: Platform, acme: BrandOfPeople, guest: Person) -> None:
    theirs, nobodys = [await add(platform, acme, email) for email in (guest.email, "nobody-at-all@example.com")]
    changing = ("id", "email", "token", "created_at", "expires_at")
    assert [{name: value for name, value in each.items() if name not in changing} for each in (theirs, nobodys)] == [
        {"brand_id": acme.id, "user_id": acme.admin.user_id, "role": "member", "status": "open"}
    ] * 2


async def test_a_repeated_call_invites_once_and_says_no_token(platform: Platform, acme: BrandOfPeople) -> None:
    first, again = [
        await call(
            platform, acme.admin, "POST", f"/v1/brands/{acme.id}/members",
            json={"email": "a@example.com"}, headers={"idempotency-key": "k"},
        )
        for _ in "12"
    ]  # fmt: skip
    assert again.json() == first.json() | {"token": None}


async def test_whatever_brands_invite_somebody_their_own_is_the_one_that_the_client_finds(
    platform: Platform, make_brand: MakeBrand
) -> None:
    victim, strangers = await make_brand("victim"), [await make_brand("stranger") for _ in "123"]
    for stranger in strangers:
        await add(platform, stranger, victim.admin.email, "admin")

    def found() -> str:
        with sdk.Onbrand(platform.url, platform.token(victim.admin), max_retries=0) as client:
            return client.get_user_brand().id

    assert await asyncio.to_thread(found) == victim.id
    assert await brands_of(platform, victim.admin) == [victim.id]


async def test_who_is_in_several_brands_or_in_none_is_told_so(
    platform: Platform, acme: BrandOfPeople, make_brand: MakeBrand, guest: Person
) -> None:
    other = await make_brand("other")
    await join(platform.db, other.id, other.admin, acme.admin)

    def said(person: Person) -> str:
        with sdk.Onbrand(platform.url, platform.token(person), max_retries=0) as client:
            with pytest.raises(sdk.InvalidArgument) as raised:
                client.get_user_brand()
            return str(raised.value)

    several = await asyncio.to_thread(said, acme.admin)
    assert "several brands" in several
    assert acme.id in several
    assert other.id in several
    assert "in no brand" in await asyncio.to_thread(said, guest)


# an address that somebody signed up with proves nothing


async def test_who_has_signed_up_with_the_address_first_finds_no_invitation_and_accepts_none(
    platform: Platform, acme: BrandOfPeople, make_user: MakeUser
) -> None:
    squatter = await make_user("victims-address")
    made = await add(platform, acme, squatter.email, "admin")
    assert (await call(platform, squatter, "GET", "/v1/me")).json()["email_verified"] is False
    assert (await call(platform, squatter, "GET", "/v1/invitations")).json()["data"] == []
    for verb in ("accept", "decline"):
        theirs = await call(platform, squatter, "POST", f"/v1/invitations/{made['id']}/{verb}")
        never = await call(platform, squatter, "POST", f"/v1/invitations/{uuid.uuid4()}/{verb}")
        assert told(theirs) == told(never)
        assert theirs.status_code == 404
    guess = f"obi_{uuid.UUID(made['id']).hex}_{'0' * 64}"
    assert (await call(platform, squatter, "POST", "/v1/invitations/accept", json={"token": guess})).status_code == 404
    assert await brands_of(platform, squatter) == []


async def test_a_verified_address_is_enough(platform: Platform, acme: BrandOfPeople) -> None:
    person = await verified(platform)
    made = await add(platform, acme, person.email.upper(), "admin")
    assert (await call(platform, person, "GET", "/v1/me")).json()["email_verified"] is True
    (listed,) = (await call(platform, person, "GET", "/v1/invitations")).json()["data"]
    assert listed == {name: made[name] for name in ("id", "brand_id", "role", "created_at", "expires_at")}
    answer = await call(platform, person, "POST", f"/v1/invitations/{made['id']}/accept")
    assert (answer.status_code, answer.json()["id"], answer.json()["role"]) == (201, acme.id, "admin")
    assert (await call(platform, person, "POST", f"/v1/invitations/{made['id']}/accept")).status_code == 404
    assert (await call(platform, person, "GET", "/v1/invitations")).json()["data"] == []


async def test_another_address_however_verified_is_not_enough(platform: Platform, acme: BrandOfPeople) -> None:
    invited, other = await verified(platform), await verified(platform)
    made = await add(platform, acme, invited.email)
    assert (await call(platform, other, "GET", "/v1/invitations")).json()["data"] == []
    for path, body in ((f"{made['id']}/accept", None), ("accept", {"token": made["token"]})):
        assert (await call(platform, other, "POST", f"/v1/invitations/{path}", json=body)).status_code == 404
    assert await brands_of(platform, other) == []


@pytest.mark.parametrize(
    ("said", "is_verified"), [("their own", True), ("THEIR OWN", True), ("another", False), (None, False)]
)
async def test_linking_an_identity_verifies_the_address_that_both_have(
    platform: Platform, acme: BrandOfPeople, guest: Person, said: str | None, is_verified: bool
) -> None:
    email = {"their own": guest.email, "THEIR OWN": guest.email.upper(), "another": "x@example.com"}.get(said or "")
    made = await add(platform, acme, guest.email)
    async with platform.db.user_session(guest.scope) as session:
        await identity.link(session, Subject("https://id.example", uuid.uuid4().hex, email))
    assert (await call(platform, guest, "GET", "/v1/me")).json()["email_verified"] is is_verified
    answer = await call(platform, guest, "POST", f"/v1/invitations/{made['id']}/accept")
    assert answer.status_code == (201 if is_verified else 404)


async def test_an_issuers_account_without_an_address_finds_nothing(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.db.user_session(None) as nobody:
        user_id = await identity.external_user(nobody, Subject("https://id.example", uuid.uuid4().hex, None))
    person = Person(user_id, "")
    me = (await call(platform, person, "GET", "/v1/me")).json()
    assert (me["email"], me["email_verified"]) == (None, False)
    assert (await call(platform, person, "GET", "/v1/invitations")).json()["data"] == []


async def test_an_address_that_the_issuer_verifies_later_counts_from_then_on(
    platform: Platform, acme: BrandOfPeople, guest: Person
) -> None:
    subject = uuid.uuid4().hex
    free = f"later-{subject[:8]}@example.com"

    async def come(email: str | None) -> Person:
        async with platform.db.user_session(None) as nobody:
            who = Subject("https://id.example", subject, email)
            return Person(await identity.external_user(nobody, who), email or "")

    async def address(person: Person) -> tuple[str | None, bool]:
        me = (await call(platform, person, "GET", "/v1/me")).json()
        return me["email"], me["email_verified"]

    person = await come(None)
    assert await address(await come(None)) == (None, False)
    assert await address(await come(guest.email)) == (None, False)  # somebody else claims it
    assert await address(await come(free.upper())) == (free, True)
    assert await address(await come("another@example.com")) == (free, True)
    assert (await call(platform, guest, "GET", "/v1/me")).json()["email_verified"] is False
    made = await add(platform, acme, free)
    assert (await call(platform, person, "POST", f"/v1/invitations/{made['id']}/accept")).status_code == 201


async def test_a_brand_has_so_many_open_invitations_and_no_more(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.db.user_session(acme.admin.scope) as session:
        for number in range(3):
            made = await invitations.invite(session, acme.id, f"a{number}@example.com", most_open=3)
        with pytest.raises(Conflict, match="3 at most"):
            await invitations.invite(session, acme.id, "one-more@example.com", most_open=3)
        await invitations.revoke(session, acme.id, made.id)
        await invitations.invite(session, acme.id, "one-more@example.com", most_open=3)


# what the operator settles


async def test_an_address_that_somebody_else_took_is_its_owners_again(
    platform: Platform, acme: BrandOfPeople, make_user: MakeUser, database: DatabaseUrls
) -> None:
    squatter = await make_user("victims-address")
    made = await add(platform, acme, squatter.email)
    page = await _page_of(platform, squatter)
    assert release_address(database.owner_url, squatter.email.upper()) == squatter.user_id
    async with platform.client() as nobody:
        login = {"email": squatter.email, "password": PASSWORD}
        assert (await nobody.post("/v1/tokens", json=login)).status_code == 401
        assert (await page.get("/v1/me")).status_code == 401
        signed_up = await nobody.post("/v1/users", json=login | {"password": "the owner's own password"})
    owner = Person(signed_up.json()["id"], squatter.email)
    for person, status in ((squatter, 404), (owner, 201)):
        answer = await call(platform, person, "POST", "/v1/invitations/accept", json={"token": made["token"]})
        assert answer.status_code == status
    await page.aclose()


async def _page_of(platform: Platform, person: Person) -> httpx.AsyncClient:
    page = platform.client()
    page.headers["origin"] = str(page.base_url).rstrip("/")
    await page.post("/v1/session", json={"email": person.email, "password": PASSWORD})
    assert (await page.get("/v1/me")).status_code == 200
    return page


async def test_the_issuers_account_comes_in_once_its_address_is_free(
    platform: Platform, guest: Person, database: DatabaseUrls
) -> None:
    with pytest.raises(Conflict, match="ask the operator"):
        await verified(platform, guest.email)
    release_address(database.owner_url, guest.email)
    person = await verified(platform, guest.email)
    assert person.user_id != guest.user_id
    with pytest.raises(Conflict, match="is verified"):
        release_address(database.owner_url, guest.email)
    with pytest.raises(NotFound):
        release_address(database.owner_url, "nobody-at-all@example.com")


async def test_the_operator_verifies_an_address(
    platform: Platform, acme: BrandOfPeople, guest: Person, database: DatabaseUrls
) -> None:
    made = await add(platform, acme, guest.email)
    assert verify_address(database.owner_url, guest.email.upper()) == guest.user_id
    assert (await call(platform, guest, "POST", f"/v1/invitations/{made['id']}/accept")).status_code == 201
    with pytest.raises(NotFound):
        verify_address(database.owner_url, "nobody-at-all@example.com")


async def test_only_the_owner_settles_addresses(guest: Person, database: DatabaseUrls) -> None:
    for settle in (verify_address, release_address):
        for url in (database.web_url, database.system_url):
            with pytest.raises(ConfigurationError):
                settle(str(url), guest.email)


# declining


@pytest.mark.parametrize("way", ["by its token", "by its id"])
async def test_what_was_declined_is_over(
    platform: Platform, acme: BrandOfPeople, way: str, owner: psycopg.Connection
) -> None:
    person = await verified(platform)
    made = await add(platform, acme, person.email)
    path, body = {"by its token": ("", {"token": made["token"]}), "by its id": (f"/{made['id']}", None)}[way]
    assert (await call(platform, person, "POST", f"/v1/invitations{path}/decline", json=body)).status_code == 204
    for verb in ("accept", "decline"):
        assert (await call(platform, person, "POST", f"/v1/invitations{path}/{verb}", json=body)).status_code == 404
    listed = (await call(platform, acme.admin, "GET", f"/v1/brands/{acme.id}/invitations")).json()["data"][0]
    assert (listed["id"], listed["status"]) == (made["id"], "declined")
    line = owner.execute(
        "select action, user_id::text, detail from audit.events where brand_id = %s order by seq desc limit 1",
        [acme.id],
    ).fetchone()
    assert line == ("invitation.decline", person.user_id, {"invitation_id": made["id"]})


# whose list it is


@pytest.mark.parametrize("end", ["revoked", "expired", "its inviter removed", "its inviter demoted"])
async def test_what_is_not_open_is_not_listed(
    platform: Platform, acme: BrandOfPeople, make_user: MakeUser, end: str, owner: psycopg.Connection
) -> None:
    second, person = await make_user("second"), await verified(platform)
    await join(platform.db, acme.id, acme.admin, second, "admin")
    async with platform.db.user_session(second.scope.in_brand(acme.id)) as session:
        made = await invitations.invite(session, acme.id, person.email)
    async with platform.db.user_session(acme.admin.scope) as session:
        if end == "revoked":
            await invitations.revoke(session, acme.id, made.id)
        elif end == "its inviter removed":
            await brands.remove_member(session, acme.id, second.user_id)
        elif end == "its inviter demoted":
            await brands.set_role(session, acme.id, second.user_id, "member")
    if end == "expired":
        times = "created_at = now() - interval '2 d', expires_at = now() - interval '1 s'"
        owner.execute(f"update app.invitations set {times} where id = %s", [made.id])  # type: ignore[arg-type]
        owner.commit()
    assert (await call(platform, person, "GET", "/v1/invitations")).json()["data"] == []
    assert (await call(platform, person, "POST", f"/v1/invitations/{made.id}/accept")).status_code == 404


@pytest.mark.parametrize("method_path", [("GET", ""), ("POST", "/{}/accept"), ("POST", "/{}/decline")])
async def test_invitations_are_a_persons_own(
    platform: Platform, acme: BrandOfPeople, method_path: tuple[str, str]
) -> None:
    method, path = method_path[0], "/v1/invitations" + method_path[1].format(uuid.uuid4())
    body = {"name": "k", "scopes": ["manage"]}
    key = await call(platform, acme.admin, "POST", f"/v1/brands/{acme.id}/keys", json=body)
    async with platform.client() as by_key, platform.client(acme.admin, brand_id=acme.id) as bound:
        by_key.headers["authorization"] = f"Bearer {key.json()['key']}"
        for client in (by_key, bound):
            assert (await client.request(method, path)).status_code == 403


# pages


async def _pages(platform: Platform, person: Person, path: str) -> list[dict[str, Any]]:
    """All entries of a list, two per page."""
    found: list[dict[str, Any]] = []
    cursor = None
    for _ in range(10):
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await call(platform, person, "GET", path, params=params)).json()
        assert len(page["data"]) <= 2
        found += page["data"]
        cursor = page["next_cursor"]
        assert page["has_more"] is (cursor is not None)
        if cursor is None:
            return found
    raise AssertionError("the pages never end")


async def test_members_page_newest_first(platform: Platform, acme: BrandOfPeople, make_user: MakeUser) -> None:
    more = [await make_user(f"more{number}") for number in range(2)]
    for person in more:
        await join(platform.db, acme.id, acme.admin, person)
    listed = await _pages(platform, acme.admin, f"/v1/brands/{acme.id}/members")
    everybody = [*reversed(more), acme.member2, acme.member, acme.admin]
    assert [(each["user_id"], each["email"]) for each in listed] == [(each.user_id, each.email) for each in everybody]
    own = await _pages(platform, acme.member, f"/v1/brands/{acme.id}/members")
    assert [each["user_id"] for each in own] == [acme.member.user_id]


async def test_invitations_page_for_who_sent_and_for_who_got_them(platform: Platform, make_brand: MakeBrand) -> None:
    person = await verified(platform)
    inviting = [await make_brand("inviting") for _ in range(3)]
    made = [(await add(platform, brand, person.email))["id"] for brand in inviting for _ in "12"]
    assert [each["id"] for each in await _pages(platform, person, "/v1/invitations")] == made[::-1]
    sent = await _pages(platform, inviting[0].admin, f"/v1/brands/{inviting[0].id}/invitations")
    assert [each["id"] for each in sent][:2] == made[1::-1]
    answer = await call(platform, person, "GET", "/v1/invitations", params={"cursor": "x"})
    assert (answer.status_code, answer.json()["param"]) == (422, "cursor")


async def test_a_pages_session_is_found_however_many_are_newer(platform: Platform, guest: Person) -> None:
    async with platform.client() as page:
        page.headers["origin"] = str(page.base_url).rstrip("/")
        opened = (await page.post("/v1/session", json={"email": guest.email, "password": PASSWORD})).json()
        for _ in range(21):
            async with platform.db.user_session(guest.scope) as session:
                await sessions.open_session(session, timedelta(hours=1), timedelta(hours=1))
        assert (await page.get("/v1/session")).json() == opened
        first = (await page.get("/v1/sessions")).json()
    assert (len(first["data"]), first["has_more"]) == (20, True)
    assert opened["id"] not in [each["id"] for each in first["data"]]


# leaving


@pytest.mark.parametrize("way", ["me", "their own id"])
async def test_a_member_leaves(platform: Platform, acme: BrandOfPeople, way: str, owner: psycopg.Connection) -> None:
    at = f"/v1/brands/{acme.id}/members/{'me' if way == 'me' else acme.member.user_id}"
    assert (await call(platform, acme.member, "DELETE", at)).status_code == 204
    assert await brands_of(platform, acme.member) == []
    assert (await call(platform, acme.member, "DELETE", at)).status_code == 404
    line = owner.execute(
        "select action, actor, user_id::text, detail from audit.events where brand_id = %s order by seq desc limit 1",
        [acme.id],
    ).fetchone()
    assert line == ("member.remove", "user", acme.member.user_id, {"user_id": acme.member.user_id})


async def test_a_member_removes_nobody_else(platform: Platform, acme: BrandOfPeople) -> None:
    for other in (acme.admin, acme.member2):
        answer = await call(platform, acme.member, "DELETE", f"/v1/brands/{acme.id}/members/{other.user_id}")
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("way", ["me", "their own id"])
async def test_the_last_admin_does_not_leave(platform: Platform, acme: BrandOfPeople, way: str) -> None:
    at = f"/v1/brands/{acme.id}/members/{'me' if way == 'me' else acme.admin.user_id}"
    answer = await call(platform, acme.admin, "DELETE", at)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert await brands_of(platform, acme.admin) == [acme.id]


async def test_two_admins_who_leave_at_once_leave_one(
    platform: Platform, make_brand: MakeBrand, owner: psycopg.Connection
) -> None:
    for _ in range(8):
        brand = await make_brand("left")
        async with platform.db.user_session(brand.admin.scope) as session:
            await brands.set_role(session, brand.id, brand.member.user_id, "admin")

        async def leave(person: Person, brand_id: str = brand.id) -> str:
            try:
                async with platform.db.user_session(person.scope) as session:
                    await brands.leave(session, brand_id)
                return "left"
            except Conflict:
                return "last"

        assert sorted(await asyncio.gather(leave(brand.admin), leave(brand.member))) == ["last", "left"]
        owner.rollback()
        left = owner.execute(
            "select count(*) from app.brand_users where brand_id = %s and role = 'admin'", [brand.id]
        ).fetchone()
        assert left == (1,)


async def test_by_the_client(platform: Platform, acme: BrandOfPeople) -> None:
    person = await verified(platform)

    def story() -> None:
        with (
            sdk.Onbrand(platform.url, platform.token(acme.admin), max_retries=0) as admin,
            sdk.Onbrand(platform.url, platform.token(person), max_retries=0) as theirs,
        ):
            made = admin.members.add(acme.id, person.email)
            assert made.token not in repr(made)
            (received,) = theirs.invitations.received()
            assert (received.id, received.brand_id) == (made.id, acme.id)
            theirs.invitations.decline(received)
            again = admin.members.add(acme.id, person.email)
            assert again.token is not None
            assert theirs.invitations.accept(again.token).id == acme.id
            theirs.members.leave(acme.id)
            third = admin.members.add(acme.id, person.email)
            assert theirs.invitations.accept(third.id).id == acme.id
            assert theirs.users.me().email_verified

    await asyncio.to_thread(story)
