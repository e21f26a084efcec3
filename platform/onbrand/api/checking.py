"""The app's checker of files from outside, for routes: whose files they are says in which line they wait."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from onbrand.api.caller import BrandCaller
from onbrand.storage.checking import Checker
from onbrand.storage.fair_turns import Whose


async def checker_of(request: Request) -> Checker:
    """The one checker of this process."""
    checker: Checker = request.app.state.checker
    return checker


FileChecker = Annotated[Checker, Depends(checker_of)]
"""Not to be used as it is: `in_turn_of` or `on_behalf_of` says for whom."""


async def in_turn_of(checker: Checker, caller: BrandCaller) -> Checker:
    """The checker, waiting in the line of the caller's brand, below the account that made the brand."""
    row = await caller.session.one("select user_id from app.brands where id = %s", [caller.brand_id])
    return checker.on_behalf_of(Whose(caller.brand_id, str(row["user_id"])))
