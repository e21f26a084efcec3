"""Tokens of an external issuer, a real one on loopback: its keys rotate, and attackers impersonate it in many ways."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from onbrand.app import create_app
from onbrand.config import Settings
from onbrand.errors import ConfigurationError, Unauthenticated, Unavailable
from onbrand.local import platform
from onbrand.services.oidc import OidcIssuer
from tests.conftest import PASSWORD, MakeBrand
from tools.harness.in_process_platform import Platform

AUDIENCE = "onbrand-tests"


class Issuer:
    """An issuer on a free loopback port, with discovery and keys over HTTP. It signs any token."""

    def __init__(self) -> None:
        self.hits: list[str] = []
        self.keys: dict[str, Any] = {}
        self.documents: dict[str, tuple[int, bytes]] = {}
        self.answers = threading.Event()
        self.answers.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.hits.append(self.path)
                issuer.answers.wait(20)
                status, body = issuer.documents.get(self.path, (404, b"{}"))
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        told = {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}
        self.documents["/.well-known/openid-configuration"] = (200, json.dumps(told).encode())

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def publish(self, **keys: Any) -> None:
        """Serve exactly these keys, by kid."""
        self.keys = keys
        jwks = [self.jwk(kid, key) for kid, key in keys.items()]
        self.documents["/jwks"] = (200, json.dumps({"keys": jwks}).encode())

    def jwk(self, kid: str, key: Any) -> dict[str, Any]:
        algorithm = {
            rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
            ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
            ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
        }
        kind = next(made for asked, made in algorithm.items() if isinstance(key, asked))
        return dict(kind.to_jwk(key.public_key(), as_dict=True)) | {"kid": kid, "use": "sig"}

    def claims(self, **change: Any) -> dict[str, Any]:
        """Valid claims of a new subject; None removes a claim."""
        now = int(time.time())
        good = {"iss": self.url, "aud": AUDIENCE, "sub": uuid.uuid4().hex, "iat": now, "exp": now + 300}
        return {name: value for name, value in (good | change).items() if value is not None}

    def token(self, kid: str = "first", key: Any = None, alg: str = "RS256", headers: Any = None, **claims: Any) -> str:
        header = {"kid": kid} | (headers or {})
        return jwt.encode(self.claims(**claims), key or self.keys[kid], alg, {k: v for k, v in header.items() if v})


@pytest.fixture(scope="module")
def rsa_keys() -> list[rsa.RSAPrivateKey]:
    return [rsa.generate_private_key(65537, 2048) for _ in range(2)]


@pytest.fixture
def issuer(rsa_keys: list[rsa.RSAPrivateKey]) -> Iterator[Issuer]:
    made = Issuer()
    made.publish(first=rsa_keys[0])
    yield made
    made.close()


@pytest.fixture
def reader(issuer: Issuer) -> OidcIssuer:
    return OidcIssuer(issuer.url, AUDIENCE, refetch_after=0.0)


# the token


async def test_a_good_token_says_who_it_is(issuer: Issuer, reader: OidcIssuer) -> None:
    who = await reader.verify(issuer.token(sub="ada", email="Ada@Example.com", email_verified=True))
    assert (who.issuer, who.subject, who.email) == (issuer.url, "ada", "Ada@Example.com")


async def test_an_address_that_is_not_verified_is_left_out(issuer: Issuer, reader: OidcIssuer) -> None:
    for said in (None, False, "true", 1):
        who = await reader.verify(issuer.token(email="ada@example.com", email_verified=said))
        assert who.email is None
    trusting = OidcIssuer(issuer.url, AUDIENCE, trusts_email=True)
    assert (await trusting.verify(issuer.token(email="ada@example.com"))).email == "ada@example.com"


@pytest.mark.parametrize(
    ("algorithm", "make"),
    [
        ("ES256", lambda: ec.generate_private_key(ec.SECP256R1())),
        ("EdDSA", ed25519.Ed25519PrivateKey.generate),
    ],
)
async def test_other_kinds_of_keys_are_read_where_they_are_allowed(
    issuer: Issuer, algorithm: str, make: Callable[[], Any]
) -> None:
    issuer.publish(other=make())
    reader = OidcIssuer(issuer.url, AUDIENCE, algorithms=(algorithm,))
    await reader.verify(issuer.token("other", alg=algorithm))
    strict = OidcIssuer(issuer.url, AUDIENCE, algorithms=("RS256",))
    with pytest.raises(Unauthenticated):
        await strict.verify(issuer.token("other", alg=algorithm))


@pytest.mark.parametrize("claim", ["exp", "aud", "iss", "sub"])
async def test_what_every_token_must_say(issuer: Issuer, reader: OidcIssuer, claim: str) -> None:
    with pytest.raises(Unauthenticated):
        await reader.verify(issuer.token(**{claim: None}))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1},
        {"exp": "soon"},
        {"exp": -1e300},
        {"nbf": 4_000_000_000},
        {"iat": 4_000_000_000},
        {"aud": "another service"},
        {"aud": ["another service", "and another"]},
        {"aud": ""},
        {"aud": {"onbrand-tests": 1}},
        {"iss": "https://another.example"},
        {"iss": ""},
        {"sub": ""},
        {"sub": "x" * 256},
        {"sub": "a\x00b"},
    ],
)
async def test_a_token_that_is_not_for_us_or_not_now_is_refused(
    issuer: Issuer, reader: OidcIssuer, claims: dict[str, Any]
) -> None:
    with pytest.raises(Unauthenticated):
        await reader.verify(issuer.token(**claims))


async def test_clocks_may_differ_a_little(issuer: Issuer, reader: OidcIssuer) -> None:
    now = int(time.time())
    await reader.verify(issuer.token(exp=now - 15))
    with pytest.raises(Unauthenticated):
        await reader.verify(issuer.token(exp=now - 61))


def _signed(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None) -> str:
    """A token built by hand, which libraries would refuse to make."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    body = b".".join(parts)
    signature = b"" if secret is None else hmac.new(secret, body, hashlib.sha256).digest()
    return (body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def _with_body(token: str, claims: dict[str, Any]) -> str:
    header, _, signature = token.split(".")
    return f"{header}.{base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b'=').decode()}.{signature}"


def _public_pem(key: Any) -> bytes:
    return bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )  # fmt: skip


FORGERIES: dict[str, Callable[[Issuer, Any], str]] = {
    "alg none": lambda issuer, own: _signed({"alg": "none", "kid": "first"}, issuer.claims(), None),
    "alg None": lambda issuer, own: _signed({"alg": "None", "kid": "first"}, issuer.claims(), None),
    "no alg": lambda issuer, own: _signed({"kid": "first"}, issuer.claims(), b""),
    "HS256 with the public key": lambda issuer, own: _signed(
        {"alg": "HS256", "kid": "first"}, issuer.claims(), _public_pem(issuer.keys["first"])
    ),
    "HS256 with the published key's bytes": lambda issuer, own: _signed(
        {"alg": "HS256", "kid": "first"},
        issuer.claims(),
        json.dumps(issuer.jwk("first", issuer.keys["first"])).encode(),
    ),
    "another key under the known kid": lambda issuer, own: issuer.token("first", key=own),
    "an unknown kid": lambda issuer, own: issuer.token("second", key=own),
    "no kid": lambda issuer, own: issuer.token("", key=issuer.keys["first"]),
    "a kid that is a list": lambda issuer, own: _signed({"alg": "RS256", "kid": ["first"]}, issuer.claims(), b""),
    "a kid that is a path": lambda issuer, own: issuer.token("../../dev/null", key=own),
    "another algorithm of the same key": lambda issuer, own: issuer.token("first", alg="PS256"),
    "a longer digest": lambda issuer, own: issuer.token("first", alg="RS512"),
    "jku": lambda issuer, own: issuer.token("evil", key=own, headers={"jku": f"{issuer.url}/evil"}),
    "jku under the known kid": lambda issuer, own: issuer.token(
        "first", key=own, headers={"jku": f"{issuer.url}/evil"}
    ),
    "x5u": lambda issuer, own: issuer.token("evil", key=own, headers={"x5u": f"{issuer.url}/evil"}),
    "a key in the header": lambda issuer, own: issuer.token(
        "first", key=own, headers={"jwk": issuer.jwk("first", own)}
    ),
    "crit": lambda issuer, own: issuer.token("first", headers={"crit": ["exp"]}),
    "a changed body": lambda issuer, own: _with_body(issuer.token(), issuer.claims(sub="root")),
    "no signature": lambda issuer, own: issuer.token().rsplit(".", 1)[0] + ".",
    "very long": lambda issuer, own: issuer.token(padding="x" * 20_000),
    "very deep": lambda issuer, own: base64.urlsafe_b64encode(b"[" * 9_000).decode().rstrip("=") + ".e30.",
    "not a token": lambda issuer, own: "a.b.c",
    "not text": lambda issuer, own: "\xff\xfe.\xff.\xff",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
async def test_a_forged_token_is_refused_and_fetches_nothing_from_elsewhere(
    issuer: Issuer, reader: OidcIssuer, rsa_keys: list[rsa.RSAPrivateKey], name: str
) -> None:
    evil = json.dumps({"keys": [issuer.jwk("evil", rsa_keys[1])]}).encode()
    issuer.documents["/evil"] = (200, evil)
    await reader.verify(issuer.token())
    with pytest.raises(Unauthenticated):
        await reader.verify(FORGERIES[name](issuer, rsa_keys[1]))
    assert set(issuer.hits) == {"/.well-known/openid-configuration", "/jwks"}


@pytest.mark.parametrize("kind", ["a shared secret", "for encryption", "too short", "of another algorithm"])
async def test_a_published_key_that_is_none_for_signatures_is_not_used(
    issuer: Issuer, reader: OidcIssuer, rsa_keys: list[rsa.RSAPrivateKey], kind: str
) -> None:
    secret = base64.urlsafe_b64encode(b"s" * 64).rstrip(b"=").decode()
    short = rsa.generate_private_key(65537, 1024) if kind == "too short" else rsa_keys[0]
    jwk = {
        "a shared secret": {"kty": "oct", "k": secret, "kid": "first", "use": "sig"},
        "for encryption": issuer.jwk("first", rsa_keys[0]) | {"use": "enc"},
        "too short": issuer.jwk("first", short),
        "of another algorithm": issuer.jwk("first", rsa_keys[0]) | {"alg": "RS512"},
    }[kind]
    issuer.documents["/jwks"] = (200, json.dumps({"keys": [jwk]}).encode())
    token = (
        _signed({"alg": "HS256", "kid": "first"}, issuer.claims(), b"s" * 64)
        if kind == "a shared secret"
        else _token_of(issuer, short)
    )
    with pytest.raises(Unauthenticated):
        await reader.verify(token)


def _token_of(issuer: Issuer, key: rsa.RSAPrivateKey) -> str:
    """RS256 by hand, as the library warns about short keys."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    body = _signed({"alg": "RS256", "kid": "first"}, issuer.claims(), b"").rsplit(".", 1)[0]
    signature = key.sign(body.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


# the keys


async def test_keys_rotate(issuer: Issuer, reader: OidcIssuer, rsa_keys: list[rsa.RSAPrivateKey]) -> None:
    before = issuer.token("first")
    await reader.verify(before)
    issuer.publish(second=rsa_keys[1])
    await reader.verify(issuer.token("second"))
    with pytest.raises(Unauthenticated):
        await reader.verify(before)


async def test_a_known_key_asks_nobody(issuer: Issuer, reader: OidcIssuer) -> None:
    for _ in range(5):
        await reader.verify(issuer.token())
    assert issuer.hits.count("/jwks") == 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_unknown_keys_are_not_asked_for_at_every_token(issuer: Issuer, rsa_keys: list[rsa.RSAPrivateKey]) -> None:
    clock = Clock()
    reader = OidcIssuer(issuer.url, AUDIENCE, refetch_after=10.0, clock=clock)
    await reader.verify(issuer.token())
    clock.now = 11
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await reader.verify(issuer.token(uuid.uuid4().hex, key=rsa_keys[1]))
    assert issuer.hits.count("/jwks") == 2
    await reader.verify(issuer.token())


async def test_a_key_that_was_withdrawn_ends_within_minutes(issuer: Issuer, rsa_keys: list[rsa.RSAPrivateKey]) -> None:
    clock = Clock()
    reader = OidcIssuer(issuer.url, AUDIENCE, clock=clock)
    stolen = issuer.token("first")
    await reader.verify(stolen)
    issuer.publish(second=rsa_keys[1])
    clock.now = 601
    with pytest.raises(Unauthenticated):
        await reader.verify(stolen)


async def test_while_the_issuer_is_away_known_keys_hold_for_an_hour(issuer: Issuer) -> None:
    clock = Clock()
    reader = OidcIssuer(issuer.url, AUDIENCE, clock=clock)
    await reader.verify(issuer.token())
    issuer.documents["/jwks"] = (503, b"")
    clock.now = 3000
    await reader.verify(issuer.token())
    clock.now = 3601
    with pytest.raises(Unavailable):
        await reader.verify(issuer.token())


@pytest.mark.parametrize(
    "answer",
    [
        (404, b"{}"),
        (302, b"{}"),
        (200, b"not json"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"keys": 5}'),
        (200, b'{"keys": "' + b"x" * 2**19 + b'"}'),
        (200, b"[" * 100_000),
    ],
)
async def test_an_issuer_that_answers_nonsense_is_unavailable(
    issuer: Issuer, reader: OidcIssuer, answer: tuple[int, bytes]
) -> None:
    issuer.documents["/jwks"] = answer
    with pytest.raises(Unavailable):
        await reader.verify(issuer.token())


async def test_an_issuer_that_does_not_answer_holds_nobody_for_long(
    issuer: Issuer, reader: OidcIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onbrand.services.oidc._FETCH_SECONDS", 0.2)
    token = issuer.token()
    issuer.answers.clear()
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable):
            await reader.verify(token)


@pytest.mark.parametrize("url", ["http://keys.example/jwks", "file:///etc/passwd", "jwks", "", None])
async def test_a_discovery_document_leads_to_no_unsafe_address(
    issuer: Issuer, reader: OidcIssuer, url: str | None
) -> None:
    told = {"issuer": issuer.url, "jwks_uri": url}
    issuer.documents["/.well-known/openid-configuration"] = (200, json.dumps(told).encode())
    with pytest.raises(Unavailable):
        await reader.verify(issuer.token())
    assert issuer.hits == ["/.well-known/openid-configuration"]


async def test_a_discovery_document_of_another_issuer_is_not_followed(issuer: Issuer, reader: OidcIssuer) -> None:
    told = {"issuer": "https://another.example", "jwks_uri": f"{issuer.url}/jwks"}
    issuer.documents["/.well-known/openid-configuration"] = (200, json.dumps(told).encode())
    with pytest.raises(Unavailable):
        await reader.verify(issuer.token())
    assert "/jwks" not in issuer.hits


async def test_the_address_of_the_keys_may_be_set(issuer: Issuer) -> None:
    issuer.documents["/elsewhere"] = issuer.documents["/jwks"]
    reader = OidcIssuer(issuer.url, AUDIENCE, f"{issuer.url}/elsewhere")
    await reader.verify(issuer.token())
    assert issuer.hits == ["/elsewhere"]


# the settings


@pytest.mark.parametrize(
    "settings",
    [
        {"oidc_issuer": "https://id.example"},
        {"oidc_issuer": "http://id.example", "oidc_audience": "x"},
        {"oidc_issuer": "https://id.example", "oidc_jwks_url": "http://id.example/jwks", "oidc_audience": "x"},
        {"oidc_issuer": "id.example", "oidc_audience": "x"},
        {"oidc_issuer": "file:///etc/passwd", "oidc_audience": "x"},
    ],
)
def test_an_issuer_that_could_be_impersonated_is_refused_at_the_start(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        OidcIssuer.from_settings(Settings(**settings))


def test_the_platform_does_not_start_with_half_an_issuer(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, oidc_issuer="https://id.example")
    with pytest.raises(ConfigurationError, match="ONBRAND_OIDC_AUDIENCE"), platform.Platform(settings):
        pass


@pytest.mark.parametrize("algorithm", ["HS256", "none", "RS256 "])
def test_only_asymmetric_algorithms_can_be_set(algorithm: str) -> None:
    with pytest.raises(ValueError):
        Settings(oidc_algorithms=(algorithm,))  # type: ignore[arg-type]


def test_a_leeway_is_a_minute_at_most() -> None:
    with pytest.raises(ValueError):
        Settings(oidc_leeway_seconds=61)


def test_without_an_issuer_there_is_none() -> None:
    assert OidcIssuer.from_settings(Settings()) is None


# the account


@pytest.fixture
def visitor(platform: Platform, issuer: Issuer) -> Callable[[str | None], httpx.AsyncClient]:
    """`visitor(token)`: a client of a platform that accepts the issuer."""
    known = platform.settings.model_copy(update={"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE})
    app = create_app(known, platform.secrets, platform.db, platform.store, platform.generator)

    def visit(token: str | None) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers)

    return visit


async def test_a_subject_gets_an_account_at_first_sight_and_the_same_one_ever_after(
    issuer: Issuer, visitor: Callable[[str], httpx.AsyncClient]
) -> None:
    email = f"ada-{uuid.uuid4().hex[:8]}@example.com"
    ids = []
    for _ in "12":
        async with visitor(issuer.token(sub=email, email=email, email_verified=True)) as client:
            me = (await client.get("/v1/me")).json()
            ids.append((me["id"], me["email"]))
    assert ids[0] == ids[1]
    assert ids[0][1] == email


async def test_many_first_sights_at_once_make_one_account(
    issuer: Issuer, visitor: Callable[[str], httpx.AsyncClient]
) -> None:
    token = issuer.token(email=f"ada-{uuid.uuid4().hex[:8]}@example.com", email_verified=True)
    async with visitor(token) as client:
        answers = await asyncio.gather(*(client.get("/v1/me") for _ in range(8)))
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_the_same_subject_of_another_issuer_is_somebody_else(
    platform: Platform, issuer: Issuer, rsa_keys: list[rsa.RSAPrivateKey]
) -> None:
    from onbrand.services import identity
    from onbrand.services.oidc import Subject

    ids = []
    for name in (issuer.url, f"{issuer.url}/other"):
        async with platform.db.user_session(None) as session:
            ids.append(await identity.external_user(session, Subject(name, "ada")))
    assert ids[0] != ids[1]


async def test_an_account_with_a_password_is_never_taken_over_by_its_address(
    issuer: Issuer, visitor: Callable[[str | None], httpx.AsyncClient], make_brand: MakeBrand
) -> None:
    brand = await make_brand("acme")
    token = issuer.token(email=brand.admin.email.upper(), email_verified=True)
    async with visitor(token) as client:
        answer = await client.get("/v1/me")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert (await client.get(f"/v1/brands/{brand.id}")).status_code == 409


async def test_an_unverified_address_is_not_taken(
    issuer: Issuer, visitor: Callable[[str | None], httpx.AsyncClient], make_brand: MakeBrand
) -> None:
    brand = await make_brand("acme")
    async with visitor(issuer.token(email=brand.admin.email)) as client:
        me = (await client.get("/v1/me")).json()
        assert (me["email"], me["brands"]) == (None, [])
        assert me["id"] != brand.admin.user_id


async def test_who_holds_both_links_them(
    platform: Platform,
    issuer: Issuer,
    visitor: Callable[[str | None], httpx.AsyncClient],
    make_brand: MakeBrand,
) -> None:
    brand = await make_brand("acme")
    claims = {"sub": uuid.uuid4().hex, "email": brand.admin.email, "email_verified": True}
    async with visitor(platform.token(brand.admin)) as client:
        answer = await client.post("/v1/me/identities", json={"token": "x"})
        assert answer.status_code == 401
        answer = await client.post("/v1/me/identities", json={"token": issuer.token(**claims)})
        assert answer.status_code == 204
    async with visitor(issuer.token(**claims)) as client:
        assert (await client.get("/v1/me")).json()["id"] == brand.admin.user_id
        assert (await client.get(f"/v1/brands/{brand.id}")).json()["role"] == "admin"
    async with visitor(platform.token(brand.member)) as client:
        answer = await client.post("/v1/me/identities", json={"token": issuer.token(**claims)})
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


async def test_an_account_without_a_password_has_none_to_guess(
    issuer: Issuer, visitor: Callable[[str | None], httpx.AsyncClient]
) -> None:
    email = f"ada-{uuid.uuid4().hex[:8]}@example.com"
    async with visitor(issuer.token(email=email, email_verified=True)) as client:
        await client.get("/v1/me")
    async with visitor(None) as nobody:
        answer = await nobody.post("/v1/tokens", json={"email": email, "password": PASSWORD})
        unknown = await nobody.post("/v1/tokens", json={"email": f"x{email}", "password": PASSWORD})
    assert (answer.status_code, answer.json()["detail"]) == (401, unknown.json()["detail"])


async def test_our_own_tokens_go_on_beside_the_issuers(
    platform: Platform, visitor: Callable[[str | None], httpx.AsyncClient], make_brand: MakeBrand, issuer: Issuer
) -> None:
    brand = await make_brand("acme")
    async with visitor(platform.token(brand.admin)) as client:
        assert (await client.get(f"/v1/brands/{brand.id}")).status_code == 200
    own_secret = jwt.encode(issuer.claims(sub=brand.admin.user_id), platform.secrets.tokens, "HS256", {"kid": "first"})
    async with visitor(own_secret) as client:
        assert (await client.get("/v1/me")).status_code == 401
    async with visitor(issuer.token(iss="onbrand", aud="onbrand-api", sub=brand.admin.user_id)) as client:
        assert (await client.get("/v1/me")).status_code == 401


async def test_a_platform_without_the_issuer_refuses_its_tokens(platform: Platform, issuer: Issuer) -> None:
    async with platform.client() as client:
        client.headers["authorization"] = f"Bearer {issuer.token()}"
        assert (await client.get("/v1/me")).status_code == 401
    assert issuer.hits == []
