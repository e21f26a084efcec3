"""The peer on Ray Serve, after "Model Multiplexing" in its documentation: an id in the call, an LRU per replica."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from ray import serve

from onbrand.engine.kernels import keep_memory
from onbrand.families.family import load_pipeline


class LoadedAdapter:
    """An adapter in the replica's pipeline; Serve awaits `__del__` when it evicts it.

    Were it no coroutine, Serve would call it in another thread, in the middle of a drawing.
    """

    def __init__(self, pipeline: Any, data: bytes, name: str) -> None:
        self._pipeline, self.name, self._is_loaded = pipeline, name, True
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "adapter.safetensors").write_bytes(data)
            pipeline.load_lora_weights(folder, weight_name="adapter.safetensors", adapter_name=name)

    async def __del__(self) -> None:
        if self._is_loaded:
            self._is_loaded = False
            self._pipeline.delete_adapters(self.name)


@serve.deployment(ray_actor_options={"num_cpus": 1})
class Pipelines:
    """One base; the requested brand's adapter is loaded when it is not among the last three."""

    def __init__(
        self,
        family: str,
        base: str,
        files: list[bytes],
        arguments: list[dict[str, Any]],
        seeds: list[int],
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        keep_memory()
        self._pipeline = load_pipeline(family, Path(base))
        self._files, self._arguments, self._seeds = files, arguments, seeds

    @serve.multiplexed(max_num_models_per_replica=3)
    async def adapter(self, model_id: str) -> LoadedAdapter:
        return LoadedAdapter(self._pipeline, self._files[int(model_id)], f"b{model_id}")

    async def draw(self, n: int) -> Any:
        """The picture of request n, [H, W, 3]. Nothing awaits between switching and drawing, so none is mixed up."""
        loaded = await self.adapter(serve.get_multiplexed_model_id())
        self._pipeline.set_adapters(loaded.name)
        generator = torch.Generator().manual_seed(self._seeds[n])
        return self._pipeline(**self._arguments[n], generator=generator, output_type="np").images[0]
