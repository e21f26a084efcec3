"""Who may call stands in a route's signature: `AnyUser`, `Member`, `Admin`, or nothing for everyone.

`AnyUser`, `Member` and `Admin` hold the request's one transaction, committed before the answer leaves.
`MemberAccess` is for calls that outlive a transaction (waiting, streaming): it opens short ones, and each looks the
membership up again, so that a removed member is out at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from onbrand.brand import Scope, must_be_brand_id
from onbrand.config import FamilyName, Secrets, Settings
from onbrand.db.session import Doors, Session
from onbrand.errors import Forbidden, InvalidInput, NotFound, Unauthenticated
from onbrand.families.spec import Recommended
from onbrand.services import brands
from onbrand.services.identity import TokenIssuer
from onbrand.storage.store import BrandStore, ObjectStore

if TYPE_CHECKING:
    from onbrand.api.rendering import Renderings


@dataclass(frozen=True, slots=True)
class Parts:
    """What the app was made of, for routes."""

    settings: Settings
    secrets: Secrets
    doors: Doors
    store: ObjectStore
    issuer: TokenIssuer
    recommended: Mapping[FamilyName, Recommended]
    renderings: Renderings

    def __repr__(self) -> str:
        return "Parts(...)"


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


AppParts = Annotated[Parts, Depends(_parts)]


def bearer_of(request: Request) -> str:
    """The token of an `Authorization: Bearer` header. Raises Unauthenticated."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("send a token: Authorization: Bearer ...; POST /v1/tokens gives one")
    return token.strip()


def _token(request: Request, parts: AppParts) -> Scope:
    return parts.issuer.verify(bearer_of(request))


TokenHolder = Annotated[Scope, Depends(_token)]
"""Someone with a good token; no row has been asked for yet."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A user, inside this request's transaction."""

    scope: Scope
    session: Session
    parts: Parts

    @property
    def user_id(self) -> str:
        return self.scope.user_id


@dataclass(frozen=True, slots=True)
class BrandCaller(Caller):
    """A user inside one brand of theirs."""

    brand_id: str
    role: str

    @property
    def store(self) -> BrandStore:
        """The brand's own objects."""
        return self.parts.store.brand(self.brand_id)


async def _anonymous(parts: AppParts) -> AsyncIterator[Session]:
    async with parts.doors.user_session(None) as session:
        yield session


async def _any_user(scope: TokenHolder, parts: AppParts) -> AsyncIterator[Caller]:
    async with parts.doors.user_session(scope) as session:
        yield Caller(scope, session, parts)


Anonymous = Annotated[Session, Depends(_anonymous, scope="function")]
AnyUser = Annotated[Caller, Depends(_any_user, scope="function")]


async def in_brand(caller: Caller, brand_id: str) -> BrandCaller:
    """The caller as a member of the brand. Raises NotFound for a brand that is not there or not theirs."""
    try:
        must_be_brand_id(brand_id)
    except InvalidInput:
        raise NotFound("there is no such brand") from None
    brand = await brands.get_brand(caller.session, brand_id)
    return BrandCaller(caller.scope, caller.session, caller.parts, brand.id, brand.role)


async def _member(brand_id: str, caller: AnyUser) -> BrandCaller:
    return await in_brand(caller, brand_id)


Member = Annotated[BrandCaller, Depends(_member)]


async def _admin(member: Member) -> BrandCaller:
    if member.role != "admin":
        raise Forbidden("only an admin of the brand may do this; ask one of them")
    return member


Admin = Annotated[BrandCaller, Depends(_admin)]


@dataclass(frozen=True, slots=True)
class Access:
    """A member's right to open short transactions in one brand, for as long as they are a member."""

    scope: Scope
    brand_id: str
    parts: Parts

    @asynccontextmanager
    async def open(self) -> AsyncIterator[BrandCaller]:
        """One transaction. Raises NotFound once the membership has ended."""
        async with self.parts.doors.user_session(self.scope) as session:
            yield await in_brand(Caller(self.scope, session, self.parts), self.brand_id)


def _member_access(brand_id: str, scope: TokenHolder, parts: AppParts) -> Access:
    return Access(scope, brand_id, parts)


MemberAccess = Annotated[Access, Depends(_member_access)]
