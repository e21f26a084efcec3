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

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(__name__)

ENGINE = "Engine"
_ATTEMPTS = 5
_FIRST_DELAY = 0.5
_CANCEL_SECONDS = 10.0


def engine_app(family: str) -> str:
    """The name of the Serve application that draws a family."""
    return f"engine-{family}"


class ServeGenerator:
    """Draws with the replicas of `engine-<family>`.

    Each call says which adapter it is about, by an opaque digest of the row that the ingress authorised, and
    `EngineRouter` sends it where that adapter is. A replica that dies loses no generation: it is asked of another one,
    which draws the same pictures, since a picture is a function of base, adapter, numbers and seed.

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
            Unavailable: no replica could be reached, or each died.
        """
        handle = self._engine(family).options(stream=True, multiplexed_model_id=routing_id_of(request))
        told: set[int] = set()
        for attempt in range(_ATTEMPTS):
            try:
                async for event in handle.generate.remote(request):
                    if _is_news(event, told):
                        yield event
                return
            except Exception as problem:
                if attempt == _ATTEMPTS - 1 or not _was_lost(problem):
                    raise translated(problem) from None
                logger.warning("generation %s: its replica is gone; asking another", request.generation_id)
            await asyncio.sleep(_FIRST_DELAY * 2**attempt)

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


def _is_news(event: RenderEvent, told: set[int]) -> bool:
    """False for a picture that was told before the generation moved to another replica."""
    if event.kind != "image":
        return True
    index = int(event.data["index"])
    if index in told:
        return False
    told.add(index)
    return True


def _was_lost(problem: Exception) -> bool:
    """Whether another replica would do: this one died, or is stopping."""
    known = translated(problem)
    return isinstance(problem, RayActorError) or (isinstance(known, Unavailable) and "elsewhere" in known.fields)


def translated(problem: Exception) -> Exception:
    """Onbrand's error for what a call over a handle raised; others stay as they are."""
    cause = problem.cause if isinstance(problem, RayTaskError) else problem
    if isinstance(cause, OnbrandError):
        return cause
    if isinstance(cause, BackPressureError):
        return TooManyRequests("the engine has as much as it takes; try again soon", retry_after=2)
    if isinstance(cause, RayError | DeploymentUnavailableError):
        return Unavailable("the engine cannot be reached or broke off; try again", retry_after=5)
    return problem
