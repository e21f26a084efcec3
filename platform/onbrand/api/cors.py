"""Cross-origin requests (the Fetch standard's CORS), for pages that hold a token and whose origins the operator names.

`Access-Control-Allow-Credentials` is never sent: a page's cookie counts on our own pages alone.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
ALLOWED_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", "If-None-Match")
EXPOSED_HEADERS = ("Location", "Retry-After", "X-Request-Id", "Preference-Applied", "ETag", "X-Should-Retry")
_CACHE_SECONDS = 600


def add_to(app: FastAPI, origins: tuple[str, ...]) -> None:
    """Answer preflights, and let pages of `origins` read answers; with none, CORS is off."""
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=ALLOWED_HEADERS,
            expose_headers=EXPOSED_HEADERS,
            allow_credentials=False,
            max_age=_CACHE_SECONDS,
        )


def readable(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """The answer `app`, to be read by pages of `origins`: for those that are given before the API is asked."""
    return CORSMiddleware(app, allow_origins=origins, expose_headers=EXPOSED_HEADERS) if origins else app
