"""Tokens of an outside OpenID Connect issuer, verified with its published keys (JWKS). `identity` finds the account.

Key locations in a token (`jku`, `x5u`, `jwk`) are ignored: keys come from the configured address only. OpenID Connect
Core 1.0, RFC 7517, RFC 8725.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from onbrand.config import Settings
from onbrand.errors import ConfigurationError, Unauthenticated, Unavailable

log = logging.getLogger(__name__)

_FRESH_SECONDS = 600.0
_KEPT_SECONDS = 3600.0
_FETCH_SECONDS = 10.0
_DOCUMENT_BYTES_MAX = 2**19
_TOKEN_CHARS_MAX = 16_384
_SUBJECT_CHARS_MAX = 255
_RSA_BITS_MIN = 2048
UNREADABLE = (jwt.PyJWTError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError)
"""Exceptions from reading a malicious token: odd numbers, deep nesting, fields of other types."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A person as identified by an issuer.

    Args:
        email: only an address that the issuer has verified.
    """

    issuer: str
    subject: str
    email: str | None = None


class OidcIssuer:
    """Verifies the tokens of one issuer.

    Args:
        jwks_url: address of its keys; None: from its discovery document.
        algorithms: the accepted signature algorithms; asymmetric ones.
        leeway: accepted clock difference in seconds.
        trusts_email: treat every address as verified.
        refetch_after: minimum seconds between two fetches of the keys, even for unknown keys.
    """

    def __init__(
        self,
        issuer: str,
        audience: str,
        jwks_url: str | None = None,
        algorithms: tuple[str, ...] = ("RS256", "ES256"),
        *,
        leeway: int = 30,
        trusts_email: bool = False,
        refetch_after: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.issuer = issuer
        self._audience = audience
        self._jwks_url = jwks_url
        self._algorithms = algorithms
        self._leeway = leeway
        self._trusts_email = trusts_email
        self._refetch_after = refetch_after
        self._clock = clock
        self._keys: dict[str, Mapping[str, Any]] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    @classmethod
    def from_settings(cls, settings: Settings) -> OidcIssuer | None:
        """The configured issuer, or None. Raises ConfigurationError."""
        if settings.oidc_issuer is None:
            return None
        if not settings.oidc_audience:
            raise ConfigurationError(
                "ONBRAND_OIDC_ISSUER needs ONBRAND_OIDC_AUDIENCE: tokens of that issuer for other services are not "
                "for this one",
                param="oidc_audience",
            )
        for url in filter(None, (settings.oidc_issuer, settings.oidc_jwks_url)):
            _must_be_safe(url)
        return cls(
            settings.oidc_issuer,
            settings.oidc_audience,
            settings.oidc_jwks_url,
            settings.oidc_algorithms,
            leeway=settings.oidc_leeway_seconds,
            trusts_email=settings.oidc_trusts_email,
        )

    def claims_to_be_from(self, token: str) -> bool:
        """Whether the token names this issuer. It proves nothing and only selects the verifier."""
        try:
            unproved = jwt.decode(token[:_TOKEN_CHARS_MAX], options={"verify_signature": False})
        except UNREADABLE:
            return False
        return bool(unproved.get("iss") == self.issuer)

    async def verify(self, token: str) -> Subject:
        """The token's subject. Raises Unauthenticated, or Unavailable while no keys can be fetched."""
        try:
            if len(token) > _TOKEN_CHARS_MAX:
                raise ValueError
            header = jwt.get_unverified_header(token)
            algorithm, kid = header["alg"], header["kid"]
            if algorithm not in self._algorithms or not isinstance(kid, str) or "crit" in header:
                raise ValueError
            key = _usable(await self._key(kid), algorithm)
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                issuer=self.issuer,
                audience=self._audience,
                leeway=self._leeway,
                options={"require": ["exp", "aud", "iss", "sub"]},
            )
            return self._subject_of(claims)
        except UNREADABLE:
            raise bad_token() from None

    def _subject_of(self, claims: Mapping[str, Any]) -> Subject:
        subject, email = claims["sub"], claims.get("email")
        if not subject or len(subject) > _SUBJECT_CHARS_MAX or not subject.isprintable():
            raise ValueError
        is_verified = self._trusts_email or claims.get("email_verified") is True
        return Subject(self.issuer, subject, email if is_verified and isinstance(email, str) else None)

    async def _key(self, kid: str) -> Mapping[str, Any]:
        """The published key with this id. An unknown id fetches the keys again, at most once per `refetch_after`."""
        if kid not in self._keys or self._clock() - self._fetched_at > _FRESH_SECONDS:
            async with self._lock:
                await self._refresh(kid)
        if self._clock() - self._fetched_at > _KEPT_SECONDS:
            raise Unavailable("the keys of the token's issuer cannot be fetched; try again", retry_after=10)
        return self._keys[kid]

    async def _refresh(self, kid: str) -> None:
        now = self._clock()
        has_it = kid in self._keys and now - self._fetched_at <= _FRESH_SECONDS  # refreshed for another token
        if has_it or now - self._tried_at < self._refetch_after:
            return
        self._tried_at = now
        try:
            async with asyncio.timeout(_FETCH_SECONDS):
                self._keys = _by_id(await self._fetch_keys())
            self._fetched_at = now
        except (
            TimeoutError,
            ConfigurationError,
            httpx.HTTPError,
            httpx.InvalidURL,
            ImportError,
            *UNREADABLE,
        ) as problem:
            log.warning("the keys of %s could not be fetched: %s", self.issuer, type(problem).__name__)

    async def _fetch_keys(self) -> Mapping[str, Any]:
        async with httpx.AsyncClient(timeout=5.0, follow_redirects=False) as http:
            url = self._jwks_url
            if url is None:
                told = await _document(http, f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
                if told["issuer"] != self.issuer:
                    raise ValueError("the discovery document is another issuer's")
                url = _must_be_safe(str(told["jwks_uri"]))
            return await _document(http, url)


def bad_token() -> Unauthenticated:
    """The same error for every invalid token."""
    return Unauthenticated("the token is forged, expired or not for this service; log in again")


async def _document(http: httpx.AsyncClient, url: str) -> Mapping[str, Any]:
    """A JSON object of bounded size."""
    read = bytearray()
    async with http.stream("GET", url, headers={"accept": "application/json"}) as answer:
        if answer.status_code != 200:
            raise ValueError("the answer is not 200")
        async for chunk in answer.aiter_bytes():
            read += chunk
            if len(read) > _DOCUMENT_BYTES_MAX:
                raise ValueError("the answer is too large")
    found = json.loads(bytes(read))
    if not isinstance(found, dict):
        raise ValueError("the answer is no object")
    return found


def _by_id(jwks: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The public signature keys of a set, by id, without shared secrets and encryption keys."""
    return {
        jwk["kid"]: jwk
        for jwk in jwks["keys"]
        if isinstance(jwk, dict)
        and isinstance(jwk.get("kid"), str)
        and jwk.get("kty") in ("RSA", "EC", "OKP")
        and jwk.get("use", "sig") == "sig"
    }


def _usable(jwk: Mapping[str, Any], algorithm: str) -> Any:
    """The key, if it fits this algorithm. Raises ValueError or one of PyJWT's errors."""
    if jwk.get("alg", algorithm) != algorithm:
        raise ValueError
    key = jwt.PyJWK(dict(jwk), algorithm=algorithm).key
    if isinstance(key, RSAPublicKey) and key.key_size < _RSA_BITS_MIN:
        raise ValueError
    return key


def _must_be_safe(url: str) -> str:
    """Return `url` if it is https or on loopback, so that nobody can alter the answer. Raises ConfigurationError."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and _is_loopback(parts.hostname or ""):
        return url
    raise ConfigurationError(f"the issuer's address must be https: {parts.scheme}://{parts.hostname}", param="oidc")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
