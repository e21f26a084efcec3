"""Begins a generation for a request, waits for its end, and cancels it on request or if the client disconnects."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from fastapi import Request

from onbrand.api.authorization import BrandAccess, BrandCaller
from onbrand.api.idempotency import Done, Once
from onbrand.background.generations import end_name
from onbrand.background.previews import previews_name
from onbrand.db.changes import Waiter
from onbrand.errors import OnbrandError, TooManyRequests
from onbrand.internal import generation
from onbrand.services import generation_parameters, generations
from onbrand.services.events import ENDED_STATES, change_names

_PATIENCE_HERE, _LISTEN_EVERY = 15.0, 0.5
"""Seconds between reads of a row whose generation this process runs (its end is noticed at once), and between checks
whether the client is still connected."""


async def begin(access: BrandAccess, body: generation_parameters.NewGeneration, once: Once) -> generations.Generation:
    """Write the row, commit and start drawing; returns it. A repeated call returns the first call's generation."""
    generation_tasks = access.state.generation_tasks
    render: generation.RenderRequest | None = None
    if once.key is None:  # a repeated call with a key may have an earlier response
        access.state.refusals.must_not_be_refused(access.scope.user_id, access.brand_id, body.num_images)
    made: list[generations.Generation] = []
    async with access.open() as caller:
        done = await once.do(caller, 202, lambda: _written(caller, body, made))
        generation = (
            made[0] if made else await generations.get_generation(caller.session, caller.brand_id, str(done.body["id"]))
        )
        if done.is_fresh or _was_never_begun(access, generation):
            ticket = generation_tasks.ticket_for(caller.brand_id, generation.id, caller.user_id)
            render = await generations.render_request(caller.session, generation, ticket)
    if render is not None:
        generation_tasks.start(generation.model_type, render)
    return generation


def _was_never_begun(access: BrandAccess, generation: generations.Generation) -> bool:
    """Whether its ingress died between commit and drawing. Drawing twice is safe: each image is stored once.

    `background.recovery` recovers a generation whose heartbeats stopped.
    """
    is_new = generation.status == "pending" and generation.heartbeat_at is None
    return is_new and not access.state.generation_tasks.is_running(generation.id)


async def _written(
    caller: BrandCaller, body: generation_parameters.NewGeneration, out: list[generations.Generation]
) -> generations.Generation:
    """Write the row, and add it to `out`."""
    state, account_id = caller.state, caller.account_id
    state.generation_tasks.must_have_room(caller.brand_id, account_id)
    try:
        made = await generations.create_generation(
            caller.session, caller.brand_id, caller.user_id, body, state.recommended, state.settings.limits
        )
    except TooManyRequests as problem:
        state.refusals.note(caller.user_id, caller.brand_id, account_id, body.num_images, problem)
        raise
    state.generation_tasks.must_have_room_for(caller.brand_id, made.model_type)
    out.append(made)
    return made


async def read(access: BrandAccess, generation_id: str) -> generations.Generation:
    """The current state of the generation."""
    async with access.open() as caller:
        return await generations.get_generation(caller.session, caller.brand_id, generation_id)


async def names_of(access: BrandAccess, generation_id: str) -> tuple[str, ...]:
    """The names of its changes, of its brand's credentials, and of its previews (`onbrand.db.changes`)."""
    async with access.open() as caller:
        return *await change_names(caller.session, generation_id), previews_name(generation_id)


async def until_done(
    access: BrandAccess, generation: generations.Generation, seconds: float, request: Request, *, abandon: bool
) -> generations.Generation:
    """The generation when it has ended, or its state after `seconds`.

    Args:
        generation: as `begin` returned it.
        abandon: cancel it if the client disconnects; False with an Idempotency-Key, since the client may return.
    """
    try:
        return await _look_until_done(access, generation, seconds, request, abandon)
    except asyncio.CancelledError:
        if abandon:
            access.state.generation_tasks.in_background(give_up(access, generation.id))
        raise


async def cancel(access: BrandAccess, generation_id: str, once: Once) -> Done:
    """Store the cancel request, then tell the engine."""
    async with access.open() as caller:
        done = await once.do(
            caller,
            200,
            lambda: generations.cancel_generation(caller.session, caller.brand_id, generation_id),
        )
    if done.body["status"] not in ENDED_STATES:
        await access.state.generation_tasks.cancel(str(done.body["model_type"]), generation_id)
    return done


async def _look_until_done(
    access: BrandAccess, generation: generations.Generation, seconds: float, request: Request, abandon: bool
) -> generations.Generation:
    end, tasks, changes = time.monotonic() + seconds, access.state.generation_tasks, access.state.db.changes
    if generation.status in ENDED_STATES or seconds <= 0:
        return generation
    is_here = tasks.is_running(generation.id)
    names = (end_name(generation.id),) if is_here else await names_of(access, generation.id)
    with changes.waiter(*names) as waiter:
        if not tasks.is_running(generation.id):  # it may have ended before there was a waiter
            generation = await read(access, generation.id)
        while generation.status not in ENDED_STATES and (now := time.monotonic()) < end:
            patience = _PATIENCE_HERE if tasks.is_running(generation.id) else changes.patience
            if await _client_left(waiter, min(end, now + patience), request if abandon else None):
                await give_up(access, generation.id)
                break
            generation = await read(access, generation.id)
    return generation


async def _client_left(waiter: Waiter, until: float, request: Request | None) -> bool:
    """Wait for a change, or `until` then; True if the client has disconnected."""
    while (left := until - time.monotonic()) > 0:
        if request is not None and await request.is_disconnected():
            return True
        if await waiter.wait(min(left, _LISTEN_EVERY)):
            break
    return False


async def give_up(access: BrandAccess, generation_id: str) -> None:
    """Cancel a generation that no client waits for."""
    with suppress(OnbrandError):  # it may have ended meanwhile
        await cancel(access, generation_id, Once(None, "", ""))
