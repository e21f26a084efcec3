"""Sessions of pages: a random cookie, stored as its SHA-256, with a maximum lifetime and a maximum idle time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from onbrand.brand import Scope
from onbrand.db.session import Session
from onbrand.errors import NotFound, Unauthenticated
from onbrand.services.pagination import Page, Row, known_id, must_be_there, page_where

_COOKIE_CHARS = 64
_MINE = "select t.* from private.my_sessions() t"


class PageSession(Row):
    """One of the caller's sessions."""

    id: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A new session with its cookie, which is returned once."""

    id: str
    expires_at: datetime
    cookie: str = field(repr=False)


async def open_session(session: Session, idle: timedelta, life: timedelta) -> OpenedSession:
    """Open a session for the caller. Raises Forbidden for a credential that reaches less than its user."""
    cookie = secrets.token_hex(_COOKIE_CHARS // 2)
    async with session.asking("open_session", hashed := _hash(cookie)):
        row = await session.one("select id, expires_at from private.open_session(%s, %s, %s)", [hashed, idle, life])
    return OpenedSession(row["id"], row["expires_at"], cookie)


async def scope_of(session: Session, cookie: str) -> Scope:
    """The scope of a session's cookie; `session` is anonymous (`anon`). Raises Unauthenticated if it has ended."""
    row = await session.maybe("select id, user_id from private.find_session(%s)", [_hash(cookie)])
    if row is None:
        raise Unauthenticated("this session has ended; log in again")
    return Scope(row["user_id"], session_id=row["id"])


async def list_sessions(session: Session, limit: int = 20, cursor: str | None = None) -> Page[PageSession]:
    """The caller's open sessions, newest first."""
    return await page_where(session, PageSession, f"{_MINE} where true", {}, limit, cursor)


async def get_session(session: Session, session_id: str) -> PageSession:
    """One of the caller's open sessions. Raises NotFound."""
    row = await session.maybe(f"{_MINE} where t.id = %s", [known_id(session_id, "session")])
    return PageSession.of(must_be_there(row, "session"))


async def end_session(session: Session, session_id: str) -> None:
    """End one of the caller's sessions, at once. Raises NotFound."""
    row = await session.one("select private.end_sessions(%s) as num", [known_id(session_id, "session")])
    if row["num"] == 0:
        raise NotFound("there is no such session")


async def end_all_sessions(session: Session) -> None:
    """End all of the caller's sessions, at once."""
    await session.run("select private.end_sessions(null)")


def csrf_token_of(cookie: str) -> str:
    """The token that state-changing requests of this session must carry; only the cookie's holder can compute it."""
    return hmac.new(cookie.encode("utf-8", "surrogateescape"), b"onbrand csrf token", hashlib.sha256).hexdigest()


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).hexdigest()
