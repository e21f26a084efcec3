"""Logging in does not reveal which addresses have accounts: the same response, after the same work."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import jwt
import pytest

from onbrand.brand import KEY_SCOPES
from onbrand.errors import Unauthenticated
from onbrand.services import passwords
from onbrand.services.identity import TokenIssuer
from tests.conftest import PASSWORD, BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform

SECRET = "s" * 64


@pytest.fixture(scope="module")
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


def work_of(hashed: str) -> list[str]:
    """Kind, version and parameters of a hash, which determine the cost of a check."""
    return hashed.split("$")[1:4]


def test_nobodys_hash_asks_for_the_same_work_as_anybodys() -> None:
    assert work_of(passwords._HASH_OF_NOBODY) == work_of(passwords.hash_password(PASSWORD))


@pytest.mark.parametrize("path", ["/v1/tokens", "/v1/session"])
@pytest.mark.parametrize("who", ["known", "unknown", "no password", "no address"])
async def test_every_failed_log_in_checks_one_password(
    platform: Platform, acme: BrandOfPeople, monkeypatch: pytest.MonkeyPatch, path: str, who: str
) -> None:
    email = {"known": acme.admin.email, "unknown": "nobody@example.com", "no password": "outside@example.com"}.get(
        who, "no address"
    )
    if who == "no password":
        async with platform.db.user_session(None) as session:
            async with session.asking("external_user", "https://id.example", "outside", email):
                await session.run("select private.external_user('https://id.example', 'outside', %s)", [email])
    checked: list[list[str]] = []
    verify = passwords.verify

    def counted(password: str, hashed: str) -> bool:
        checked.append(work_of(hashed))
        return verify(password, hashed)

    monkeypatch.setattr(passwords, "verify", counted)
    async with platform.client() as client:
        answer = await client.post(path, json={"email": email, "password": "a wrong password"})
    assert (answer.status_code, answer.json()["detail"]) == (401, "wrong email or password")
    assert checked == [work_of(passwords._HASH_OF_NOBODY)]


# tokens of our own


def token_of(secret: str = SECRET, algorithm: str = "HS256", **change: Any) -> str:
    good = {
        "iss": "onbrand", "aud": "onbrand-api", "sub": "6f1c2d3e-0000-4000-8000-000000000000", "exp": 4_000_000_000,
    }  # fmt: skip
    claims = {name: value for name, value in (good | change).items() if value is not None}
    return jwt.encode(claims, secret, algorithm)


def test_a_good_token_is_read() -> None:
    assert TokenIssuer(SECRET).verify(token_of(brand_id="acme")).brand_id == "acme"


@pytest.mark.parametrize(
    "make",
    [
        lambda: token_of("x" * 64),
        lambda: token_of(algorithm="HS512"),
        lambda: jwt.encode({"iss": "onbrand"}, "", "none"),
        lambda: token_of(exp=1),
        lambda: token_of(exp=None),
        lambda: token_of(iss="onbrand-tickets"),
        lambda: token_of(aud="another"),
        lambda: token_of(aud=None),
        lambda: token_of(sub=None),
        lambda: token_of(sub="root"),
        lambda: token_of(sub="../../etc"),
        lambda: token_of(brand_id="../acme"),
        lambda: token_of(brand_id=["acme"]),
        lambda: token_of(brand_id={"acme": 1}),
        lambda: token_of(brand_id=""),
        lambda: token_of(exp=float("inf")),
        lambda: "",
        lambda: "a.b.c",
        lambda: "\ud800.\ud800.",
        lambda: "W" * 20_000,
    ],
)
def test_a_token_that_is_not_good_is_refused_in_the_same_words(make: Callable[[], str]) -> None:
    with pytest.raises(Unauthenticated, match="forged, expired or not for this service"):
        TokenIssuer(SECRET).verify(make())


# what is logged


@pytest.fixture
async def admin(platform: Platform, acme: BrandOfPeople) -> AsyncIterator[httpx.AsyncClient]:
    async with platform.client(acme.admin) as client:
        yield client


async def test_no_secret_is_logged(
    platform: Platform, acme: BrandOfPeople, admin: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"email": acme.member.email, "password": PASSWORD}
    at = f"/v1/brands/{acme.id}"
    key = (await admin.post(f"{at}/keys", json={"name": "k", "scopes": list(KEY_SCOPES)})).json()["key"]
    invitation = (await admin.post(f"{at}/invitations", json={"email": "guest@example.com"})).json()["token"]
    secrets = [PASSWORD, key.rsplit("_", 1)[1], invitation.rsplit("_", 1)[1]]
    async with platform.client() as client:
        secrets.append((await client.post("/v1/tokens", json=body)).json()["access_token"].rsplit(".", 1)[1])
        opened = await client.post("/v1/session", json=body)
        secrets += [opened.json()["csrf_token"], client.cookies["onbrand_session"]]
        await client.get("/v1/me")
        await client.get("/v1/me", headers={"authorization": f"Bearer {key}"})
        await client.get("/v1/me", headers={"authorization": f"Bearer {key[:-1]}"})
        await client.delete("/v1/session", headers={"x-csrf-token": secrets[-2]})
    async with platform.client(acme.member) as member:
        await member.post("/v1/invitations/accept", json={"token": invitation})
    assert "/v1/session" in caplog.text
    assert [secret for secret in secrets if secret in caplog.text] == []
