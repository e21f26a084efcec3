"""A caller without permission is refused before a byte of the form is read."""

from __future__ import annotations

from typing import Any

import pytest

from onbrand.services import brands
from tests.conftest import MakeBrand
from tools.harness.in_process_platform import Platform

DOORS = ("assets", "documents", "models:import")


class Read(Exception):
    """Raised when the body is read."""


async def ask(app: Any, path: str, token: str | None) -> int:
    """The status of a POST with a form whose bytes never come. Reading them is an error (500)."""
    headers = [(b"content-type", b"multipart/form-data; boundary=x"), (b"content-length", b"20000000"), (b"host", b"t")]
    if token:
        headers.append((b"authorization", f"Bearer {token}".encode()))
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers, "root_path": "",
        "server": ("t", 80), "client": ("127.0.0.1", 1), "state": {},
    }  # fmt: skip
    said: list[int] = []

    async def receive() -> Any:
        raise Read

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            said.append(message["status"])

    await app(scope, receive, send)
    return said[0]


@pytest.mark.parametrize("door", DOORS)
async def test_a_form_of_who_is_no_member_is_not_read(platform: Platform, make_brand: MakeBrand, door: str) -> None:
    acme, globex = await make_brand("acme"), await make_brand("globex")
    path = f"/v1/brands/{acme.id}/{door}"
    assert await ask(platform.app, path, None) == 401
    assert await ask(platform.app, path, platform.token(globex.member)) == 404
    assert await ask(platform.app, path, platform.token(acme.member, globex.id)) == 404
    assert await ask(platform.app, f"/v1/brands/no-such-brand/{door}", platform.token(globex.member)) == 404
    assert await ask(platform.app, path, platform.token(acme.member)) == 500  # a member's is read, which fails here


@pytest.mark.parametrize("door", DOORS)
async def test_a_form_of_a_removed_member_is_not_read(platform: Platform, make_brand: MakeBrand, door: str) -> None:
    acme = await make_brand("acme")
    async with platform.db.user_session(acme.admin.scope) as session:
        await brands.remove_member(session, acme.id, acme.member.user_id)
    assert await ask(platform.app, f"/v1/brands/{acme.id}/{door}", platform.token(acme.member)) == 404


@pytest.mark.parametrize("door", DOORS)
async def test_a_form_under_a_key_without_the_scope_is_not_read(
    platform: Platform, make_brand: MakeBrand, door: str
) -> None:
    acme = await make_brand("acme")
    async with platform.client(acme.admin) as admin:
        made = await admin.post(f"/v1/brands/{acme.id}/keys", json={"name": "reader", "scopes": ["read"]})
    assert await ask(platform.app, f"/v1/brands/{acme.id}/{door}", made.json()["key"]) == 403


@pytest.mark.parametrize("door", ["training/samples", "training/publish", "generation/images"])
async def test_a_workers_form_is_not_read_once_its_member_is_gone(
    platform: Platform, make_brand: MakeBrand, door: str
) -> None:
    acme = await make_brand("acme")
    kind = door.split("/", maxsplit=1)[0]
    ticket = acme.ticket("0f1e2d3c-0000-4000-8000-000000000001", kind).sign(platform.secrets.tickets)
    assert await ask(platform.system_app, f"/v1/{door}", None) == 401
    assert await ask(platform.system_app, f"/v1/{door}", ticket) in (401, 404)
