"""Cursors and addresses with characters that PostgreSQL cannot store are refused, without a server error."""

from __future__ import annotations

import base64
import json

import pytest

from onbrand.errors import InvalidInput
from onbrand.services.identity import must_be_email
from tests.conftest import PASSWORD, MakeBrand
from tools.harness.in_process_platform import Platform

LISTS = (
    "models",
    "assets",
    "documents",
    "generations",
    "images",
    "training-jobs",
    "uploads",
    "members",
    "audit-events",
)


def cursor(*place: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


CURSORS = (
    cursor("\ud800", True, 1, "x"),
    cursor("a", True, 1, "\udfff"),
    cursor("\x00", True, 1, "x"),
    cursor("a", False, 1, "x\x00"),
    cursor("2026-01-01T00:00:00\ud800", "00000000-0000-4000-8000-000000000000"),
    cursor("2026-01-01T00:00:00", "\ud800"),
    base64.urlsafe_b64encode(b"line \xed\xa0\x80").decode(),
    "\x00",
    "acme\x00",
)


@pytest.mark.parametrize("said", CURSORS)
async def test_a_cursor_with_such_a_character_is_refused(platform: Platform, make_brand: MakeBrand, said: str) -> None:
    acme = await make_brand("acme")
    paths = ["/v1/models", *(f"/v1/brands/{acme.id}/{name}" for name in LISTS)]
    paths += (
        ["/v1/brands"] if "\x00" in said else []
    )  # there a cursor is a brand's id, and any text comes before or after
    async with platform.client(acme.admin) as client:
        answers = {path: (await client.get(path, params={"cursor": said})).status_code for path in paths}
    assert answers == dict.fromkeys(paths, 422)


@pytest.mark.parametrize(
    "email", ["a\u202e@b.example", "a\u2066b@b.example", "a\u0085b@b.example", "\u009fa@b.example"]
)
async def test_an_address_with_hidden_characters_is_refused(
    platform: Platform, make_brand: MakeBrand, email: str
) -> None:
    acme = await make_brand("acme")
    async with platform.client(acme.admin) as client:
        answers = [
            await client.post("/v1/users", json={"email": email, "password": PASSWORD}),
            await client.post(f"/v1/brands/{acme.id}/invitations", json={"email": email, "role": "member"}),
        ]
    assert [(answer.status_code, answer.json()["param"]) for answer in answers] == [(422, "email")] * 2


@pytest.mark.parametrize(
    "email", ["\u212aate@corp.example", "kate@corp.\u212aom", "\u0130da@corp.example", "a@b.\u017fe"]
)
def test_no_address_becomes_anothers_in_small_letters(email: str) -> None:
    with pytest.raises(InvalidInput, match="must be an address"):
        must_be_email(email)


def test_what_becomes_ascii_in_small_letters_is_all_known() -> None:
    found = [char for char in map(chr, range(128, 0x110000)) if any(small.isascii() for small in char.lower())]
    assert found == ["\u0130", "\u212a"]
