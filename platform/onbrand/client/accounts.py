"""The API's objects about accounts: users, brands, members, keys and invitations."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from onbrand.client.object_bases import ApiModel, Owned


class User(ApiModel):
    """An account."""

    id: str
    email: str | None = None
    email_verified: bool = False
    created_at: datetime | None = None


class Token(ApiModel):
    """A bearer token, and when it expires."""

    access_token: str = Field(repr=False)
    token_type: str = "bearer"
    expires_at: datetime | None = None


class Brand(ApiModel):
    """A brand, and the role that the caller has in it."""

    id: str
    name: str
    home_region: str | None = None
    role: str | None = None
    created_at: datetime | None = None


class Me(ApiModel):
    """The token's account, and the brands that the token may use."""

    id: str
    email: str | None = None
    email_verified: bool = False
    brand_id: str | None = None
    brands: tuple[Brand, ...] = ()
    key_id: str | None = None
    scopes: tuple[str, ...] | None = None


class Member(ApiModel):
    """A member of a brand."""

    user_id: str
    email: str | None = None
    role: str
    brand_id: str | None = None
    created_at: datetime | None = None


class ApiKey(Owned):
    """An API key of a brand.

    Only the response that creates it has `key`. If that response was lost and the call repeated, `key` is None: revoke
    the key and create another.
    """

    name: str
    prefix: str
    scopes: tuple[str, ...]
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    key: str | None = Field(default=None, repr=False)


class Invitation(Owned):
    """An invitation into a brand; only the response that creates it has `token`, as for `ApiKey.key`."""

    email: str
    role: str
    status: str
    expires_at: datetime | None = None
    token: str | None = Field(default=None, repr=False)


class ReceivedInvitation(ApiModel):
    """An open invitation to the caller's verified address."""

    id: str
    brand_id: str
    role: str
    created_at: datetime | None = None
    expires_at: datetime | None = None
