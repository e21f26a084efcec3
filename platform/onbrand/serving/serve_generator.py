"""`internal.generation.Generator` over Ray Serve, for drawing from the ingress."""

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
from onbrand.internal.generation import RenderEvent, RenderRequest
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

    Each call names its adapter by an opaque digest of the row that the ingress authorised, and `EngineRouter` sends it
    to a replica with that adapter. If a replica dies, the error has `elsewhere`: another one draws the same images,
    because an image is a function of base, adapter, numbers and seed.

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
            Unavailable: no replica could be reached; with `elsewhere`, the replica is gone and another can draw.
        """
        handle = self._engine(family).options(stream=True, multiplexed_model_id=routing_id_of(request))
        async for event in _streamed(handle.generate.remote(request)):
            yield event

    async def watch(self, family: str, generation_id: str, brand_id: str, user_id: str) -> AsyncIterator[RenderEvent]:
        """The events of a generation under way on some replica; none if no replica draws it.

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
        """The name of the replica that draws it. All are asked, because a generation moves when its replica dies."""
        try:
            responses = engine.broadcast("where_is", generation_id)
            names = await responses.results_async(timeout_s=_ASK_SECONDS, return_exceptions=True)
        except TimeoutError:
            return None
        except Exception as problem:
            raise translated(problem) from None
        return next((name for name in names if isinstance(name, str)), None)

    async def cancel(self, family: str, generation_id: str) -> None:
        """Free the generation's rows at the next step, on whichever replica draws it.

        Unreachable replicas are ignored: they read the cancel mark in the row. Raises Unavailable without any replica.
        """
        try:
            responses = self._engine(family).broadcast("cancel", generation_id)
            await responses.results_async(timeout_s=_CANCEL_SECONDS, return_exceptions=True)
        except TimeoutError:
            logger.warning("generation %s: its cancel did not reach every replica in time", generation_id)
        except Exception as problem:
            raise translated(problem) from None

    def _engine(self, family: str) -> DeploymentHandle[Any]:
        if family not in self._families:
            raise InvalidInput(
                f"this platform does not serve {family}; it serves {', '.join(self._families)}", param="model"
            )
        return self._handle(family)


def routing_id_of(request: RenderRequest) -> str:
    """The request's routing id: of its adapter, or of several combined; "" for the base alone."""
    if not request.adapters:
        return ""
    parts = [(ref.sha256, scale) for ref, scale in request.adapters]
    return routing_id(request.adapters[0][0].brand_id, combined_sha256(parts))


async def _streamed(response: Any) -> AsyncIterator[RenderEvent]:
    """A call's events, with errors translated. Canceling the reader cancels the call."""
    try:
        async for event in response:
            yield event
    except asyncio.CancelledError:
        response.cancel()
        raise
    except Exception as problem:
        raise translated(problem) from None


def translated(problem: Exception) -> Exception:
    """The Onbrand error for an exception of a call over a handle; other exceptions are returned unchanged."""
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
