"""Access scope of a call: brand ids, the user's scope, and the system's ticket for one job or generation."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args
from uuid import UUID

import jwt

from onbrand.errors import InvalidInput, TicketRefused

REGIONS_RESERVED = ("us", "eu", "ap", "sa", "ca", "me", "af", "il")
_BRAND_ID = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
LOOKS_LIKE_REGION = re.compile(rf"(?:{'|'.join(REGIONS_RESERVED)})-")
"""No brand id may begin like this."""
_TICKET_ISSUER = "onbrand-tickets"
_TICKET_CLAIMS = ("iss", "sub", "brand_id", "job_id", "kind", "iat", "exp")
TICKET_SECONDS_MAX = 3600
"""Maximum lifetime of a ticket, checked on verification: also for a ticket signed under a wrong setting."""

TicketKind = Literal["training", "generation"]
KeyScope = Literal["read", "upload", "train", "generate", "manage"]
KEY_SCOPES: tuple[KeyScope, ...] = ("read", "upload", "train", "generate", "manage")


def must_be_brand_id(text: str, param: str = "brand_id") -> str:
    """Return `text` if it can name a brand, else raise InvalidInput naming `param`."""
    if not _BRAND_ID.fullmatch(text):
        raise InvalidInput(
            f"{param} must be 2 to 63 of a-z, 0-9 and '-', and start with a letter or digit", param=param
        )
    if LOOKS_LIKE_REGION.match(text):
        raise InvalidInput(f"{param} must not begin like a region name ('{text[:3]}')", param=param)
    return text


def with_trigger_word(text: str, word: str) -> str:
    """The caption or prompt with `word` in place of each `[brand]`."""
    return text.replace("[brand]", word)


@dataclass(frozen=True, slots=True)
class Scope:
    """A user, and the restrictions of their credential. A credential never grants more than its user has.

    Args:
        brand_id: the one brand that a brand-bound credential reaches.
        within: the brand of the transaction (`in_brand`); the database shows no other.
        key_id: the API key that acts for the user; the database looks up its validity and scopes.
        scopes: the key's scopes; None for a credential with all rights of its user.
        session_id: the session of a page; the database looks up whether it is open.
        purpose: the scope that a key uses now. The database shows a key nothing if its purpose is missing or not among
            its scopes; other credentials need none.
    """

    user_id: str
    brand_id: str | None = None
    key_id: str | None = None
    scopes: frozenset[KeyScope] | None = None
    session_id: str | None = None
    purpose: KeyScope | None = None
    within: str | None = None

    @property
    def is_in_person(self) -> bool:
        """Whether the user acts in person and not by an API key."""
        return self.key_id is None and self.scopes is None

    @property
    def holder(self) -> str:
        """Identity whose shares the calls use: the user, or the user within the brand of a brand-bound credential."""
        return self.user_id if self.brand_id is None else f"{self.user_id} in {self.brand_id}"

    def allows(self, what: KeyScope) -> bool:
        """Whether the credential has this scope; the user's own rights are checked elsewhere."""
        return self.scopes is None or what in self.scopes

    def used_to(self, what: KeyScope) -> Scope:
        """The same credential, restricted to this purpose."""
        return replace(self, purpose=what)

    def in_brand(self, brand_id: str) -> Scope:
        """The same credential, for a transaction about this brand."""
        return replace(self, within=brand_id)

    def claims(self) -> dict[str, Any]:
        """The caller's claims for the database; `brand_id` is the transaction's brand, else the bound one."""
        scopes = None if self.scopes is None else sorted(self.scopes)
        claims = {
            "sub": self.user_id,
            "brand_id": self.within or self.brand_id,
            "bound_to": self.brand_id,
            "key_id": self.key_id,
            "scopes": scopes,
            "session_id": self.session_id,
            "purpose": None if self.key_id is None else self.purpose,
        }
        return {name: value for name, value in claims.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Ticket:
    """The system's rights: one brand, one job (a training job's or a generation's id), one member, a short time.

    Args:
        expires_at: seconds since the epoch.
    """

    brand_id: str
    job_id: str
    on_behalf_of: str
    kind: TicketKind
    expires_at: int

    @classmethod
    def issue(cls, brand_id: str, job_id: str, on_behalf_of: str, kind: TicketKind, seconds: int) -> Ticket:
        """A ticket that lasts `seconds` from now."""
        return cls(brand_id, job_id, on_behalf_of, kind, int(time.time()) + seconds)

    def renewed(self, seconds: int) -> Ticket:
        """The same rights, for `seconds` from now."""
        return replace(self, expires_at=int(time.time()) + seconds)

    def sign(self, secret: str) -> str:
        """The ticket as a signed token (JWT, HS256)."""
        claims = {
            "iss": _TICKET_ISSUER,
            "sub": self.on_behalf_of,
            "brand_id": self.brand_id,
            "job_id": self.job_id,
            "kind": self.kind,
            "iat": int(time.time()),
            "exp": self.expires_at,
        }
        return jwt.encode(claims, secret, algorithm="HS256")

    @classmethod
    def verify(cls, token: str, secret: str) -> Ticket:
        """Read a signed token. Raises TicketRefused if it is forged, expired, incomplete, or lives too long.

        The database checks at every call that the job is open and the member still belongs to the brand.
        """
        try:
            claims = jwt.decode(
                token, secret, algorithms=["HS256"], issuer=_TICKET_ISSUER, options={"require": list(_TICKET_CLAIMS)}
            )
            return _ticket_of(claims)
        except (jwt.InvalidTokenError, InvalidInput, ValueError, TypeError):
            raise TicketRefused("the ticket is forged, expired or incomplete; ask for a new one") from None


def _ticket_of(claims: dict[str, Any]) -> Ticket:
    """The ticket in verified claims. Raises TypeError, ValueError or InvalidInput if they are not a valid ticket's."""
    if not all(isinstance(claims[name], str) for name in ("sub", "brand_id", "job_id", "kind")):
        raise TypeError
    if claims["kind"] not in get_args(TicketKind) or not 0 < claims["exp"] - claims["iat"] <= TICKET_SECONDS_MAX:
        raise ValueError
    job_id, member = str(UUID(claims["job_id"])), str(UUID(claims["sub"]))
    return Ticket(must_be_brand_id(claims["brand_id"]), job_id, member, claims["kind"], int(claims["exp"]))


def claims_of(ticket: str) -> dict[str, Any]:
    """The claims of a ticket, without a check of its signature: the platform checks it at every call."""
    claims: dict[str, Any] = jwt.decode(ticket, options={"verify_signature": False})
    return claims
