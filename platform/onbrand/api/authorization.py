"""Dependencies that authorize a route's caller: a route's signature names the role and the API key scope it needs.

    no login     Anonymous, or nothing
    a user       AnyUser; AnyReader (a key needs `read`); Person (no key, no token that is bound to a brand)
    a member     Member (`read`), Uploader (`upload`), Trainer (`train`), Artist (`generate`), Manager (`manage`)
    an admin     Admin (`manage`); AdminInPerson (no key)

They hold the request's one transaction, which is committed before the response is sent. The transaction's claims also
name the needed scope: the database shows no rows to a key without it.

`MemberAccess` (`read`), `UploaderAccess` (`upload`), `TrainerAccess` (`train`) and `ArtistAccess` (`generate`) are for
calls that outlive a transaction (waiting, streaming). They open short transactions; each checks membership and
credential again, so that a removed member or a revoked key loses access at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

from onbrand.api.http.early_authentication import authenticated
from onbrand.api.route import Route
from onbrand.brand import KEY_SCOPES, KeyScope, Scope, must_be_brand_id
from onbrand.config import FamilyName, Secrets, Settings
from onbrand.db.session import Doors, Session
from onbrand.errors import Forbidden, InvalidInput, NotFound
from onbrand.families.spec import Recommended
from onbrand.services import brands
from onbrand.services.identity import TokenIssuer
from onbrand.services.job_validation import Terms
from onbrand.services.keys import must_be_in_person
from onbrand.services.oidc import OidcIssuer
from onbrand.services.passwords import Passwords
from onbrand.storage.store import BrandStore, ObjectStore

if TYPE_CHECKING:
    from onbrand.api.http.refusal_cache import Refusals
    from onbrand.api.http.stream_limits import OpenStreams
    from onbrand.background.generations import Renderings


@dataclass(frozen=True, slots=True)
class Parts:
    """The app's components, for its routes."""

    settings: Settings
    secrets: Secrets
    doors: Doors
    store: ObjectStore
    issuer: TokenIssuer
    recommended: Mapping[FamilyName, Recommended]
    renderings: Renderings
    passwords: Passwords
    streams: OpenStreams
    refusals: Refusals
    oidc: OidcIssuer | None = None

    def __repr__(self) -> str:
        return "Parts(...)"

    @property
    def terms(self) -> Terms:
        """The configurations and limits for training jobs."""
        return Terms(self.recommended, self.settings.limits, self.settings.train_workers)


async def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


AppParts = Annotated[Parts, Depends(_parts)]


async def _token(request: Request, parts: AppParts) -> Scope:
    return await authenticated(request, parts)


TokenHolder = Annotated[Scope, Depends(_token)]
"""A caller with a valid credential, before any brand is looked up."""


class UserRoute(Route):
    """A route of the API for users. Checks the token, key or cookie before it reads the body."""

    credentials = (_token,)


@dataclass(frozen=True, slots=True)
class Caller:
    """A user, inside this request's transaction."""

    scope: Scope
    session: Session
    parts: Parts

    @property
    def user_id(self) -> str:
        return self.scope.user_id

    def must_be_allowed(self, what: KeyScope) -> None:
        """Raise Forbidden for a key without this scope."""
        if not self.scope.allows(what):
            raise Forbidden(f"this key lacks the scope '{what}'; an admin of the brand can make one that has it")


@dataclass(frozen=True, slots=True)
class BrandCaller(Caller):
    """A member of a brand, inside a transaction about that brand."""

    brand_id: str
    role: str

    @property
    def store(self) -> BrandStore:
        """The object store, restricted to this brand."""
        return self.parts.store.brand(self.brand_id)


async def _anonymous(parts: AppParts) -> AsyncIterator[Session]:
    async with parts.doors.user_session(None) as session:
        yield session


async def _any_user(scope: TokenHolder, parts: AppParts) -> AsyncIterator[Caller]:
    async with _opened(scope, min(scope.scopes or ("read",)), parts) as caller:
        yield caller


@asynccontextmanager
async def _opened(scope: Scope, purpose: KeyScope, parts: Parts) -> AsyncIterator[Caller]:
    used = scope.used_to(purpose)
    async with parts.doors.user_session(used) as session:
        yield Caller(used, session, parts)


def _user_who_comes_to(what: KeyScope) -> Any:
    async def user(scope: TokenHolder, parts: AppParts) -> AsyncIterator[Caller]:
        async with _opened(scope, what, parts) as caller:
            yield caller

    return Depends(user, scope="function")


Anonymous = Annotated[Session, Depends(_anonymous, scope="function")]
AnyUser = Annotated[Caller, Depends(_any_user, scope="function")]
_COMES_TO: dict[KeyScope, Any] = {what: _user_who_comes_to(what) for what in KEY_SCOPES}


async def _any_reader(caller: Annotated[Caller, _COMES_TO["read"]]) -> Caller:
    caller.must_be_allowed("read")
    return caller


async def _person(caller: AnyUser) -> Caller:
    must_be_in_person(caller.scope, "do this")
    if caller.scope.brand_id is not None:
        raise Forbidden("this token is bound to one brand; log in without brand_id")
    return caller


AnyReader = Annotated[Caller, Depends(_any_reader)]
Person = Annotated[Caller, Depends(_person)]


async def in_brand(caller: Caller, brand_id: str, need: KeyScope) -> BrandCaller:
    """The caller as a member of the transaction's brand, with a credential that has the scope `need`.

    Raises NotFound if there is no such brand or the caller is no member, Forbidden for a key without that scope.
    """
    if caller.scope.brand_id in (None, brand_id):  # the database shows no brand to a key without the scope
        caller.must_be_allowed(need)
    brand = await brands.get_brand(caller.session, brand_id)
    return BrandCaller(caller.scope, caller.session, caller.parts, brand.id, brand.role)


@dataclass(frozen=True, slots=True)
class Access:
    """Opens short transactions in one brand for a member; fails once the membership or the key has ended.

    Args:
        need: the scope that an API key must have.
    """

    scope: Scope
    brand_id: str
    parts: Parts
    need: KeyScope

    @asynccontextmanager
    async def open(self) -> AsyncIterator[BrandCaller]:
        """Open one transaction about this brand. Raises NotFound once the membership has ended."""
        try:
            scope = self.scope.in_brand(must_be_brand_id(self.brand_id))
        except InvalidInput:
            raise NotFound("there is no such brand") from None
        async with _opened(scope, self.need, self.parts) as caller:
            yield await in_brand(caller, self.brand_id, self.need)


def _member_who_may(need: KeyScope) -> Any:
    async def member(brand_id: str, scope: TokenHolder, parts: AppParts) -> AsyncIterator[BrandCaller]:
        async with Access(scope, brand_id, parts, need).open() as caller:
            yield caller

    return Depends(member, scope="function")


Member = Annotated[BrandCaller, _member_who_may("read")]
Uploader = Annotated[BrandCaller, _member_who_may("upload")]
Trainer = Annotated[BrandCaller, _member_who_may("train")]
Artist = Annotated[BrandCaller, _member_who_may("generate")]
Manager = Annotated[BrandCaller, _member_who_may("manage")]


async def _admin(member: Manager) -> BrandCaller:
    if member.role != "admin":
        raise Forbidden("only an admin of the brand may do this; ask one of them")
    return member


Admin = Annotated[BrandCaller, Depends(_admin)]


async def _admin_in_person(admin: Admin) -> BrandCaller:
    must_be_in_person(admin.scope, "make or revoke keys")
    return admin


AdminInPerson = Annotated[BrandCaller, Depends(_admin_in_person)]


def _access_to(need: KeyScope) -> Callable[[str, Scope, Parts], Awaitable[Access]]:
    async def access(brand_id: str, scope: TokenHolder, parts: AppParts) -> Access:
        return Access(scope, brand_id, parts, need)

    return access


MemberAccess = Annotated[Access, Depends(_access_to("read"))]
UploaderAccess = Annotated[Access, Depends(_access_to("upload"))]
TrainerAccess = Annotated[Access, Depends(_access_to("train"))]
ArtistAccess = Annotated[Access, Depends(_access_to("generate"))]
