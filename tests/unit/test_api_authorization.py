"""Each guard of a route refuses by itself, without the database, which would refuse too."""

from __future__ import annotations

from typing import Any

import pytest

from onbrand.api.authorization import BrandCaller, _admin, _admin_in_person, _person
from onbrand.brand import KEY_SCOPES, Scope
from onbrand.errors import Forbidden

NOTHING: Any = None
PERSON = Scope("7c1f7f0a-54a5-4b0e-9a3c-3f6a1f1e2d22")
KEY = Scope(PERSON.user_id, "acme", "0b3d4a3e-9f1c-4a66-8e5a-0c6f1d9c2b11", frozenset(KEY_SCOPES))


def caller(role: str = "admin", scope: Scope = PERSON) -> BrandCaller:
    return BrandCaller(scope, NOTHING, NOTHING, "acme", role, PERSON.user_id)


async def test_an_admin_is_let_through() -> None:
    admin = caller()
    assert await _admin(admin) is admin
    assert await _admin_in_person(admin) is admin


async def test_a_member_is_no_admin() -> None:
    with pytest.raises(Forbidden):
        await _admin(caller("member"))


async def test_a_key_of_an_admin_is_not_the_admin_in_person() -> None:
    with pytest.raises(Forbidden):
        await _admin_in_person(caller(scope=KEY))


@pytest.mark.parametrize("scope", [KEY, Scope(PERSON.user_id, "acme")], ids=["a key", "a bound token"])
async def test_what_is_narrower_than_its_user_is_no_person(scope: Scope) -> None:
    with pytest.raises(Forbidden):
        await _person(caller(scope=scope))


@pytest.mark.parametrize("missing", KEY_SCOPES)
def test_a_key_may_what_its_scopes_say_and_no_more(missing: Any) -> None:
    narrow = caller(scope=Scope(KEY.user_id, KEY.brand_id, KEY.key_id, frozenset(KEY_SCOPES) - {missing}))
    for scope in set(KEY_SCOPES) - {missing}:
        narrow.must_be_allowed(scope)
    with pytest.raises(Forbidden):
        narrow.must_be_allowed(missing)
