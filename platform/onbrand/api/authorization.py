"""Dependencies that authorize a route's caller: a route's signature names the role and the API key scope it needs.

    no login     nothing
    a user       AnyUser; AnyReader (a key needs `read`); Person (no key, no token that is bound to a brand)
    a member     ReadCaller (`read`), UploadCaller (`upload`), TrainCaller (`train`), GenerateCaller (`generate`),
                 ManageCaller (`manage`)
    an admin     Admin (`manage`); AdminUserOnly (no key)

A `...Caller` (`BrandCaller`) holds the request's one transaction, which is committed before the response is sent. The
transaction's claims also name the needed scope: the database shows no rows to a key without it.

A `...Access` (`BrandAccess`: ReadAccess, UploadAccess, TrainAccess, GenerateAccess) is for calls that outlive a
transaction (waiting, streaming). It opens short transactions; each checks membership and credential again, so that a
removed member or a revoked key loses access at once. A route that finds the brand in its body (`openai`) makes a
`BrandAccess` itself from a `TokenHolder`, a credential that is valid.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

from onbrand.api.http.early_authentication import authenticated
from onbrand.api.known_keys import KnownKeys
from onbrand.api.route import Route
from onbrand.brand import KeyScope, Scope, must_be_brand_id
from onbrand.config import FamilyName, Settings
from onbrand.db.session import Database, Session
from onbrand.errors import Forbidden, InvalidInput, NotFound
from onbrand.families.spec import Recommended
from onbrand.secrets_file import Secrets
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
    from onbrand.background.generations import GenerationTasks


@dataclass(frozen=True, slots=True)
class AppState:
    """The app's components, for its routes."""

    settings: Settings
    secrets: Secrets
    db: Database
    store: ObjectStore
    issuer: TokenIssuer
    recommended: Mapping[FamilyName, Recommended]
    generation_tasks: GenerationTasks
    passwords: Passwords
    streams: OpenStreams
    refusals: Refusals
    known_keys: KnownKeys
    oidc: OidcIssuer | None = None

    def __repr__(self) -> str:
        return "AppState(...)"

    @property
    def terms(self) -> Terms:
        """The configurations and limits for training jobs."""
        return Terms(self.recommended, self.settings.limits, self.settings.train_workers)


async def _state(request: Request) -> AppState:
    state: AppState = request.app.state.onbrand
    return state


AppStateDep = Annotated[AppState, Depends(_state)]


async def _token(request: Request, state: AppStateDep) -> Scope:
    return await authenticated(request, state)


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
    state: AppState

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
    account_id: str
    """The account that created the brand."""

    @property
    def store(self) -> BrandStore:
        """The object store, restricted to this brand."""
        return self.state.store.brand(self.brand_id)


async def _any_user(scope: TokenHolder, state: AppStateDep) -> AsyncIterator[Caller]:
    """A transaction that names any one scope of a key, because a key's transaction must name one."""
    async with _opened(scope, min(scope.scopes or ("read",)), state) as caller:
        yield caller


@asynccontextmanager
async def _opened(scope: Scope, purpose: KeyScope, state: AppState) -> AsyncIterator[Caller]:
    used = scope.used_to(purpose)
    async with state.db.user_session(used) as session:
        yield Caller(used, session, state)


def _user_with(what: KeyScope) -> Any:
    async def user(scope: TokenHolder, state: AppStateDep) -> AsyncIterator[Caller]:
        async with _opened(scope, what, state) as caller:
            yield caller

    return Depends(user, scope="function")


AnyUser = Annotated[Caller, Depends(_any_user, scope="function")]


async def _any_reader(caller: Annotated[Caller, _user_with("read")]) -> Caller:
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
    if caller.scope.brand_id in (None, brand_id):  # 403 in the own brand; another brand is 404 below
        caller.must_be_allowed(need)
    member = await brands.membership_of(caller.session, brand_id)
    return BrandCaller(caller.scope, caller.session, caller.state, member.brand_id, member.role, member.account_id)


@dataclass(frozen=True, slots=True)
class BrandAccess:
    """Opens short transactions in one brand for a member; fails once the membership or the key has ended.

    Args:
        need: the scope that an API key must have.
    """

    scope: Scope
    brand_id: str
    state: AppState
    need: KeyScope

    @asynccontextmanager
    async def open(self) -> AsyncIterator[BrandCaller]:
        """Open one transaction about this brand. Raises NotFound once the membership has ended."""
        try:
            scope = self.scope.in_brand(must_be_brand_id(self.brand_id))
        except InvalidInput:
            raise NotFound("there is no such brand") from None
        async with _opened(scope, self.need, self.state) as caller:
            try:
                member = await in_brand(caller, self.brand_id, self.need)
            except NotFound:
                member = None
            if member is not None:
                yield member
        if member is None:
            if scope.key_id is not None:
                await self.state.known_keys.must_be_valid(scope.key_id)
            raise NotFound("there is no such brand")


def _member_who_may(need: KeyScope) -> Any:
    async def member(brand_id: str, scope: TokenHolder, state: AppStateDep) -> AsyncIterator[BrandCaller]:
        async with BrandAccess(scope, brand_id, state, need).open() as caller:
            yield caller

    return Depends(member, scope="function")


ReadCaller = Annotated[BrandCaller, _member_who_may("read")]
UploadCaller = Annotated[BrandCaller, _member_who_may("upload")]
TrainCaller = Annotated[BrandCaller, _member_who_may("train")]
GenerateCaller = Annotated[BrandCaller, _member_who_may("generate")]
ManageCaller = Annotated[BrandCaller, _member_who_may("manage")]


async def _admin(member: ManageCaller) -> BrandCaller:
    if member.role != "admin":
        raise Forbidden("only an admin of the brand may do this; ask one of them")
    return member


Admin = Annotated[BrandCaller, Depends(_admin)]


async def _admin_in_person(admin: Admin) -> BrandCaller:
    must_be_in_person(admin.scope, "make or revoke keys")
    return admin


AdminUserOnly = Annotated[BrandCaller, Depends(_admin_in_person)]


def _access_to(need: KeyScope) -> Callable[[str, Scope, AppState], Awaitable[BrandAccess]]:
    async def access(brand_id: str, scope: TokenHolder, state: AppStateDep) -> BrandAccess:
        return BrandAccess(scope, brand_id, state, need)

    return access


ReadAccess = Annotated[BrandAccess, Depends(_access_to("read"))]
UploadAccess = Annotated[BrandAccess, Depends(_access_to("upload"))]
TrainAccess = Annotated[BrandAccess, Depends(_access_to("train"))]
GenerateAccess = Annotated[BrandAccess, Depends(_access_to("generate"))]
