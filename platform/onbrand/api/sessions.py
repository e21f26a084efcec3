"""Routes of page sessions. Login sets an HttpOnly cookie; requests that change state also need the CSRF token."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from onbrand.api import passwords
from onbrand.api.authentication import cookie_name, cookie_of, is_https, must_not_be_another_site
from onbrand.api.authorization import AnyUser, AppStateDep, Person, UserRoute
from onbrand.api.idempotency import as_json
from onbrand.api.lists import Listed, Paging, listed
from onbrand.api.users import SignUp
from onbrand.brand import Scope
from onbrand.errors import NotFound
from onbrand.services import sessions

router = APIRouter(prefix="/v1", tags=["sessions"], route_class=UserRoute)


class Opened(BaseModel):
    """A session. Its cookie is in `Set-Cookie`; requests that change state must also send `csrf_token`."""

    id: str
    csrf_token: str = Field(repr=False)
    expires_at: datetime


@router.post("/session", status_code=201, response_model=Opened)
async def open_session(body: SignUp, request: Request, state: AppStateDep) -> JSONResponse:
    """Log a page in with email and password."""
    settings = state.settings
    must_not_be_another_site(request, settings)
    user_id = await passwords.must_know_password(request, state, body.email, body.password)
    life, idle = timedelta(hours=settings.session_hours), timedelta(minutes=settings.session_idle_minutes)
    async with state.db.user_session(Scope(user_id)) as session:
        opened = await sessions.open_session(session, idle, life)
    csrf_token = sessions.csrf_token_of(opened.cookie)
    content = Opened(id=opened.id, csrf_token=csrf_token, expires_at=opened.expires_at)
    answer = JSONResponse(as_json(content), 201, headers={"Cache-Control": "no-store"})
    answer.set_cookie(
        cookie_name(settings),
        opened.cookie,
        max_age=int(life.total_seconds()),
        path="/",
        secure=is_https(settings),
        httponly=True,
        samesite="lax",
    )
    return answer


@router.get("/session")
async def get_session(caller: AnyUser, request: Request, state: AppStateDep) -> Opened:
    """The page's own session, with its CSRF token (for a reloaded page)."""
    cookie, session_id = cookie_of(request, state.settings), caller.scope.session_id
    if not cookie or session_id is None:
        raise _no_session()
    own = await sessions.get_session(caller.session, session_id)
    return Opened(id=own.id, csrf_token=sessions.csrf_token_of(cookie), expires_at=own.expires_at)


@router.delete("/session", status_code=204)
async def close_session(caller: AnyUser, state: AppStateDep) -> Response:
    """End the page's own session at once."""
    if caller.scope.session_id is None:
        raise _no_session()
    await sessions.end_session(caller.session, caller.scope.session_id)
    answer = Response(status_code=204)
    answer.delete_cookie(
        cookie_name(state.settings), path="/", secure=is_https(state.settings), httponly=True, samesite="lax"
    )
    return answer


@router.get("/sessions", response_model=Listed)
async def list_sessions(caller: Person, paging: Paging) -> dict[str, Any]:
    """The caller's active sessions, newest first."""
    return listed(await sessions.list_sessions(caller.session, paging.limit, paging.cursor))


@router.delete("/sessions", status_code=204, response_class=Response)
async def close_all_sessions(caller: Person) -> None:
    """End all sessions of the caller."""
    await sessions.end_all_sessions(caller.session)


@router.delete("/sessions/{session_id}", status_code=204, response_class=Response)
async def close_one_session(session_id: UUID, caller: Person) -> None:
    """End one session of the caller."""
    await sessions.end_session(caller.session, str(session_id))


def _no_session() -> NotFound:
    return NotFound("this request did not come with a session's cookie")
