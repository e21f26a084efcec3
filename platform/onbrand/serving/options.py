"""Options of an engine: the part of a Serve configuration that operators tune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from onbrand.errors import ConfigurationError
from onbrand.serving.placement import PlacementOptions


class EngineOptions(BaseModel):
    """Serving options of one family: the part of a Serve config that operators tune.

    Args:
        num_slots: adapters on the device at once, in each rank class.
        max_batch: most images in one denoising step.
        batch_sizes: sizes of forward passes, ascending; the last is at least `max_batch`. None: 1, 2, 4, ... up to it.
            With one size alone, an image's time and bits do not depend on the number of images in its passes.
        even_passes: while several accounts have images to generate, none has more rows in a pass than another has to
            step. None: on a CPU only, because there the time of a pass grows with its rows.
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
