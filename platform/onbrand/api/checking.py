"""The app's checker of uploaded files, as a dependency of routes. Each brand's files wait in the brand's own queue."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from onbrand.api.authorization import BrandCaller
from onbrand.fair_turns import QueueOwner
from onbrand.sandbox.checker import Checker


async def checker_of(request: Request) -> Checker:
    """The only checker of this process."""
    checker: Checker = request.app.state.checker
    return checker


FileChecker = Annotated[Checker, Depends(checker_of)]
"""Do not use it directly: choose the queue with `in_turn_of` or `on_behalf_of` first."""


async def in_turn_of(checker: Checker, caller: BrandCaller) -> Checker:
    """The checker with the queue of the caller's brand, grouped under the account that created the brand."""
    return checker.on_behalf_of(QueueOwner(caller.brand_id, caller.account_id))
