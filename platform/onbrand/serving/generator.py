"""The Serve deployment of one family: it starts an engine in a process of its own, and stores what that draws.

It has no database login and no bucket key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING, Any

from onbrand.config import FamilyName, Settings
from onbrand.errors import Unavailable

if TYPE_CHECKING:
    from onbrand.internal.generation import RenderEvent, RenderRequest


class EngineReplica:
    """One replica: `generate` draws, `cancel` ends a drawing early.

    Args:
        options: `EngineOptions` by name.
        settings: the platform's, without secrets: a replica needs none.
    """

    async def __init__(  # type: ignore[misc]
        self, family: FamilyName, options: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        from onbrand.internal.async_client import AiohttpConnections, AsyncSystemClient
        from onbrand.serving.cluster_security import must_be_closed
        from onbrand.serving.engine_process import EngineProcess
        from onbrand.serving.generation_runner import GenerationRunner
        from onbrand.serving.ports import listen_on_the_nodes_address
        from onbrand.serving.prometheus_metrics import Metrics

        listen_on_the_nodes_address()
        known = Settings(**settings)
        await asyncio.to_thread(must_be_closed, known)
        self._connections = AiohttpConnections(known.system_url, known.folder)
        client_for = partial(AsyncSystemClient, known.system_url, http=self._connections)
        engine = await EngineProcess.start(family, options, settings)
        self._runner = GenerationRunner(engine, client_for, Metrics(family))

    async def generate(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """The generation's events up to its end; see `GenerationRunner.generate`."""
        async for event in self._runner.generate(request):
            yield event

    async def watch(self, generation_id: str, brand_id: str, user_id: str) -> AsyncIterator[RenderEvent]:
        """The events of a drawing under way here; see `GenerationRunner.watch`."""
        async for event in self._runner.watch(generation_id, brand_id, user_id):
            yield event

    async def where_is(self, generation_id: str) -> str | None:
        """This replica's name if it draws the generation now."""
        from ray import serve  # not above: `up` reads `EngineOptions` before it sets Ray's address

        if not self._runner.is_drawing(generation_id):
            return None
        return str(serve.get_replica_context().replica_id.unique_id)

    async def cancel(self, generation_id: str) -> None:
        """End a generation at the next step; no effect if it is not here."""
        self._runner.cancel(generation_id)

    async def pace(self) -> dict[str, float]:
        """The pace of the engine's thread so far: `num_gaps` and `gap_seconds` of `engine_thread.Pace`."""
        stats = self._runner.engine_stats()
        return {"num_gaps": stats.num_gaps, "gap_seconds": stats.gap_seconds}

    def record_routing_stats(self) -> dict[str, Any]:
        """Stats for `EngineRouter`. Serve collects them and passes them to every router."""
        return self._runner.routing_stats()

    def check_health(self) -> None:
        """Raise Unavailable when the engine is gone; Serve then replaces this replica."""
        if not self._runner.is_alive:
            raise Unavailable("the engine has stopped")

    async def __del__(self) -> None:
        if hasattr(self, "_runner"):
            await self._runner.close()
            await self._connections.close()
