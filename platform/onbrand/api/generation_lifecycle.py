"""Begins a generation for a request, waits for its end, and cancels it on request or if the client disconnects."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from fastapi import Request

from onbrand.api.authorization import BrandAccess, BrandCaller
from onbrand.api.events import ENDED
from onbrand.api.idempotency import Done, Once
from onbrand.errors import OnbrandError, TooManyRequests
from onbrand.internal import generation
from onbrand.services import brands, generation_parameters, generations

_LOOK_EVERY, _LISTEN_EVERY = 5.0, 0.5
"""Seconds between reads of a row whose generation this process runs (its end is noticed at once), and between checks
whether the client is still connected."""
_LOOK_ELSEWHERE = (0.2, 2.0)
"""The first and the longest pause between reads of a row whose generation another process runs."""


async def begin(access: BrandAccess, body: generation_parameters.NewGeneration, once: Once) -> str:
    """Write the row, commit and start drawing; returns the id. A repeated call returns the first call's generation."""
    generation_tasks = access.state.generation_tasks
    render: generation.RenderRequest | None = None
    if once.key is None:  # a repeated call with a key may have an earlier response
        access.state.refusals.must_not_be_refused(access.scope.user_id, access.brand_id, body.num_images)
    async with access.open() as caller:
        done = await once.do(caller, 202, lambda: _written(caller, body))
        generation = await generations.get_generation(caller.session, caller.brand_id, str(done.body["id"]))
        if done.is_fresh or _was_never_begun(access, generation):
            ticket = generation_tasks.ticket_for(caller.brand_id, generation.id, caller.user_id)
            render = await generations.render_request(caller.session, generation, ticket)
    if render is not None:
        generation_tasks.start(generation.model_type, render)
    return generation.id


def _was_never_begun(access: BrandAccess, generation: generations.Generation) -> bool:
    """Whether its ingress died between commit and drawing. Drawing twice is safe: each image is stored once.

    `background.recovery` recovers a generation whose heartbeats stopped.
    """
    is_new = generation.status == "pending" and generation.heartbeat_at is None
    return is_new and not access.state.generation_tasks.is_running(generation.id)


async def _written(caller: BrandCaller, body: generation_parameters.NewGeneration) -> generations.Generation:
    state = caller.state
    account_id = await brands.account_of(caller.session, caller.brand_id)
    state.generation_tasks.must_have_room(caller.brand_id, account_id)
    try:
        made = await generations.create_generation(
            caller.session, caller.brand_id, caller.user_id, body, state.recommended, state.settings.limits
        )
    except TooManyRequests as problem:
        state.refusals.note(caller.user_id, caller.brand_id, account_id, body.num_images, problem)
        raise
    state.generation_tasks.must_have_room_for(caller.brand_id, made.model_type)
    return made


async def read(access: BrandAccess, generation_id: str) -> generations.Generation:
    """The current state of the generation."""
    async with access.open() as caller:
        return await generations.get_generation(caller.session, caller.brand_id, generation_id)


async def until_done(
    access: BrandAccess, generation_id: str, seconds: float, request: Request, *, abandon: bool
) -> generations.Generation:
    """The generation when it has ended, or its state after `seconds`.

    Args:
        abandon: cancel it if the client disconnects; False with an Idempotency-Key, since the client may return.
    """
    try:
        return await _look_until_done(access, generation_id, seconds, request, abandon)
    except asyncio.CancelledError:
        if abandon:
            access.state.generation_tasks.in_background(give_up(access, generation_id))
        raise


async def cancel(access: BrandAccess, generation_id: str, once: Once) -> Done:
    """Store the cancel request, then tell the engine."""
    async with access.open() as caller:
        done = await once.do(
            caller,
            200,
            lambda: generations.cancel_generation(caller.session, caller.brand_id, generation_id),
        )
    if done.body["status"] not in ENDED:
        await access.state.generation_tasks.cancel(str(done.body["model_type"]), generation_id)
    return done


async def _look_until_done(
    access: BrandAccess, generation_id: str, seconds: float, request: Request, abandon: bool
) -> generations.Generation:
    end, pause = time.monotonic() + seconds, _LOOK_ELSEWHERE[0]
    while True:
        generation = await read(access, generation_id)
        left = end - time.monotonic()
        if generation.status in ENDED or left <= 0:
            return generation
        is_here = access.state.generation_tasks.is_running(generation_id)
        until = min(end, time.monotonic() + (_LOOK_EVERY if is_here else pause))
        pause = min(_LOOK_ELSEWHERE[1], 2 * pause)
        if await _client_left(access, generation_id, until, request if abandon else None):
            await give_up(access, generation_id)
            return generation


async def _client_left(access: BrandAccess, generation_id: str, until: float, request: Request | None) -> bool:
    """Wait `until` then, or until the generation's task in this process ends; True if the client has disconnected."""
    generation_tasks, is_here = access.state.generation_tasks, access.state.generation_tasks.is_running(generation_id)
    while (left := until - time.monotonic()) > 0:
        if request is not None and await request.is_disconnected():
            return True
        if is_here and not generation_tasks.is_running(generation_id):
            break
        if is_here:
            await generation_tasks.wait(generation_id, min(left, _LISTEN_EVERY))
        else:
            await asyncio.sleep(min(left, _LISTEN_EVERY))
    return False


async def give_up(access: BrandAccess, generation_id: str) -> None:
    """Cancel a generation that no client waits for."""
    with suppress(OnbrandError):  # it may have ended meanwhile
        await cancel(access, generation_id, Once(None, "", ""))
