"""The peer on Ray Serve, as in "Model Multiplexing" of its documentation: calls with a model id, and an LRU cache per
replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import serve

from onbrand.engine.compilation import keep_memory
from onbrand.families.loading import load_pipeline


@dataclass(frozen=True)
class Base:
    """A base: family, folder, device and dtype."""

    family: str
    folder: str
    device: str
    dtype: torch.dtype

    def pipeline(self) -> Any:
        """diffusers' pipeline of the base."""
        return load_pipeline(self.family, Path(self.folder), self.dtype).to(self.device)


class LoadedAdapter:
    """An adapter in the replica's pipeline. Serve awaits `__del__` at eviction.

    A `__del__` that is no coroutine would be called in another thread, while the pipeline draws.
    """

    def __init__(self, pipeline: Any, folder: str, model_id: str) -> None:
        self._pipeline, self.name, self._is_loaded = pipeline, f"b{model_id}", True
        pipeline.load_lora_weights(folder, weight_name=f"{model_id}.safetensors", adapter_name=self.name)

    async def __del__(self) -> None:
        if self._is_loaded:
            self._is_loaded = False
            self._pipeline.delete_adapters(self.name)


@serve.deployment
class Pipelines:
    """A replica with one base and the three last used adapters; others are loaded on request."""

    def __init__(
        self, base: Base, folder: str, arguments: list[dict[str, Any]], seeds: list[int], threads: int
    ) -> None:
        torch.set_num_threads(threads)
        keep_memory()
        self._pipeline = base.pipeline()
        self._folder, self._arguments, self._seeds = folder, arguments, seeds

    @serve.multiplexed(max_num_models_per_replica=3)
    async def adapter(self, model_id: str) -> LoadedAdapter:
        """Load an adapter; Serve caches the result."""
        return LoadedAdapter(self._pipeline, self._folder, model_id)

    async def draw(self, n: int) -> Any:
        """The picture of request n, [H, W, 3]. There is no await between switch and drawing, so requests cannot mix."""
        loaded = await self.adapter(serve.get_multiplexed_model_id())
        self._pipeline.set_adapters(loaded.name)
        generator = torch.Generator().manual_seed(self._seeds[n])
        return self._pipeline(**self._arguments[n], generator=generator, output_type="np").images[0]
