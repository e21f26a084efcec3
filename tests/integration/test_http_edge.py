"""HTTP details: credentials before bodies, content types, malformed bytes, HEAD, CORS, ended streams."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from onbrand.api.http import body_limits
from onbrand.app import create_app
from onbrand.config import Limits
from onbrand.errors import ConfigurationError
from onbrand.services import imports
from tests.conftest import BrandOfPeople, MakeBrand
from tests.integration.public_port import problem_of, routes_of
from tools.harness.in_process_platform import Platform


@pytest.fixture(scope="module")
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


# Content types and odd bytes

HALVES = [
    rb'{"id": "x", "name": "\ud800"}',
    rb'{"id": "\udfff", "name": "x"}',
    rb'{"\ud83d": 1}',
    b'{"id": "\xed\xa0\x80"}',
]


_PLACE = re.compile(r"\{[^}]+\}")


@pytest.mark.parametrize("body", HALVES, ids=repr)
@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", "APPLICATION/JSON; Charset=UTF-8", "application/vnd.acme+json",
     "text/plain", " application/json"],
)  # fmt: skip
async def test_half_surrogates_are_422_however_the_content_type_is_written(
    platform: Platform, acme: BrandOfPeople, body: bytes, content_type: str
) -> None:
    async with platform.client(acme.member) as client:
        answer = await client.post("/v1/brands", content=body, headers={"content-type": content_type})
    assert problem_of(answer)[:2] == (422, "invalid_input")


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7", "idna", "punycode", "utf-16", "no-such"])
async def test_a_form_is_in_utf_8(platform: Platform, acme: BrandOfPeople, charset: str, pictures) -> None:
    head = b'--x\r\ncontent-disposition: form-data; name="captions"\r\n\r\n\\ud800 +2AA-\r\n'
    file = (
        b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + pictures() + b"\r\n--x--\r\n"
    )
    async with platform.client(acme.member) as client:
        for at in (f"/v1/brands/{acme.id}/assets", f"/v1/brands/{acme.id}/documents"):
            kind = f"multipart/form-data; charset={charset}; boundary=x"
            answer = await client.post(at, content=head + file, headers={"content-type": kind})
            assert problem_of(answer)[:2] == (422, "invalid_input")


@pytest.mark.parametrize("place", ["name", "filename", "value"])
@pytest.mark.parametrize("odd", [b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\x7f", "\u202e".encode()])
async def test_no_byte_of_a_form_is_our_fault(
    platform: Platform, acme: BrandOfPeople, place: str, odd: bytes, pictures
) -> None:
    at = {name: odd if name == place else b"" for name in ("name", "filename", "value")}
    parts = [
        b'--x\r\ncontent-disposition: form-data; name="%s%s"\r\n\r\na%s\r\n' % (field, at["name"], at["value"])
        for field in (b"captions", b"object", b"metadata", b"title", b"model_type", b"name", b"trigger_word")
    ]
    ends = [
        b'--x\r\ncontent-disposition: form-data; name="%s"; filename="a%s.png"\r\n\r\n%s\r\n--x--\r\n'
        % (field, at["filename"], pictures(3))
        for field in (b"files", b"file")
    ]
    kind = {"content-type": "multipart/form-data; boundary=x"}
    async with platform.client(acme.member) as client:
        for path in ("assets", "documents", "models:import"):
            for body in [part + end for part in [b"", *parts] for end in ends]:
                answer = await client.post(f"/v1/brands/{acme.id}/{path}", content=body, headers=kind)
                assert answer.status_code < 500, (path, body[:90], answer.text)


async def test_a_forms_type_is_read_without_case(platform: Platform, acme: BrandOfPeople, pictures) -> None:
    body = (
        b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        + pictures(7)
        + b"\r\n--x--\r\n"
    )
    async with platform.client(acme.member) as client:
        kind = {"content-type": "Multipart/Form-Data; Boundary=x"}
        answer = await client.post(f"/v1/brands/{acme.id}/assets", content=body, headers=kind)
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize(
    "name",
    ["authorization", "cookie", "origin", "host", "idempotency-key", "last-event-id", "prefer", "content-type",
     "if-none-match", "x-csrf-token", "x-request-id", "accept", "range", "x-forwarded-for"],
)  # fmt: skip
@pytest.mark.parametrize(
    "value", [b"\xff\xfe", b"\x80", b"[", b"[::", b"onbrand_session=\xff", b"Bearer \xed\xa0\x80", b"\t"]
)
async def test_no_byte_of_a_header_is_our_fault(
    platform: Platform, acme: BrandOfPeople, name: str, value: bytes
) -> None:
    token = platform.token(acme.member).encode()
    sent = {b"authorization": b"Bearer " + token, b"content-type": b"application/json", name.encode(): value}
    async with platform.client() as client:
        for method, path, body in (
            ("GET", "/v1/me", b""), ("POST", "/v1/brands", b"{}"), ("DELETE", "/v1/session", b""),
            ("POST", f"/v1/brands/{acme.id}/generations", b"{}"), ("GET", "/v1/files/models/a/b", b""),
        ):  # fmt: skip
            answer = await client.request(method, path, content=body, headers=list(sent.items()))
            assert answer.status_code < 500, (method, path, answer.text)


@pytest.mark.parametrize("odd", ["%00", "%ED%A0%80", "%FF", "%0A", "a%00b", "%E2%80%AE", "..%2F..", "%5C"])
async def test_no_byte_of_an_address_is_our_fault(platform: Platform, acme: BrandOfPeople, odd: str) -> None:
    at = f"/v1/brands/{acme.id}"
    known = {path for _, path, _ in routes_of(platform.app)}
    asked = [_PLACE.sub(odd, path) for each in known for path in (each, each.replace("{brand_id}", acme.id))]
    queries = [
        f"{at}/assets?cursor={odd}",
        f"{at}/assets?limit={odd}",
        f"/v1/files/models/a/b?signature={odd}&expires={odd}",
        f"{at}/training-jobs?{odd}={odd}",
        f"{at}/models/x/download?format={odd}",
        f"/v1/models/{acme.id}/{odd}",
    ]
    async with platform.client(acme.admin) as client:
        for path in [*asked, *queries]:
            answer = await client.get(path)
            assert answer.status_code < 500, (path, answer.text)


# HEAD


async def test_head_is_answered_wherever_get_is(platform: Platform, acme: BrandOfPeople) -> None:
    paths = [
        path
        for method, path, _ in routes_of(platform.app)
        if method == "GET" and "{" not in path.replace("{brand_id}", "")
    ]
    assert len(paths) > 12
    async with platform.client(acme.admin) as client:
        for path in [*paths, "/openapi.json"]:
            at = path.replace("{brand_id}", acme.id)
            got, head = await client.get(at), await client.head(at)
            assert (head.status_code, head.content) == (got.status_code, b""), at
            assert head.headers.get("content-type") == got.headers.get("content-type")
        assert (await client.head("/v1/nowhere")).status_code == 404
        assert (await client.head("/v1/tokens")).status_code == 405


async def test_head_of_a_stream_ends_at_once(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.member) as client:
        body = {"prompt": "[hang]", "model_type": "sd15", "width": 64, "height": 64}
        made = (await client.post(f"/v1/brands/{acme.id}/generations", json=body)).json()
        at = f"/v1/brands/{acme.id}/generations/{made['id']}"
        head = await client.head(f"{at}/events")
        assert (head.status_code, head.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
        assert head.content == b""
        assert (await client.post(f"{at}/cancel")).status_code == 200


# Streams that are over


async def test_a_stream_that_is_over_is_204_to_who_has_seen_its_end(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.member) as client:
        body = {"prompt": "a", "model_type": "sd15", "width": 64, "height": 64}
        done = await client.post(f"/v1/brands/{acme.id}/generations", json=body, headers={"prefer": "wait=30"})
        at = f"/v1/brands/{acme.id}/generations/{done.json()['id']}/events"
        whole = await client.get(at)
        ids = [line.partition(": ")[2] for line in whole.text.splitlines() if line.startswith("id: ")]
        again = await client.get(at, headers={"last-event-id": ids[-1]})
        before = await client.get(at, headers={"last-event-id": ids[-2]})
    assert (again.status_code, again.content) == (204, b"")
    assert (before.status_code, f"id: {ids[-1]}" in before.text) == (200, True)


# CORS


def browser(platform: Platform, *origins: str) -> httpx.AsyncClient:
    """A client of the same platform with these origins allowed."""
    known = platform.settings.model_copy(update={"cors_origins": origins})
    app = create_app(known, platform.secrets, platform.db, platform.store, platform.generator)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,idempotency-key"}


async def test_without_origins_no_page_of_another_site_may_call(platform: Platform) -> None:
    async with browser(platform) as client:
        answer = await client.options("/v1/brands", headers=PREFLIGHT | {"origin": "https://app.example.com"})
        got = await client.get("/healthz", headers={"origin": "https://app.example.com"})
    assert answer.status_code == 405
    assert not [name for name in (*answer.headers, *got.headers) if name.startswith("access-control")]


@pytest.mark.parametrize("allowed", [("https://app.example.com",), ("*",)])
async def test_pages_of_named_origins_may_call_with_a_token(
    platform: Platform, acme: BrandOfPeople, allowed: tuple[str, ...]
) -> None:
    origin = {"origin": "https://app.example.com"}
    async with browser(platform, *allowed) as client:
        before = await client.options("/v1/brands", headers=PREFLIGHT | origin)
        assert before.status_code == 200
        token = {"authorization": f"Bearer {platform.token(acme.member)}"}
        for answer in (
            before,
            await client.get("/v1/me", headers=origin | token),
            await client.get("/v1/me", headers=origin),
        ):
            assert answer.headers["access-control-allow-origin"] in (origin["origin"], "*")
            assert "access-control-allow-credentials" not in answer.headers
        other = await client.get("/v1/me", headers={"origin": "https://evil.example.com"} | token)
        assert ("access-control-allow-origin" in other.headers) == (allowed == ("*",))


async def test_a_cookie_from_an_allowed_origin_changes_nothing(platform: Platform, acme: BrandOfPeople) -> None:
    origin = {"origin": "https://app.example.com"}
    async with browser(platform, "https://app.example.com", "*") as client:
        login = {"email": acme.member.email, "password": "a long enough password"}
        assert problem_of(await client.post("/v1/session", json=login, headers=origin))[:2] == (
            403,
            "cross_site_refused",
        )
        opened = await client.post("/v1/session", json=login)
        csrf = {"x-csrf-token": opened.json()["csrf_token"]}
        answer = await client.request("DELETE", "/v1/session", headers=origin | csrf)
    assert problem_of(answer)[:2] == (403, "cross_site_refused")


@pytest.mark.parametrize("origin", ["app.example.com", "https://app.example.com/", "https://*.example.com", "null", ""])
def test_what_is_no_origin_is_refused(origin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from onbrand.cli.up import settings_from

    monkeypatch.setenv("ONBRAND_CORS_ORIGINS", json.dumps([origin]))
    with pytest.raises(ConfigurationError, match="ONBRAND_CORS_ORIGINS"):
        settings_from({})


def test_a_file_to_import_fits_into_its_request() -> None:
    assert body_limits.IMPORT_BYTES == imports.IMPORT_BYTES_MAX + 2**20


def test_limits_of_the_edge_have_numbers() -> None:
    limits = Limits()
    assert limits.open_bodies < limits.requests
    assert limits.open_bodies_per_address < limits.requests_per_address <= limits.requests
