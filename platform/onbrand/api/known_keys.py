"""Remembers for some seconds which API keys were valid, so that a request in a brand needs one transaction, not two.

This grants nothing: every transaction in a brand names its key, and the database checks that key again
(`private.my_role`). A request that it shows no brand asks here once more, so that a revoked key gets 401.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from onbrand.brand import Scope
from onbrand.db.session import Database
from onbrand.errors import Unauthenticated
from onbrand.services import keys
from onbrand.services.keys import KeyCredential

SECONDS = 20.0
_KEYS_MAX = 10_000


class KnownKeys:
    """The keys that this process has found valid."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._found: OrderedDict[str, tuple[KeyCredential, float, Scope]] = OrderedDict()

    async def scope_of(self, token: str, in_brand: bool) -> Scope:
        """The scope of a key. Raises Unauthenticated.

        Args:
            in_brand: the request will open a transaction in a brand; otherwise the database is asked.
        """
        credential = keys.credential_of(token)
        known, until, scope = self._found.get(credential.key_id, (None, 0.0, None))
        if scope is None or known != credential or not in_brand or time.monotonic() >= until:
            scope = await self._ask(credential)
            self._found[credential.key_id] = credential, time.monotonic() + SECONDS, scope
            self._found.move_to_end(credential.key_id)
            if len(self._found) > _KEYS_MAX:
                self._found.popitem(last=False)
        return scope

    async def must_be_valid(self, key_id: str) -> None:
        """Ask the database about a key again. Raises Unauthenticated."""
        if (known := self._found.get(key_id)) is not None:
            await self._ask(known[0])

    async def _ask(self, credential: KeyCredential) -> Scope:
        try:
            async with self._db.user_session(None) as session:
                return await keys.scope_of(session, credential)
        except Unauthenticated:
            known = self._found.get(credential.key_id)
            if known is not None and known[0] == credential:
                self._found[credential.key_id] = credential, 0.0, known[2]
            raise
