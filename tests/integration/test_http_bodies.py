"""Request bodies over HTTP: credentials are checked first, and the size is limited before the body is parsed."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from onbrand.api.authorization import UserRoute
from onbrand.api.route import Route, asks_for
from tests.conftest import BrandOfPeople, MakeBrand
from tests.integration.public_port import problem_of, routes_of
from tools.harness.in_process_platform import Platform

JSON = {"content-type": "application/json"}
WITHOUT_CREDENTIAL = {
    ("GET", "/healthz"), ("POST", "/v1/users"), ("POST", "/v1/tokens"), ("POST", "/v1/session"),
    ("GET", "/v1/files/{bucket}/{name:path}"), ("HEAD", "/v1/files/{bucket}/{name:path}"),
    ("PUT", "/v1/files/{bucket}/{name:path}"),
}  # fmt: skip


@pytest.fixture(scope="module")
async def acme(make_brand: MakeBrand) -> BrandOfPeople:
    return await make_brand("acme")


# Who calls comes first


def test_every_route_asks_for_a_credential_before_it_reads_or_is_known_to_need_none(platform: Platform) -> None:
    found = list(routes_of(platform.app))
    assert len(found) > 60
    for method, path, route in found:
        needs_none = (method, path) in WITHOUT_CREDENTIAL
        asks = isinstance(route, Route) and any(asks_for(route.dependant, each) for each in UserRoute.credentials)
        assert asks != needs_none, (method, path)
    for method, path, route in routes_of(platform.system_app):
        assert path == "/healthz" or isinstance(route, Route), (method, path)


def test_nothing_that_a_route_depends_on_takes_a_thread(platform: Platform) -> None:
    """FastAPI hands a dependency that is no coroutine to a thread, which costs more than any of ours does."""
    for method, path, route in [*routes_of(platform.app), *routes_of(platform.system_app)]:
        for call in calls_of(route.dependant):
            assert inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call), (method, path, call)


def calls_of(dependant: Any) -> Iterator[Any]:
    yield dependant.call
    for each in dependant.dependencies:
        yield from calls_of(each)


class Endless:
    """An endless body that counts the bytes that were read."""

    def __init__(self, piece: bytes, most: int = 1000) -> None:
        self.piece, self.most, self.num_read = piece, most, 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.most):
            self.num_read += 1
            yield self.piece


@pytest.mark.parametrize("header", [None, "Bearer a.b.c", "Bearer ob_" + "x" * 40, "Bearer \xff", "Basic \xfe"])
@pytest.mark.parametrize(
    ("method", "path", "content_type"),
    [("POST", "/v1/brands", "application/json"), ("POST", "/v1/images/generations", "application/json"),
     ("POST", "/v1/brands/acme/assets", "multipart/form-data; boundary=x"), ("PATCH", "/v1/brands/acme/x", "a/b")],
)  # fmt: skip
async def test_who_has_no_good_credential_is_told_before_the_body_is_read(
    platform: Platform, header: str | None, method: str, path: str, content_type: str
) -> None:
    body = Endless(b'{"a": 1, ' * 1000)
    headers = {"content-type": content_type} | ({"authorization": header.encode("latin-1")} if header else {})
    async with platform.client() as client:
        answer = await client.request(method, path, content=body, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code in ((404, 405) if path.endswith("/x") else (401,))
    assert body.num_read == 0


@pytest.mark.parametrize("path", ["/v1/users", "/v1/tokens", "/v1/session"])
async def test_a_body_without_a_credential_is_at_most_16_kib(platform: Platform, path: str) -> None:
    body = Endless(b" " * 1024)
    async with platform.client() as client:
        assert problem_of(await client.post(path, content=body, headers=JSON)) == (413, "too_large", None)  # type: ignore[arg-type]
        assert body.num_read == 17
        small = await client.post(path, content=b" " * 16_000 + b"{}", headers=JSON)
    assert problem_of(small)[:2] == (422, "invalid_input")


async def test_one_callers_requests_at_once_are_bounded(platform: Platform, acme: BrandOfPeople) -> None:
    callers, most = platform.app.state.callers, platform.settings.limits.requests_per_caller
    async with platform.client(acme.member) as one, platform.client(acme.member2) as another:
        with ExitStack() as held:
            for _ in range(most):
                held.enter_context(callers.held(acme.member.user_id))
            assert problem_of(await one.get("/v1/me")) == (429, "too_many_requests", None)
            assert (await another.get("/v1/me")).status_code == 200
        assert (await one.get("/v1/me")).status_code == 200
    assert callers.num_held(acme.member.user_id) == 0


# What a body costs


async def test_values_are_counted_before_they_are_looked_at(platform: Platform, acme: BrandOfPeople) -> None:
    many = {f"k{number}": number for number in range(40_000)}
    lists = {"name": "a", "model_type": "sd15", "training_asset_ids": [1] * 90_000}
    async with platform.client(acme.member) as client:
        for path, body in (("/v1/brands", many), (f"/v1/brands/{acme.id}/training-jobs", lists)):
            answer = await client.post(path, json=body)
            assert problem_of(answer) == (413, "too_large", "body")
            assert str(platform.settings.limits.json_values) in answer.json()["detail"]


async def test_text_with_as_many_marks_is_one_value(platform: Platform, acme: BrandOfPeople) -> None:
    async with platform.client(acme.admin) as client:
        answer = await client.post("/v1/brands", json={"id": "x", "name": '{[,:"\\' * 20_000})
    assert problem_of(answer)[2] in ("id", "name")


@pytest.mark.parametrize("levels", [33, 5_000, 100_000])
async def test_what_is_nested_too_deep_is_refused(platform: Platform, acme: BrandOfPeople, levels: int) -> None:
    body = b'{"id": ' + b"[" * levels + b"]" * levels + b"}"
    async with platform.client(acme.member) as client:
        answer = await client.post("/v1/brands", content=body, headers=JSON)
    assert problem_of(answer) == (413, "too_large", "body")


async def test_the_first_wrong_field_ends_it(platform: Platform, acme: BrandOfPeople) -> None:
    odd = {f"k{number}": number for number in range(2_000)}
    wrong = {"name": "a", "model_type": "sd15", "training_asset_ids": list(range(4_000))}
    nested = {"model": "sd15", "prompt": "x", "more_models": [{"model": "a"} | odd]}
    async with platform.client(acme.member) as client:
        first = await client.post("/v1/brands", json=odd)
        inner = await client.post("/v1/images/generations", json=nested)
        listed = await client.post(f"/v1/brands/{acme.id}/training-jobs", json=wrong)
        few = wrong | {"training_asset_ids": [], "training_config": odd}
        config = await client.post(f"/v1/brands/{acme.id}/training-jobs", json=few)
    assert problem_of(first) == (422, "invalid_input", "k0")
    assert problem_of(inner) == (422, "invalid_input", "more_models.0.k0")
    assert problem_of(listed) == (422, "invalid_input", "training_asset_ids.0")
    assert "training_config" in str(problem_of(config)[2])
    for answer in (first, inner, listed):
        assert "more)" not in answer.json()["detail"]


LONG = "a" * 900_000 + "\U0001f600"


@pytest.mark.parametrize("body", [{LONG: [0] * 4_990}, {"a": {LONG: [{}] * 900}}, {LONG: "\ud800"}])
async def test_a_long_name_is_refused_in_few_words(platform: Platform, acme: BrandOfPeople, body: object) -> None:
    async with platform.client(acme.member) as client:
        path, content = f"/v1/brands/{acme.id}/generations", json.dumps(body, ensure_ascii=True).encode()
        answer = await client.post(path, content=content, headers=JSON)
    assert problem_of(answer) == (413, "too_large", "body")
    assert len(answer.content) < 2_000


@pytest.mark.parametrize(
    ("field", "value"),
    [("metadata", {"a" * 130_000: [0] * 4_000}), ("metadata", {"a": [0] * 40_000}), ("captions", [0] * 60_000),
     ("metadata", {"a": [[[[]]]] * 2_000})],
    ids=["a long name", "many values", "many captions", "many lists"],
)  # fmt: skip
async def test_a_forms_json_is_counted_like_a_body(
    platform: Platform, acme: BrandOfPeople, field: str, value: object
) -> None:
    files = [("files", ("a.png", b"x", "image/png"))]
    async with platform.client(acme.member) as client:
        answer = await client.post(
            f"/v1/brands/{acme.id}/assets", data={field: json.dumps(value, separators=(",", ":"))}, files=files
        )
    assert problem_of(answer) == (413, "too_large", field)
    assert len(answer.content) < 2_000


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
async def test_json_is_utf_8(platform: Platform, acme: BrandOfPeople, encoding: str) -> None:
    async with platform.client(acme.member) as client:
        answer = await client.post("/v1/brands", content='{"id": "x"}'.encode(encoding), headers=JSON)
    assert problem_of(answer) == (422, "invalid_input", "body")
