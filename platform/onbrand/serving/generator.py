"""The Serve deployment of one family: a base, an engine, and its thread. It has no database login and no bucket key."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from onbrand.config import FamilyName, Settings
from onbrand.errors import ConfigurationError, Unavailable
from onbrand.serving.placement import PlacementOptions

if TYPE_CHECKING:
    from onbrand.services.images import RenderEvent, RenderRequest


class EngineOptions(BaseModel):
    """Serving options of one family: the part of a Serve config that operators tune.

    Args:
        num_slots: adapters on the device at once, in each rank class.
        max_batch: most pictures in one denoising step.
        batch_sizes: batch size classes, ascending; the last is at least `max_batch`. None: 1, 2, 4, ... up to it. With
            one size alone, a picture's time and bits do not depend on the number of pictures drawn beside it.
        even_passes: while several accounts have pictures to draw, none has more rows in a pass than another has to
            step. None: on a CPU, where each row of a pass takes its time; a GPU fills its passes.
        num_threads: torch's threads; None: `OMP_NUM_THREADS`, else 1 on a CPU, because cores are shared.
        dtype: None: float32 on a CPU, bfloat16 on a GPU.
        compile: draw with compiled graphs (on a GPU: CUDA graphs); the first pass of each shape, batch size and rank
            class takes minutes.
        num_gpus: None is none; `build.applications` asks for one where the platform has GPUs.
        placement: overrides of `PlacementOptions`, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_slots: int = Field(16, ge=1)
    max_rank: int = Field(128, ge=1, le=128)
    max_batch: int = Field(8, ge=1)
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=1)
    max_waiting: int = Field(512, ge=1)
    max_waiting_per_brand: int = Field(128, ge=1)
    host_bytes: int = 2 * 2**30
    disk_bytes: int = 10 * 2**30
    even_passes: bool | None = None
    num_threads: int | None = Field(None, ge=1)
    dtype: Literal["float32", "bfloat16"] | None = None
    compile: bool = False
    num_replicas: int = Field(1, ge=1)
    num_cpus: float = 0
    num_gpus: float | None = None
    placement: dict[str, float] = Field(default_factory=dict)

    @field_validator("placement")
    @classmethod
    def _is_known(cls, placement: dict[str, float]) -> dict[str, float]:
        try:
            PlacementOptions(**placement)  # type: ignore[arg-type]
        except TypeError as problem:
            raise ValueError(str(problem)) from None
        return placement

    @field_validator("batch_sizes")
    @classmethod
    def _fit(cls, sizes: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        most = info.data.get("max_batch", 1)
        if sizes is not None and (list(sizes) != sorted(set(sizes)) or sizes[-1] < most):
            raise ValueError(f"sizes are to ascend, up to max_batch ({most}) or more")
        return sizes

    @classmethod
    def checked(cls, options: Mapping[str, Any]) -> EngineOptions:
        """The options by name. Raises ConfigurationError naming the first that is unknown or out of bounds."""
        try:
            return cls(**options)
        except ValidationError as problem:
            first = problem.errors()[0]
            param = ".".join(("engine", *map(str, first["loc"])))
            raise ConfigurationError(f"{param}: {first['msg']}; fix it, or leave it out", param=param) from None


_NICENESS = 4
"""Drawing on a CPU yields to the API and the database, which share its cores and need little of them."""


class EngineReplica:
    """One replica: `generate` draws, `cancel` ends a drawing early.

    Args:
        options: `EngineOptions` by name.
        settings: the platform's, without secrets: a replica needs none.
    """

    def __init__(self, family: FamilyName, options: dict[str, Any], settings: dict[str, Any]) -> None:
        from onbrand.serving.assembly import assemble
        from onbrand.serving.cluster_security import must_be_closed
        from onbrand.serving.ports import listen_on_the_nodes_address

        listen_on_the_nodes_address()
        must_be_closed(Settings(**settings))
        if not options.get("num_gpus"):
            os.nice(_NICENESS)
        self._renderer = assemble(family, EngineOptions.model_validate(options), Settings(**settings))

    async def generate(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """The generation's events up to its end; see `Renderer.generate`."""
        async for event in self._renderer.generate(request):
            yield event

    async def watch(self, generation_id: str, brand_id: str, user_id: str) -> AsyncIterator[RenderEvent]:
        """The events of a drawing under way here; see `Renderer.watch`."""
        async for event in self._renderer.watch(generation_id, brand_id, user_id):
            yield event

    async def where_is(self, generation_id: str) -> str | None:
        """This replica's name if it draws the generation now."""
        from ray import serve  # not above: `up` reads `EngineOptions` before it sets Ray's address

        if not self._renderer.is_drawing(generation_id):
            return None
        return str(serve.get_replica_context().replica_id.unique_id)

    async def cancel(self, generation_id: str) -> None:
        """End a generation at the next step; no effect if it is not here."""
        self._renderer.cancel(generation_id)

    def record_routing_stats(self) -> dict[str, Any]:
        """Stats for `EngineRouter`. Serve collects them and passes them to every router."""
        return self._renderer.standing()

    def check_health(self) -> None:
        """Raise Unavailable when the engine's thread is gone; Serve then replaces this replica."""
        if not self._renderer.is_alive:
            raise Unavailable("the engine has stopped")

    async def __del__(self) -> None:
        if hasattr(self, "_renderer"):
            await self._renderer.close()
