"""Signed links to one object: bound to bucket, key, method and a short life. They are bearer tokens; keep them short.

Serving the bytes is in `onbrand.api.files`. Links of an S3 store are presigned by S3 itself (`backends`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from typing import cast
from urllib.parse import quote, urlencode

from onbrand.errors import InvalidInput, Unauthenticated
from onbrand.storage.layout import Bucket, Key

LINK_SECONDS_MAX = 7 * 24 * 3600
_EXPIRES = re.compile(r"[1-9][0-9]{0,11}")


def must_be_link_seconds(seconds: int) -> int:
    """Return `seconds` if a link may live so long, else raise InvalidInput."""
    if not 1 <= seconds <= LINK_SECONDS_MAX:
        raise InvalidInput(f"a link lives 1 to {LINK_SECONDS_MAX} seconds", param="seconds")
    return seconds


@dataclass(frozen=True, slots=True)
class LinkSigner:
    """Makes and checks links with one secret for one address."""

    secret: str
    base_url: str

    def __repr__(self) -> str:
        return f"LinkSigner({self.base_url!r})"

    def sign(self, key: Key, method: str, seconds: int) -> str:
        """A link to `key` that lasts `seconds`."""
        return sign_link(key, method, seconds, self.secret, self.base_url)


def sign_link(key: Key, method: str, seconds: int, secret: str, base_url: str) -> str:
    """``{base_url}/v1/files/{bucket}/{name}?expires=...&signature=...``, good for one method."""
    expires = str(int(time.time()) + must_be_link_seconds(seconds))
    query = urlencode({"expires": expires, "signature": _signature(key.bucket, key.name, method, expires, secret)})
    return f"{base_url.rstrip('/')}/v1/files/{key.bucket}/{quote(key.name)}?{query}"


def verify_link(bucket: str, name: str, method: str, expires: str, signature: str, secret: str) -> Key:
    """The key that the link opens.

    Raises:
        Unauthenticated: forged, altered, for another method, or too old; the answer does not say which.
    """
    wanted = _signature(bucket, name, method, expires, secret)
    genuine = hmac.compare_digest(wanted.encode(), signature.encode())
    if not genuine or not _EXPIRES.fullmatch(expires) or int(expires) <= time.time():
        raise Unauthenticated("the link is not genuine or has expired; ask for a new one")
    try:
        return Key(cast(Bucket, bucket), name)
    except InvalidInput:
        raise Unauthenticated("the link is not genuine or has expired; ask for a new one") from None


def _signature(bucket: str, name: str, method: str, expires: str, secret: str) -> str:
    """HMAC-SHA256 over the JSON-free, newline-separated parts; no part can hold a newline and still be a key."""
    parts = "\n".join(("onbrand-link-1", method.upper(), bucket, name, expires))
    digest = hmac.new(secret.encode(), parts.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
