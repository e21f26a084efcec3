"""The app's checker of files from outside, for routes."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from onbrand.storage.checking import Checker


def _checker(request: Request) -> Checker:
    checker: Checker = request.app.state.checker
    return checker


FileChecker = Annotated[Checker, Depends(_checker)]
