"""CORS (the Fetch standard) for pages of origins that the operator lists; such pages send a token.

`Access-Control-Allow-Credentials` is never sent: the session cookie works on our own pages only.
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
    """Answer preflights and let pages of `origins` read responses; without origins CORS is off."""
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
    """Wrap the response `app` with CORS headers for `origins`; for responses that are sent before the API runs."""
    return CORSMiddleware(app, allow_origins=origins, expose_headers=EXPOSED_HEADERS) if origins else app
