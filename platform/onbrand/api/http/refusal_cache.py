"""Caches 429 refusals for a second, so that a caller who ignores `Retry-After` is refused without a transaction."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from onbrand.errors import TooManyRequests

SECONDS = 1.0
"""How long a refusal is repeated, even if capacity becomes free meanwhile."""
_CALLERS_MAX = 10_000


class Refusals:
    """The recent refusals of one process, by caller and brand; a refusal of an account holds in all its brands.

    A caller gets a cached refusal only in a brand where it was refused before, and so was a member.
    """

    def __init__(self) -> None:
        self._accounts: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._until: OrderedDict[str, tuple[float, int, TooManyRequests]] = OrderedDict()

    def must_not_be_refused(self, user_id: str, brand_id: str, num_images: int) -> None:
        """Raise TooManyRequests if a recent refusal holds for this brand or its account, for at most `num_images`."""
        if (account_id := self._accounts.get((user_id, brand_id))) is None:
            return
        for key in (account_id, f"{user_id} {brand_id}"):
            until, refused, problem = self._until.get(key, (0.0, 0, None))
            if problem is not None and num_images >= refused and time.monotonic() < until:
                raise TooManyRequests(problem.message, retry_after=problem.fields.get("retry_after", 1))

    def note(self, user_id: str, brand_id: str, account_id: str, num_images: int, problem: TooManyRequests) -> None:
        """Store the refusal of a request for `num_images` by a member of the brand."""
        _put(self._accounts, (user_id, brand_id), account_id)
        key = account_id if problem.fields.get("of_account") else f"{user_id} {brand_id}"
        _put(self._until, key, (time.monotonic() + SECONDS, num_images, problem))


def _put(kept: OrderedDict[Any, Any], key: object, value: object) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > _CALLERS_MAX:
        kept.popitem(last=False)
