"""The Serve deployment of one family: a base, an engine, and its thread. It holds no login and no bucket key."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from onbrand.config import FamilyName, Settings
from onbrand.engine.engine import Engine
from onbrand.errors import Unavailable
from onbrand.families.bases import base_source
from onbrand.families.family import Family, load_family
from onbrand.services.images import RenderEvent, RenderRequest
from onbrand.serving.adapters import AdapterFiles, AdapterLibrary
from onbrand.serving.loop import EngineLoop
from onbrand.serving.rendering import Renderer
from onbrand.system_client import AsyncSystemClient, SystemClient

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class EngineOptions(BaseModel):
    """How one family is served: the part of a Serve config that operators tune.

    Args:
        num_slots: adapters on the device at once, in each rank class.
        max_batch: most pictures that one denoising step advances.
        num_threads: torch's; None: `OMP_NUM_THREADS`, else 1 on a CPU, for cores are shared.
        dtype: None: float32 on a CPU, bfloat16 on a GPU.
        num_gpus: None: one where the platform uses GPUs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_slots: int = Field(16, ge=1)
    max_rank: int = Field(128, ge=1, le=128)
    max_batch: int = Field(8, ge=1)
    max_waiting: int = Field(512, ge=1)
    max_waiting_per_brand: int = Field(128, ge=1)
    host_bytes: int = 2 * 2**30
    disk_bytes: int = 10 * 2**30
    num_threads: int | None = Field(None, ge=1)
    dtype: Literal["float32", "bfloat16"] | None = None
    num_replicas: int = Field(1, ge=1)
    num_cpus: float = 0
    num_gpus: float | None = None


class EngineReplica:
    """One replica: `generate` draws, `cancel` ends a drawing early.

    Args:
        settings: the platform's, without secrets: this end needs none.
    """

    def __init__(self, family: FamilyName, options: dict[str, Any], settings: dict[str, Any]) -> None:
        chosen, known = EngineOptions.model_validate(options), Settings(**settings)
        quiet_libraries()
        loaded = load(family, chosen, known)
        engine = Engine(
            loaded,
            num_slots=chosen.num_slots,
            max_rank=chosen.max_rank,
            max_batch=chosen.max_batch,
            max_waiting=chosen.max_waiting,
            max_waiting_per_brand=chosen.max_waiting_per_brand,
        )
        files = AdapterFiles(known.folder / "cache" / "adapters", chosen.disk_bytes)
        self._loop = EngineLoop(engine)
        self._renderer = Renderer(
            self._loop,
            AdapterLibrary(loaded, files, chosen.host_bytes),
            lambda ticket: AsyncSystemClient(known.system_url, ticket),
            lambda ticket: SystemClient(known.system_url, ticket),
        )

    async def generate(self, request: RenderRequest) -> AsyncIterator[RenderEvent]:
        """The generation's events up to its end; see `Renderer.generate`."""
        async for event in self._renderer.generate(request):
            yield event

    async def cancel(self, generation_id: str) -> None:
        """End a generation at the next step; nothing happens if it is not here."""
        self._renderer.cancel(generation_id)

    def check_health(self) -> None:
        """Serve replaces this replica when the engine's thread is gone."""
        if not self._loop.is_alive:
            raise Unavailable("the engine has stopped")

    async def __del__(self) -> None:
        if hasattr(self, "_renderer"):
            await self._renderer.close()


def load(family: FamilyName, options: EngineOptions, settings: Settings) -> Family:
    """The family's configured base on the chosen device. Raises BaseModelRefused."""
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = device == "cpu"
    if on_cpu:
        torch.set_num_threads(options.num_threads or int(os.environ.get("OMP_NUM_THREADS") or 1))
    dtype = options.dtype or ("float32" if on_cpu else "bfloat16")
    s3 = {"key": settings.s3_access_key, "secret": settings.s3_secret_key}
    endpoint = {"client_kwargs": {"endpoint_url": settings.s3_endpoint}} if settings.s3_endpoint else {}
    source = base_source(family, settings.bases)
    return load_family(family, source, dtype=_DTYPES[dtype], device=device, storage_options={**s3, **endpoint})


def quiet_libraries() -> None:
    """diffusers and transformers warn with the words they cut off; a prompt must not be in a log."""
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
