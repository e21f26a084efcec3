"""`services.images.Generator` over Ray Serve: what the ingress draws with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from onbrand.adapter import combined_sha256, routing_id
from onbrand.errors import InvalidInput, OnbrandError, TooManyRequests, Unavailable
from onbrand.services.images import RenderEvent, RenderRequest
from onbrand.serving.router import address_of

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(__name__)

ENGINE = "Engine"
_CANCEL_SECONDS = _ASK_SECONDS = 10.0


def engine_app(family: str) -> str:
    """The name of the Serve application that draws a family."""
    return f"engine-{family}"


class ServeGenerator:
    """Draws with the replicas of `engine-<family>`.

    Each call says which adapter it is about, by an opaque digest of the row that the ingress authorised, and
    `EngineRouter` sends it where that adapter is. Of a replica that died it says "elsewhere": another one draws the
    same pictures, since a picture is a function of base, adapter, numbers and seed.

    Args:
        families: those that this platform serves.
    """

    def __init__(self, families: Collection[str]) -> None:
        self._families = tuple(families)
        self._handle = cache(lambda family: serve.get_deployment_handle(ENGINE, engine_app(family)))

    async def generate(self, family: str, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """The generation's events up to its end.

        Raises:
            InvalidInput: this platform does not serve the family.
            TooManyRequests: the engine's queue is full; `retry_after` holds seconds.
            Unavailable: no replica could be reached; with `elsewhere`, the one that drew is gone, and another would do.
        """
        handle = self._engine(family).options(stream=True, multiplexed_model_id=routing_id_of(request))
        async for event in _streamed(handle.generate.remote(request)):
            yield event

    async def watch(self, family: str, generation_id: str, brand_id: str, user_id: str) -> AsyncIterator[RenderEvent]:
        """The events of a drawing that is under way on some replica; none if it is on none.

        Raises Unavailable: no replica could be reached, or the one that draws is gone.
        """
        engine = self._engine(family)
        replica = await self._replica_of(engine, generation_id)
        if replica is None:
            return
        handle = engine.options(stream=True, multiplexed_model_id=address_of(replica))
        async for event in _streamed(handle.watch.remote(generation_id, brand_id, user_id)):
            yield event

    async def _replica_of(self, engine: DeploymentHandle[Any], generation_id: str) -> str | None:
        """Which replica draws it: each is asked, for it was sent where it fitted, and moves when one dies."""
        try:
            asked = engine.broadcast("where_is", generation_id)
            told = await asked.results_async(timeout_s=_ASK_SECONDS, return_exceptions=True)
        except TimeoutError:
            return None
        except Exception as problem:
            raise translated(problem) from None
        return next((name for name in told if isinstance(name, str)), None)

    async def cancel(self, family: str, generation_id: str) -> None:
        """Have the generation's rows freed at the next step, whichever replica draws it.

        A replica that cannot be reached is no matter: the row's own mark tells it too. Raises Unavailable without any.
        """
        try:
            told = self._engine(family).broadcast("cancel", generation_id)
            await told.results_async(timeout_s=_CANCEL_SECONDS, return_exceptions=True)
        except TimeoutError:
            logger.warning("generation %s: not every replica heard of its cancel in time", generation_id)
        except Exception as problem:
            raise translated(problem) from None

    def _engine(self, family: str) -> DeploymentHandle[Any]:
        if family not in self._families:
            raise InvalidInput(
                f"this platform does not serve {family}; it serves {', '.join(self._families)}", param="model"
            )
        return self._handle(family)


def routing_id_of(request: RenderRequest) -> str:
    """What the router goes by: the adapter's, or that of several as they are added up; "" for the base alone."""
    if not request.adapters:
        return ""
    parts = [(ref.sha256, scale) for ref, scale in request.adapters]
    return routing_id(request.adapters[0][0].brand_id, combined_sha256(parts))


async def _streamed(response: Any) -> AsyncIterator[RenderEvent]:
    """A call's events, its errors in our words. A reader that is canceled takes the call back."""
    try:
        async for event in response:
            yield event
    except asyncio.CancelledError:
        response.cancel()
        raise
    except Exception as problem:
        raise translated(problem) from None


def translated(problem: Exception) -> Exception:
    """Onbrand's error for what a call over a handle raised; others stay as they are."""
    cause = problem.cause if isinstance(problem, RayTaskError) else problem
    if isinstance(cause, OnbrandError):
        return cause
    if isinstance(cause, BackPressureError):
        return TooManyRequests("the engine has as much as it takes; try again soon", retry_after=2)
    if isinstance(cause, RayActorError):
        return Unavailable("what drew this is gone; another replica draws the same", retry_after=1, elsewhere=True)
    if isinstance(cause, RayError | DeploymentUnavailableError):
        return Unavailable("the engine cannot be reached or broke off; try again", retry_after=5)
    return problem
