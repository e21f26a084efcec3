"""Authenticates a request by a bearer token (ours, an outside issuer's, an API key) or a page's session cookie.

Browsers also send the cookie with requests of other sites. A request that changes state with a cookie must therefore
prove that our own page sent it: by the session's CSRF token, and by `Origin` or `Sec-Fetch-Site`.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastapi import Request

from onbrand.brand import Scope
from onbrand.config import Settings
from onbrand.errors import CrossSiteRefused, Unauthenticated
from onbrand.services import identity, keys, sessions

if TYPE_CHECKING:
    from onbrand.api.authorization import AppState

CSRF_HEADER = "X-CSRF-Token"
_CHANGES_NOTHING = frozenset({"GET", "HEAD", "OPTIONS"})


async def scope_of(request: Request, state: AppState) -> Scope:
    """The caller's scope. An Authorization header, valid or not, takes precedence over the cookie.

    Raises Unauthenticated, CrossSiteRefused.
    """
    if "authorization" in request.headers:
        return await _of_token(request, bearer_of(request), state)
    cookie = cookie_of(request, state.settings)
    if cookie is None:
        raise _nothing_sent()
    if request.method not in _CHANGES_NOTHING:
        _must_be_our_page(request, state.settings)
        _must_have_csrf_token(request, cookie)
    async with state.db.user_session(None) as session:
        return await sessions.scope_of(session, cookie)


def bearer_of(request: Request) -> str:
    """The token of an `Authorization: Bearer` header. Raises Unauthenticated."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _nothing_sent()
    return token.strip()


def cookie_name(settings: Settings) -> str:
    """The session cookie's name; with https a `__Host-` name, which other hosts and plain http cannot set."""
    return "__Host-onbrand_session" if is_https(settings) else "onbrand_session"


def cookie_of(request: Request, settings: Settings) -> str | None:
    """The value of the session's cookie, or None."""
    return request.cookies.get(cookie_name(settings)) or None


def is_https(settings: Settings) -> bool:
    """Whether users reach the platform by https."""
    return urlsplit(settings.url).scheme == "https"


def must_not_be_another_site(request: Request, settings: Settings) -> None:
    """Raise CrossSiteRefused if a browser's headers show that another site sent this; programs send none of them."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site not in (None, "same-origin") or (origin is not None and origin not in _own_origins(request, settings)):
        raise CrossSiteRefused("this request comes from another site; ask from our own page")


async def _of_token(request: Request, token: str, state: AppState) -> Scope:
    if token.startswith(keys.PREFIX):
        return await state.known_keys.scope_of(token, in_brand="brand_id" in request.path_params)
    if state.oidc is not None and state.oidc.claims_to_be_from(token):
        who = await state.oidc.verify(token)
        async with state.db.user_session(None) as session:
            return Scope(await identity.external_user(session, who))
    return state.issuer.verify(token)


def _nothing_sent() -> Unauthenticated:
    return Unauthenticated("send a token: Authorization: Bearer ...; POST /v1/tokens gives one")


def _must_be_our_page(request: Request, settings: Settings) -> None:
    must_not_be_another_site(request, settings)
    if "sec-fetch-site" not in request.headers and "origin" not in request.headers:
        raise CrossSiteRefused("a request with a cookie needs Origin or Sec-Fetch-Site; without a page, send a token")


def _must_have_csrf_token(request: Request, cookie: str) -> None:
    sent = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), sessions.csrf_token_of(cookie).encode()):
        raise CrossSiteRefused(f"send the session's {CSRF_HEADER}; GET /v1/session says it", param=CSRF_HEADER)


def _own_origins(request: Request, settings: Settings) -> set[str]:
    """The accepted origins of our pages: that of the configured address, and that of this request."""
    configured = urlsplit(settings.url)
    return {
        f"{configured.scheme}://{configured.netloc}",
        f"{request.scope['scheme']}://{request.headers.get('host', '')}",
    }
