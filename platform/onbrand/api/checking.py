"""The app's checker of files from outside, for routes."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from onbrand.storage.checking import Checker


def _checker(request: Request) -> Checker:
    checker: Checker = request.app.state.checker
    return checker.of(str(request.path_params.get("brand_id", "")))


FileChecker = Annotated[Checker, Depends(_checker)]
"""Bound to the brand that the path names: no child reads for two. The internal routes, whose paths name none, have
workers' files looked at only, and get nothing but numbers back."""
