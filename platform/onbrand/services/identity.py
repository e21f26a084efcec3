"""Authentication: accounts with a password, and tokens of the embedded issuer. Tokens hold no roles."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import jwt
from pydantic import Field

from onbrand.brand import Scope, must_be_brand_id
from onbrand.db.session import Session
from onbrand.errors import Conflict, InvalidInput, NotFound, Unauthenticated
from onbrand.services.oidc import UNREADABLE, Subject, bad_token
from onbrand.services.pagination import Row, known_id
from onbrand.visible import hidden_in, must_be_visible

_ISSUER, _AUDIENCE = "onbrand", "onbrand-api"
_EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_BECOMES_ASCII = re.compile("[\u0130\u212a]")
"""Capitals with an ASCII lower case (dotted I, Kelvin): the lower-case address would be another account's."""


class User(Row):
    """An account; one of an outside issuer may have no address.

    `email_verified`: an outside issuer has verified the address. Sign-up does not verify it.
    """

    id: str
    email: str | None
    email_verified: bool = False
    created_at: datetime


class Token(Row):
    """A bearer token."""

    access_token: str = Field(repr=False)
    token_type: Literal["bearer"] = "bearer"
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """The embedded issuer: signs and reads JWTs with one secret.

    Args:
        minutes: lifetime of a token.
    """

    secret: str
    minutes: int = 60

    def __repr__(self) -> str:
        return f"TokenIssuer(minutes={self.minutes})"

    def issue(self, user_id: str, brand_id: str | None = None) -> tuple[str, datetime]:
        """A token and its expiry; with `brand_id` it reaches that brand only."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": _ISSUER,
            "aud": _AUDIENCE,
            "sub": user_id,
            "iat": now,
            "exp": now + 60 * self.minutes,
        }
        if brand_id is not None:
            claims["brand_id"] = brand_id
        return jwt.encode(claims, self.secret, algorithm="HS256"), datetime.fromtimestamp(claims["exp"], UTC)

    def verify(self, token: str) -> Scope:
        """The token's scope. Raises Unauthenticated if it is forged, expired, or not for this API."""
        try:
            claims = jwt.decode(
                token,
                self.secret,
                algorithms=["HS256"],
                issuer=_ISSUER,
                audience=_AUDIENCE,
                options={"require": ["exp", "iss", "sub", "aud"]},
            )
            return Scope(known_id(claims["sub"], "user"), _brand_claim(claims.get("brand_id")))
        except (NotFound, InvalidInput, *UNREADABLE):
            raise bad_token() from None


def _brand_claim(brand_id: object) -> str | None:
    return None if brand_id is None else must_be_brand_id(str(brand_id))


async def sign_up(session: Session, email: str, hashed: str) -> User:
    """Make an account; `session` is anonymous (`anon`).

    Args:
        hashed: the hash of its password (`services.passwords`), made before the transaction began.

    Raises:
        InvalidInput: the address is invalid.
        Conflict: the address has an account.
    """
    email = must_be_email(email)
    try:
        async with session.asking("sign_up", email):
            row = await session.one("select id, created_at from private.sign_up(%s, %s)", [email, hashed])
    except Conflict:
        raise Conflict(
            "this address has an account already; log in, or ask the operator for the address if that account is not "
            "yours",
            param="email",
        ) from None
    return User(id=row["id"], email=email, created_at=row["created_at"])


def token_of(issuer: TokenIssuer, user_id: str, brand_id: str | None = None) -> Token:
    """A token of this user. `brand_id` restricts it to one brand and grants nothing."""
    token, expires_at = issuer.issue(user_id, brand_id)
    return Token(access_token=token, expires_at=expires_at)


@dataclass(frozen=True, slots=True)
class Login:
    """The account of an address; empty if there is none. An outside issuer's account may have no password."""

    user_id: str | None = None
    hashed: str | None = field(default=None, repr=False)


async def find_login(session: Session, email: str) -> Login:
    """The address's account and password hash, to compare after the transaction; `session` is anonymous."""
    row = None
    if _EMAIL.fullmatch(email):
        async with session.asking("find_login", email.lower()):  # the database shows the hash of this address only
            row = await session.maybe("select id, password_hash from private.find_login(%s)", [email])
    return Login(row["id"], row["password_hash"]) if row else Login()


async def external_user(session: Session, who: Subject) -> str:
    """The id of the account of an outside issuer's subject, created on first use; `session` is anonymous.

    Raises Conflict if the subject is new and its address has an account already: only `link` joins them.
    """
    try:
        said = (who.issuer, who.subject, _address(who.email))
        async with session.asking("external_user", *said):
            row = await session.one("select private.external_user(%s, %s, %s) as user_id", said)
    except Conflict:
        raise Conflict(
            "the address of this token has an account here already; log in to that one and link them with "
            "POST /v1/me/identities; if that account is not yours, ask the operator for the address",
            param="email",
        ) from None
    return str(row["user_id"])


async def link(session: Session, who: Subject) -> None:
    """Link an outside issuer's subject to the session's user. Raises Conflict if it has an account already.

    The account's own address becomes verified if the issuer has verified the same one.
    """
    try:
        said = (who.issuer, who.subject, _address(who.email))
        async with session.asking("link_subject", *said):
            await session.run("select private.link_subject(%s, %s, %s)", said)
    except Conflict:
        raise Conflict("this identity has an account already", param="token") from None


async def get_user(session: Session) -> User:
    """The account of the session's user. Raises Unauthenticated if it was deleted."""
    row = await session.maybe("select id, email, email_verified, created_at from private.me()")
    if row is None:
        raise Unauthenticated("this account is gone")
    return User.of(row)


def _address(text: str | None) -> str | None:
    """An issuer's address in lower case, or None if it is not a valid one."""
    return text.lower() if text is not None and _is_address(text) else None


def _is_address(text: str) -> bool:
    is_one = len(text) <= 254 and _EMAIL.fullmatch(text) is not None
    return is_one and hidden_in(text) is None and _BECOMES_ASCII.search(text) is None


def must_be_email(text: str) -> str:
    """`text` as an address in lower case. Raises InvalidInput."""
    must_be_visible(text, "email", "email")
    if not _is_address(text):
        raise InvalidInput("email must be an address like name@example.com", param="email")
    return text.lower()
