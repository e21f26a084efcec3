"""Signs the claims of a transaction; the database accepts only claims that the platform signed (`private.claims()`).

A stolen login can set claims but cannot sign them without the key, so it has no identity. A signature holds for one
transaction (`STAMP`), so stolen claims are useless in another one. The key is `Secrets.claims`. The database keeps the
newest two keys, so that a key can be replaced while processes still sign with the old one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from onbrand.db.logins import connect_as_owner

STAMP = "pg_backend_pid()::text || ' ' || extract(epoch from transaction_timestamp())::text"
"""SQL that identifies a transaction by server process and start time, like `private.transaction_stamp()`."""
_BLOCK = 64


class ClaimsSigner:
    """Signs claims with HMAC-SHA256 (RFC 2104).

    Args:
        key: hex, 32 bytes or more.
    """

    def __init__(self, key: str) -> None:
        self._key = bytes.fromhex(key)
        self.key_id = hashlib.sha256(b"onbrand claims key " + self._key).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"ClaimsSigner({self.key_id})"

    def sign(self, role: str, claims: Mapping[str, Any], stamp: str) -> tuple[str, str, str]:
        """Sign claims for a role and the transaction of `stamp`; returns JSON, `request.scope` and the signature."""
        text = json.dumps(claims)
        scope = "|".join((self.key_id, stamp, role, *_scope_of(claims)))
        return text, scope, hmac.new(self._key, f"{scope}\n{text}".encode(), hashlib.sha256).hexdigest()

    @property
    def pads(self) -> tuple[bytes, bytes]:
        """HMAC's inner and outer padded key, 64 bytes each, with which the database verifies signatures."""
        key = self._key if len(self._key) <= _BLOCK else hashlib.sha256(self._key).digest()
        block = key.ljust(_BLOCK, b"\0")
        return bytes(b ^ 0x36 for b in block), bytes(b ^ 0x5C for b in block)


def _scope_of(claims: Mapping[str, Any]) -> tuple[str, ...]:
    """The claims that the row policies read, in the order of `private.my_role`. Raises ValueError for a '|' in one.

    Claims with both a key and a page's session get the kind ``several``, which matches no credential.
    """
    kinds = {"key": claims.get("key_id"), "session": claims.get("session_id")}
    given = [(kind, credential_id) for kind, credential_id in kinds.items() if credential_id is not None]
    kind, credential_id = given[0] if len(given) == 1 else ("several", "") if given else ("", "")
    narrowed = claims.get("scopes")
    parts = (
        claims.get("brand_id") or "",
        claims.get("sub") or claims.get("on_behalf_of") or "",
        claims.get("bound_to") or "",
        kind,
        credential_id,
        claims.get("purpose") or "",
        "" if narrowed is None else ",".join(narrowed) or "none",
    )
    if any("|" in part for part in parts):
        raise ValueError("a claim has a '|' in it")
    return parts


def install_key(owner_url: str, key: str) -> None:
    """Make the database accept claims that are signed with `key`, and delete all but the newest two keys.

    Raises Unavailable if the database does not answer.
    """
    signer = ClaimsSigner(key)
    with connect_as_owner(owner_url) as connection:
        connection.execute("set local role onbrand_definer")
        connection.execute("lock table private.claim_keys in share row exclusive mode")
        connection.execute(
            "insert into private.claim_keys (id, inner_pad, outer_pad) values (%s, %s, %s) on conflict do nothing",
            [signer.key_id, *signer.pads],
        )
        connection.execute(
            "delete from private.claim_keys where id <> %s and id not in"
            " (select id from private.claim_keys where id <> %s order by created_at desc limit 1)",
            [signer.key_id, signer.key_id],
        )
