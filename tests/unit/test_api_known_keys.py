"""A valid key is remembered for some seconds; a wrong secret, another route and a doubt ask the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from onbrand.api import known_keys
from onbrand.api.known_keys import KnownKeys
from onbrand.brand import Scope
from onbrand.errors import Unauthenticated
from onbrand.services import keys
from onbrand.services.keys import KeyCredential

ID = "0f1e2d3c000040008000000000000001"
GOOD, WRONG = (f"ob_{ID}_{digit * 64}" for digit in "ab")


class Keys:
    """The database's answers."""

    def __init__(self) -> None:
        self.valid, self.num_asked = {keys.credential_of(GOOD)}, 0

    @asynccontextmanager
    async def user_session(self, scope: Scope | None) -> AsyncIterator[Any]:
        assert scope is None
        yield self

    async def scope_of(self, session: Any, credential: KeyCredential) -> Scope:
        self.num_asked += 1
        if credential not in self.valid:
            raise Unauthenticated("no")
        return Scope("ada", "acme", credential.key_id, frozenset({"read"}))


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Keys:
    made = Keys()
    monkeypatch.setattr(keys, "scope_of", made.scope_of)
    return made


async def test_a_key_is_asked_about_once_in_a_while(database: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownKeys(database)  # type: ignore[arg-type]
    scopes = {await known.scope_of(GOOD, in_brand=True) for _ in range(3)}
    assert ({scope.user_id for scope in scopes}, database.num_asked) == ({"ada"}, 1)
    await known.scope_of(GOOD, in_brand=False)
    assert database.num_asked == 2, "a route outside of a brand is not checked by a transaction in one"
    monkeypatch.setattr(known_keys, "SECONDS", 0.0)
    await KnownKeys(database).scope_of(GOOD, in_brand=True)  # type: ignore[arg-type]
    await known.scope_of(GOOD, in_brand=False)
    await known.scope_of(GOOD, in_brand=True)
    assert database.num_asked == 5


async def test_another_secret_of_a_known_key_opens_nothing(database: Keys) -> None:
    known = KnownKeys(database)  # type: ignore[arg-type]
    await known.scope_of(GOOD, in_brand=True)
    with pytest.raises(Unauthenticated):
        await known.scope_of(WRONG, in_brand=True)
    assert (await known.scope_of(GOOD, in_brand=True)).user_id == "ada"


async def test_a_doubted_key_is_asked_about_again_and_forgotten(database: Keys) -> None:
    known = KnownKeys(database)  # type: ignore[arg-type]
    scope = await known.scope_of(GOOD, in_brand=True)
    await known.must_be_valid(str(scope.key_id))
    await known.scope_of(GOOD, in_brand=True)
    database.valid.clear()
    with pytest.raises(Unauthenticated):
        await known.must_be_valid(str(scope.key_id))
    with pytest.raises(Unauthenticated):
        await known.scope_of(GOOD, in_brand=True)


async def test_it_keeps_so_many(database: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_keys, "_KEYS_MAX", 2)
    known = KnownKeys(database)  # type: ignore[arg-type]
    tokens = [f"ob_{n:032x}_{'a' * 64}" for n in range(3)]
    database.valid |= {keys.credential_of(token) for token in tokens}
    for token in tokens:
        await known.scope_of(token, in_brand=True)
    await known.scope_of(tokens[0], in_brand=True)
    assert database.num_asked == 4
