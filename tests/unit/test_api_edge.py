"""The middleware around every route: limits, headers, ids, and errors that reveal nothing internal."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request

from onbrand.api import problems
from onbrand.api.http import middleware
from onbrand.api.input import Input, must_be_storable
from onbrand.errors import InvalidInput, NotFound, TooManyRequests

SECRET = "canary-7f3a"


class Thing(Input):
    name: str
    num: int = 0


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None)
    problems.install(app)
    app.add_middleware(middleware.RequestMiddleware, body_limit=lambda method, path: 100)

    @app.post("/things")
    async def make(body: Thing) -> Thing:
        return body

    @app.get("/headers")
    async def headers(request: Request) -> dict[str, str]:
        return dict(request.headers)

    @app.get("/fault")
    async def fault() -> None:
        raise RuntimeError(f"select * from {SECRET}")

    @app.get("/absent")
    async def absent() -> None:
        raise NotFound("there is no such thing")

    @app.get("/busy")
    async def busy() -> None:
        raise TooManyRequests("slower", retry_after=7)

    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


async def test_an_unknown_field_is_refused_by_name(client: httpx.AsyncClient) -> None:
    answer = await client.post("/things", json={"name": "a", "colour": SECRET})
    assert (answer.status_code, answer.json()["param"]) == (422, "colour")
    assert SECRET not in answer.text


async def test_a_wrong_value_is_named_and_never_repeated(client: httpx.AsyncClient) -> None:
    answer = await client.post("/things", json={"name": "a", "num": SECRET})
    assert (answer.status_code, answer.json()["param"]) == (422, "num")
    assert SECRET not in answer.text


async def test_what_is_no_json_is_422(client: httpx.AsyncClient) -> None:
    answer = await client.post("/things", content=b"{", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("DELETE", "/things", 405, "method_not_allowed")],
)
async def test_frameworks_errors_have_the_same_body(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.request(method, path)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"], answer.json()["error"]["code"]) == (status, code, code)


async def test_a_problem_carries_both_shapes(client: httpx.AsyncClient) -> None:
    answer = await client.get("/absent")
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "param", "request_id", "error"}
    assert body["error"] == {
        "message": "there is no such thing",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }
    assert body["request_id"] == answer.headers["x-request-id"]


async def test_an_id_given_by_a_proxy_is_kept_and_an_odd_one_is_not(client: httpx.AsyncClient) -> None:
    """Ray Serve's proxy names requests and puts the name into the answer itself: once is enough."""
    kept = await client.get("/absent", headers={"x-request-id": "0123-abcd-4567"})
    assert kept.json()["request_id"] == "0123-abcd-4567"
    assert "x-request-id" not in kept.headers
    odd = await client.get("/absent", headers={"x-request-id": "a b\tc"})
    assert odd.json()["request_id"] == odd.headers["x-request-id"] != "a b\tc"


async def test_429_says_when_to_come_back(client: httpx.AsyncClient) -> None:
    assert (await client.get("/busy")).headers["retry-after"] == "7"


async def test_a_fault_tells_neither_caller_nor_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        answer = await client.get("/fault")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "RuntimeError" in caplog.text
    assert SECRET not in answer.text + caplog.text


async def test_the_access_log_has_no_query(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "onbrand.access"):
        await client.get("/headers", params={"signature": SECRET})
    assert "GET /headers 200" in caplog.text
    assert SECRET not in "".join(record.getMessage() for record in caplog.records if record.name == "onbrand.access")


async def test_an_announced_body_over_the_limit_is_not_read(app: FastAPI) -> None:
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        raise AssertionError("it read on")

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/things", "raw_path": b"/things", "query_string": b"",
        "headers": [(b"content-length", b"101"), (b"content-type", b"application/json")], "scheme": "http",
        "server": ("test", 80), "client": ("test", 1), "http_version": "1.1", "root_path": "", "app": app,
    }  # fmt: skip
    await app(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 413


async def test_a_body_that_grows_over_the_limit_is_cut_off(client: httpx.AsyncClient) -> None:
    num_read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_read
        for _ in range(1000):
            num_read += 1
            yield b" " * 50

    answer = await client.post("/things", content=endless(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert num_read < 10


@pytest.mark.parametrize("name", ["serve_multiplexed_model_id", "Serve_Multiplexed_Model_Id"])
async def test_the_clients_model_id_for_routing_is_dropped(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get("/headers", headers={name: "globex"})
    assert "globex" not in answer.text


async def test_every_answer_has_safe_headers(client: httpx.AsyncClient) -> None:
    for path in ("/headers", "/nowhere", "/fault"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")


class Name(str):
    """A name that counts how often it is copied into a text."""

    num_copies = 0

    def __format__(self, spec: str) -> str:
        Name.num_copies += 1
        return str.__str__(self)

    def __str__(self) -> str:
        return format(self, "")


def test_the_place_of_a_value_is_put_together_for_an_error_alone() -> None:
    names = [Name("a" * 1000), Name("b" * 1000)]
    must_be_storable({names[0]: [0] * 99, "c": [{names[1]: ["text"] * 99}] * 9}, "body")
    assert Name.num_copies == 0
    with pytest.raises(InvalidInput) as refused:
        must_be_storable({names[0]: [0, {names[1]: ["x", "\ud800"]}]}, "body")
    assert 0 < Name.num_copies <= 2
    assert str(refused.value.param) == "a" * 200
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("value", "place", "param"),
    [({"a": {"b": ["x", "\0"]}}, "body", "a.b.1"), ({"a": {"\0": 1}}, "body", "a"), ({"\0": 1}, "body", "body"),
     (["x", "\0"], "captions", "captions.1"), ("\0", "title", "title"), ({"a": "\0"}, "metadata", "metadata.a")],
)  # fmt: skip
def test_the_place_is_named(value: object, place: str, param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        must_be_storable(value, place)
    assert refused.value.param == param


def test_an_error_is_small_whatever_was_sent() -> None:
    content = problems.body(422, "invalid_input", "t", "d" * 2**20, "id", "p" * 2**20)
    assert len(str(content)) < 10_000
    faults = [{"loc": ("body", "a" * 2**20, "b"), "type": "int_type", "msg": "Input should be an integer"}]
    assert len(problems.as_own_error(faults).message) < 300


@pytest.mark.parametrize(
    ("query", "cookie", "status"),
    [("&".join(f"a{n}=" for n in range(100)), "", 200), ("a&" * 100, "", 422), ("", "a=1;" * 99 + "b=1", 200),
     ("", "a=1;" * 100 + "b=1", 422)],
)  # fmt: skip
async def test_parameters_and_cookies_are_counted_before_they_are_taken_apart(
    client: httpx.AsyncClient, query: str, cookie: str, status: int
) -> None:
    answer = await client.get(f"/headers?{query}", headers={"cookie": cookie} if cookie else {})
    assert answer.status_code == status
    if status == 422:
        assert answer.json()["param"] == ("query" if query else "Cookie")


@pytest.mark.parametrize("value", ["a\x00b", {"a": ["x", "\ud800"]}, {"\x00": 1}])
def test_text_that_no_database_holds_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        must_be_storable(value, "body")
