"""Password login and sign-up. No transaction is open while a password is hashed."""

from __future__ import annotations

import asyncio

from fastapi import Request

from onbrand.api.authorization import AppState
from onbrand.errors import TooManyRequests, Unauthenticated
from onbrand.services import identity, login_limits
from onbrand.services.password_queue import Client
from onbrand.services.passwords import must_be_password


async def must_know_password(request: Request, state: AppState, email: str, password: str) -> str:
    """The id of the account with this address and password.

    For unknown addresses and accounts without a password, time and error are the same as for a wrong password.

    Raises Unauthenticated, TooManyRequests.
    """
    attempt = login_limits.LogIn(address_of(request), email)
    try:
        async with state.passwords.lookups, state.db.user_session(None) as session:
            seconds = await login_limits.may_log_in(session, attempt, state.settings.limits)
            login = await identity.find_login(session, email)
    except TooManyRequests:
        await asyncio.sleep(state.settings.limits.refused_login_seconds)
        raise
    await asyncio.sleep(seconds)
    is_right = await state.passwords.are_equal(password, login.hashed, _client(request, email))
    if not is_right or login.user_id is None:
        raise Unauthenticated("wrong email or password")
    async with state.passwords.lookups, state.db.user_session(None) as session:
        await login_limits.was_right(session, attempt, state.settings.limits)
    return login.user_id


async def sign_up(request: Request, state: AppState, email: str, password: str) -> identity.User:
    """Create an account. Raises InvalidInput, Conflict, TooManyRequests."""
    identity.must_be_email(email)
    must_be_password(password)
    async with state.passwords.lookups, state.db.user_session(None) as session:
        await login_limits.may_sign_up(session, address_of(request), state.settings.limits)
    hashed = await state.passwords.hashed(password, _client(request, email))
    async with state.db.user_session(None) as session:
        return await identity.sign_up(session, email, hashed)


def _client(request: Request, email: str) -> Client:
    return Client(login_limits.network_of(address_of(request)), email)


def address_of(request: Request) -> str:
    """The client's address as the HTTP server reports it; behind a trusted proxy, the forwarded one."""
    return request.client.host if request.client else ""
