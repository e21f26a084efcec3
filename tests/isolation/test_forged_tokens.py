"""A user's token is refused if it is forged, expired, incomplete, or issued for another purpose."""

from __future__ import annotations

import time
import uuid
from typing import Any

import jwt
import pytest

from onbrand.errors import Unauthenticated
from onbrand.services.identity import TokenIssuer

SECRET = "s" * 32
WHO = str(uuid.uuid4())


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    good = {"iss": "onbrand", "aud": "onbrand-api", "sub": WHO, "iat": now, "exp": now + 600}
    return {name: value for name, value in (good | changed).items() if value is not None}


def signed(said: dict[str, Any], secret: str | None = SECRET, algorithm: str | None = "HS256") -> str:
    return jwt.encode(said, secret, algorithm=algorithm)


def test_a_good_token_says_who_it_is() -> None:
    assert TokenIssuer(SECRET).verify(signed(claims())).user_id == WHO


BAD = {
    "signed by somebody else": lambda: signed(claims(), "x" * 32),
    "not signed": lambda: signed(claims(), None, None),
    "of another algorithm": lambda: signed(claims(), SECRET * 2, "HS512"),
    "expired": lambda: signed(claims(iat=int(time.time()) - 700, exp=int(time.time()) - 100)),
    "without an end": lambda: signed(claims(exp=None)),
    "of another issuer": lambda: signed(claims(iss="onbrand-tickets")),
    "for another service": lambda: signed(claims(aud="another")),
    "for none": lambda: signed(claims(aud=None)),
    "nobody's": lambda: signed(claims(sub=None)),
    "of no account": lambda: signed(claims(sub="admin")),
    "bound to what is no brand": lambda: signed(claims(brand_id="../globex")),
}


@pytest.mark.parametrize("token", BAD.values(), ids=list(BAD))
def test_a_bad_token_is_refused(token: Any) -> None:
    with pytest.raises(Unauthenticated):
        TokenIssuer(SECRET).verify(token())
