"""Whose data a call may touch: brand ids, the user's scope, and the system's ticket for one job."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from typing import Literal

import jwt

from onbrand.errors import InvalidInput, TicketRefused

REGIONS_RESERVED = ("us", "eu", "ap", "sa", "ca", "me", "af", "il")
_BRAND_ID = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
_LOOKS_LIKE_REGION = re.compile(rf"(?:{'|'.join(REGIONS_RESERVED)})-")
_TICKET_ISSUER = "onbrand-tickets"

TicketKind = Literal["training", "generation"]


def must_be_brand_id(text: str, param: str = "brand_id") -> str:
    """Return `text` if it can name a brand, else raise InvalidInput naming `param`."""
    if not _BRAND_ID.fullmatch(text):
        raise InvalidInput(
            f"{param} must be 2 to 63 of a-z, 0-9 and '-', and start with a letter or digit", param=param
        )
    if _LOOKS_LIKE_REGION.match(text):
        raise InvalidInput(f"{param} must not begin like a region name ('{text[:3]}')", param=param)
    return text


@dataclass(frozen=True, slots=True)
class Scope:
    """A user, and (for brand-bound credentials) the one brand the credential narrows them to. It never widens."""

    user_id: str
    brand_id: str | None = None


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
            "exp": self.expires_at,
        }
        return jwt.encode(claims, secret, algorithm="HS256")

    @classmethod
    def verify(cls, token: str, secret: str) -> Ticket:
        """Read a signed token. Raises TicketRefused if it is forged, expired or incomplete."""
        required = ["iss", "sub", "brand_id", "job_id", "kind", "exp"]
        try:
            claims = jwt.decode(
                token, secret, algorithms=["HS256"], issuer=_TICKET_ISSUER, options={"require": required}
            )
        except jwt.InvalidTokenError:
            raise TicketRefused("the ticket is forged, expired or incomplete; ask for a new one") from None
        return cls(claims["brand_id"], claims["job_id"], claims["sub"], claims["kind"], int(claims["exp"]))
