"""Callers who were just told to come back later: for a second they are told so again, without a transaction.

Somebody who ignores `Retry-After` would otherwise have every call looked at in the database, which others wait for.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from onbrand.errors import TooManyRequests

SECONDS = 1.0
"""So long a refusal is repeated: room that comes meanwhile is not seen."""
_CALLERS_MAX = 10_000


class Refusals:
    """Refusals of one process, by caller and brand; one for a whole account holds in each brand of it.

    Only who was refused in a brand, and so was a member of it, is told anything from here.
    """

    def __init__(self) -> None:
        self._accounts: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._until: OrderedDict[str, tuple[float, int, TooManyRequests]] = OrderedDict()

    def must_be_over(self, user_id: str, brand_id: str, num_images: int) -> None:
        """Raise what the caller was told in this brand, or in another one of its account, of no more images."""
        if (account_id := self._accounts.get((user_id, brand_id))) is None:
            return
        for key in (account_id, f"{user_id} {brand_id}"):
            until, refused, problem = self._until.get(key, (0.0, 0, None))
            if problem is not None and num_images >= refused and time.monotonic() < until:
                raise TooManyRequests(problem.message, retry_after=problem.fields.get("retry_after", 1))

    def note(self, user_id: str, brand_id: str, account_id: str, num_images: int, problem: TooManyRequests) -> None:
        """Remember what a member of the brand was told who asked for so many images."""
        _put(self._accounts, (user_id, brand_id), account_id)
        key = account_id if problem.fields.get("of_account") else f"{user_id} {brand_id}"
        _put(self._until, key, (time.monotonic() + SECONDS, num_images, problem))


def _put(kept: OrderedDict[Any, Any], key: object, value: object) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > _CALLERS_MAX:
        kept.popitem(last=False)
