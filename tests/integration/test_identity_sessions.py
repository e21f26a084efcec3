"""Browser sessions over HTTP: the cookie, its end, and cross-site requests."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import psycopg
import pytest

from onbrand.app import create_app
from onbrand.brand import Scope
from onbrand.errors import Forbidden
from tests.conftest import PASSWORD, BrandOfPeople, MakeBrand, Person
from tools.harness.in_process_platform import Platform

OURS = {"sec-fetch-site": "same-origin", "origin": "http://test"}


@pytest.fixture(scope="module")
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


class Page:
    """A logged-in page; `headers` are those that our own pages send with a change."""

    def __init__(self, client: httpx.AsyncClient, answer: httpx.Response) -> None:
        self.client = client
        self.answer = answer
        self.id = answer.json()["id"]
        self.headers = OURS | {"x-csrf-token": answer.json()["csrf_token"]}
        self.cookie = client.cookies["onbrand_session"]


async def log_in(client: httpx.AsyncClient, person: Person, **headers: str) -> httpx.Response:
    return await client.post("/v1/session", json={"email": person.email, "password": PASSWORD}, headers=headers)


async def opened(platform: Platform, person: Person) -> Page:
    client = platform.client()
    answer = await log_in(client, person)
    assert answer.status_code == 201, answer.text
    return Page(client, answer)


@pytest.fixture
async def page(platform: Platform, acme: BrandOfPeople) -> AsyncIterator[Page]:
    made = await opened(platform, acme.admin)
    yield made
    await made.client.aclose()


def told(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("code")


# the cookie


async def test_the_cookie_is_kept_from_scripts_and_other_sites(page: Page) -> None:
    said = page.answer.headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=lax" in said
    assert "path=/" in said
    assert "domain" not in said
    assert "max-age=43200" in said
    assert page.answer.headers["cache-control"] == "no-store"


async def test_under_https_the_cookie_never_travels_without(platform: Platform, acme: BrandOfPeople) -> None:
    known = platform.settings.model_copy(update={"public_url": "https://onbrand.example"})
    app = create_app(known, platform.secrets, platform.db, platform.store, platform.generator)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://onbrand.example") as client:
        answer = await log_in(client, acme.admin)
        said = answer.headers["set-cookie"]
        assert said.startswith("__Host-onbrand_session=")
        assert "secure" in said.lower()
        assert (await client.get(f"/v1/brands/{acme.id}")).status_code == 200


async def test_only_a_digest_of_the_cookie_is_kept(page: Page, owner: psycopg.Connection) -> None:
    row = owner.execute("select t::text from identity.sessions t where id = %s", [page.id]).fetchone()
    assert page.cookie not in str(row)
    assert hashlib.sha256(page.cookie.encode()).hexdigest() in str(row)
    assert page.headers["x-csrf-token"] not in str(row)


async def test_the_page_reads_and_writes_and_learns_its_token_again(page: Page, acme: BrandOfPeople) -> None:
    assert (await page.client.get(f"/v1/brands/{acme.id}")).json()["role"] == "admin"
    again = (await page.client.get("/v1/session")).json()
    assert (again["id"], again["csrf_token"]) == (page.id, page.headers["x-csrf-token"])
    body = {"id": f"made-{uuid.uuid4().hex[:8]}", "name": "Made by a page"}
    assert (await page.client.post("/v1/brands", json=body, headers=page.headers)).status_code == 201


async def test_every_log_in_is_another_session(platform: Platform, acme: BrandOfPeople) -> None:
    pages = [await opened(platform, acme.member) for _ in "12"]
    assert pages[0].cookie != pages[1].cookie
    assert pages[0].headers["x-csrf-token"] != pages[1].headers["x-csrf-token"]
    planted = platform.client()
    planted.cookies["onbrand_session"] = pages[0].cookie
    answer = await log_in(planted, acme.member)
    assert f"onbrand_session={pages[0].cookie}" not in answer.headers["set-cookie"]
    for each in (*(page.client for page in pages), planted):
        await each.aclose()


@pytest.mark.parametrize("who", ["wrong password", "unknown address"])
async def test_a_wrong_log_in_opens_nothing(platform: Platform, acme: BrandOfPeople, who: str) -> None:
    body = {"email": acme.admin.email, "password": "wrong password"}
    if who == "unknown address":
        body["email"] = "nobody@example.com"
    async with platform.client() as client:
        answer = await client.post("/v1/session", json=body)
    assert told(answer) == (401, "unauthenticated")
    assert answer.json()["detail"] == "wrong email or password"
    assert "set-cookie" not in answer.headers


# changes must provably come from our own page

REFUSED: dict[str, dict[str, str | None]] = {
    "no token": {"x-csrf-token": None},
    "an empty token": {"x-csrf-token": ""},
    "a wrong token": {"x-csrf-token": "0" * 64},
    "a token that is no text": {"x-csrf-token": "\xff"},
    "no sign of where it is from": {"origin": None, "sec-fetch-site": None},
    "another site": {"sec-fetch-site": "cross-site"},
    "a sibling site": {"sec-fetch-site": "same-site"},
    "typed": {"sec-fetch-site": "none"},
    "another origin": {"origin": "http://evil.example"},
    "another origin alone": {"origin": "http://evil.example", "sec-fetch-site": None},
    "an opaque origin": {"origin": "null"},
    "another port": {"origin": "http://test:8080"},
    "an origin that begins like ours": {"origin": "http://test.evil.example"},
    "another scheme": {"origin": "https://test"},
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_change_that_is_not_from_our_page_is_refused(
    page: Page, acme: BrandOfPeople, owner: psycopg.Connection, name: str
) -> None:
    headers = {k: v for k, v in (page.headers | REFUSED[name]).items() if v is not None}
    changes: list[tuple[str, str, Any]] = [
        ("POST", f"/v1/brands/{acme.id}/members", {"email": "nobody@example.com"}),
        ("POST", "/v1/brands", {"id": "made-by-another-site", "name": "x"}),
        ("PATCH", f"/v1/brands/{acme.id}/members/{acme.member.user_id}", {"role": "admin"}),
        ("DELETE", f"/v1/brands/{acme.id}/members/{acme.member.user_id}", None),
        ("DELETE", "/v1/session", None),
    ]
    for method, path, body in changes:
        raw = [(k, v.encode("latin-1")) for k, v in headers.items()]
        answer = await page.client.request(method, path, json=body, headers=raw)  # type: ignore[arg-type]
        assert told(answer) == (403, "cross_site_refused"), (method, path)
    assert (await page.client.get(f"/v1/brands/{acme.id}")).status_code == 200
    roles = owner.execute("select role from app.brand_users where brand_id = %s", [acme.id]).fetchall()
    assert sorted(roles) == [("admin",), ("member",), ("member",)]


async def test_a_token_of_another_session_is_refused(platform: Platform, page: Page, acme: BrandOfPeople) -> None:
    other = await opened(platform, acme.admin)
    answer = await page.client.delete("/v1/session", headers=other.headers)
    assert told(answer) == (403, "cross_site_refused")
    await other.client.aclose()


@pytest.mark.parametrize("sent", [{"sec-fetch-site": "same-origin"}, {"origin": "http://test"}])
async def test_one_sign_of_our_page_is_enough(page: Page, sent: dict[str, str]) -> None:
    headers = sent | {"x-csrf-token": page.headers["x-csrf-token"]}
    assert (await page.client.delete("/v1/session", headers=headers)).status_code == 204


async def test_another_site_logs_nobody_in(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client() as client:
        for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert told(await log_in(client, acme.admin, **headers)) == (403, "cross_site_refused")


# a header goes before the cookie


async def test_a_bearer_token_goes_before_the_cookie(
    platform: Platform, page: Page, acme: BrandOfPeople, make_brand: MakeBrand
) -> None:
    other = await make_brand("other")
    headers = {"authorization": f"Bearer {platform.token(other.member)}"}
    assert (await page.client.get("/v1/me", headers=headers)).json()["id"] == other.member.user_id
    assert (await page.client.get(f"/v1/brands/{acme.id}", headers=headers)).status_code == 404
    answer = await page.client.post("/v1/brands", json={"id": other.id, "name": "x"}, headers=headers)
    assert told(answer) == (409, "conflict")  # no CSRF token was asked for


@pytest.mark.parametrize("header", ["Bearer nonsense", "Bearer", "", "Basic abc", "Bearer ob_x"])
async def test_a_bad_header_does_not_fall_back_on_the_cookie(page: Page, header: str) -> None:
    answer = await page.client.get("/v1/me", headers={"authorization": header})
    assert told(answer) == (401, "unauthenticated")


# the end


async def test_logging_out_ends_the_session_on_the_server(platform: Platform, page: Page) -> None:
    answer = await page.client.delete("/v1/session", headers=page.headers)
    assert answer.status_code == 204
    assert 'onbrand_session=""' in answer.headers["set-cookie"]
    async with platform.client() as thief:
        thief.cookies["onbrand_session"] = page.cookie
        assert told(await thief.get("/v1/me")) == (401, "unauthenticated")


@pytest.mark.parametrize(
    "age",
    [
        "expires_at = now() - interval '1 s'",
        "last_seen_at = now() - interval '61 minutes'",
        "ended_at = now()",
    ],
)
async def test_a_session_ends_in_time_and_after_silence(page: Page, owner: psycopg.Connection, age: str) -> None:
    assert (await page.client.get("/v1/me")).status_code == 200
    owner.execute(f"update identity.sessions set {age} where id = %s", [page.id])
    owner.commit()
    assert told(await page.client.get("/v1/me")) == (401, "unauthenticated")


async def test_being_used_keeps_a_session_awake(page: Page, owner: psycopg.Connection) -> None:
    owner.execute("update identity.sessions set last_seen_at = now() - interval '59 minutes' where id = %s", [page.id])
    owner.commit()
    assert (await page.client.get("/v1/me")).status_code == 200
    (silence,) = owner.execute(
        "select extract(epoch from now() - last_seen_at) from identity.sessions where id = %s", [page.id]
    ).fetchone()  # type: ignore[misc]
    assert silence < 60


@pytest.mark.parametrize("cookie", ["", "x", "0" * 64, "' or 1=1 --", "\xff"])
async def test_a_cookie_that_is_none_of_ours_is_401(platform: Platform, cookie: str) -> None:
    async with platform.client() as client:
        answer = await client.get("/v1/me", headers={"cookie": f"onbrand_session={cookie}".encode("latin-1")})  # type: ignore[dict-item]
    assert told(answer) == (401, "unauthenticated")


async def test_one_ends_all_of_ones_sessions_and_nobody_elses(platform: Platform, acme: BrandOfPeople) -> None:
    pages = [await opened(platform, acme.member2) for _ in "123"]
    other = await opened(platform, acme.member)
    first, *rest = pages
    assert {each["id"] for each in (await first.client.get("/v1/sessions")).json()["data"]} == {
        each.id for each in pages
    }
    anothers = await first.client.delete(f"/v1/sessions/{other.id}", headers=first.headers)
    nobodys = await first.client.delete(f"/v1/sessions/{uuid.uuid4()}", headers=first.headers)
    assert told(anothers) == told(nobodys) == (404, "not_found")
    assert (await first.client.delete(f"/v1/sessions/{rest[0].id}", headers=first.headers)).status_code == 204
    assert [(await each.client.get("/v1/me")).status_code for each in pages] == [200, 401, 200]
    assert (await first.client.delete("/v1/sessions", headers=first.headers)).status_code == 204
    assert [(await each.client.get("/v1/me")).status_code for each in pages] == [401, 401, 401]
    assert (await other.client.get("/v1/me")).status_code == 200
    for each in (*pages, other):
        await each.client.aclose()


async def test_a_session_that_ended_reaches_no_row(platform: Platform, page: Page, acme: BrandOfPeople) -> None:
    scope = Scope(acme.admin.user_id, session_id=page.id, within=acme.id)
    asked = (
        "select private.my_brand() is not null as mine, private.is_admin() as admin,"
        " private.has_scope('manage') as may, exists (select from private.my_brands(null, null)) as brands"
    )
    nothing = {"mine": False, "admin": False, "may": False, "brands": False}
    async with platform.db.user_session(scope) as session:
        assert await session.one(asked) == {"mine": True, "admin": True, "may": True, "brands": True}
    members = await opened(platform, acme.member)
    async with platform.db.user_session(replace(scope, user_id=acme.member.user_id, session_id=members.id)) as session:
        assert await session.one(asked) == {"mine": True, "admin": False, "may": True, "brands": True}
    await members.client.aclose()
    async with platform.db.user_session(replace(scope, user_id=acme.member.user_id)) as session:
        assert await session.one(asked) == nothing, "another's page"
    await page.client.delete("/v1/session", headers=page.headers)
    async with platform.db.user_session(scope) as session:
        assert await session.one(asked) == nothing


@pytest.mark.parametrize(
    "narrow", [{"brand_id": "acme"}, {"key_id": str(uuid.uuid4())}, {"scopes": frozenset({"read"})}]
)
async def test_what_is_narrower_than_its_user_opens_no_session(
    platform: Platform, acme: BrandOfPeople, narrow: dict[str, Any]
) -> None:
    for statement in (
        "select private.open_session(repeat('f', 64), '1 h', '1 h')",
        "select private.link_subject('https://id.example', 'x')",
        "select private.accept_invitation(gen_random_uuid(), 'x')",
        "select private.accept_invitation(gen_random_uuid(), null)",
        "select private.decline_invitation(gen_random_uuid(), null)",
    ):
        with pytest.raises(Forbidden):
            async with platform.db.user_session(Scope(acme.admin.user_id, **narrow)) as session:
                await session.run(statement)


async def test_a_token_has_no_session_of_a_page(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.admin) as client:
        assert told(await client.get("/v1/session")) == (404, "not_found")
        assert told(await client.delete("/v1/session")) == (404, "not_found")


async def test_a_removed_members_page_is_out_at_once(platform: Platform, make_brand: MakeBrand) -> None:
    brand = await make_brand("leaving")
    page = await opened(platform, brand.member)
    assert (await page.client.get(f"/v1/brands/{brand.id}")).status_code == 200
    async with platform.client(brand.admin) as admin:
        await admin.delete(f"/v1/brands/{brand.id}/members/{brand.member.user_id}")
    assert told(await page.client.get(f"/v1/brands/{brand.id}")) == (404, "not_found")
    await page.client.aclose()
