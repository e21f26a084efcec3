"""Other ways to draw the same requests, with diffusers, PEFT and Ray Serve, each used as in its documentation.

Every peer loads as much as it can before it is timed, so the timed part is only the work that each request needs.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from benchmarks.lib.workload import Workload


class Peer(Protocol):
    """A way to draw a workload's requests."""

    def draw(self) -> list[Tensor]:
        """The pictures, [3, H, W] each, in the order of the requests."""

    def close(self) -> None:
        """Release its resources."""


def drawn(pipeline: Any, work: Workload, indices: list[int]) -> list[Tensor]:
    """Pictures of the requests at `indices`, by one call of the pipeline."""
    requests = [work.requests[index] for index in indices]
    generators = [torch.Generator().manual_seed(request.parameters.seed) for request in requests]
    images = pipeline(**work.arguments(requests), generator=generators, output_type="np").images
    return [torch.from_numpy(image).permute(2, 0, 1) for image in images]


def pipeline_with_adapters(work: Workload, names: range) -> Any:
    """diffusers' pipeline with the adapters `b<n>` loaded."""
    pipeline: Any = work.pipeline()
    with tempfile.TemporaryDirectory() as folder:
        for n in names:
            (Path(folder) / f"{n}.safetensors").write_bytes(work.files[n])
            pipeline.load_lora_weights(folder, weight_name=f"{n}.safetensors", adapter_name=f"b{n}")
    return pipeline


class SetAdapters:
    """diffusers with every brand's adapter loaded, and `set_adapters` before each request."""

    def __init__(self, work: Workload) -> None:
        self._work, self._pipeline = work, pipeline_with_adapters(work, range(len(work.files)))

    def switch(self, n: int) -> None:
        """Switch to brand n's adapter."""
        self._pipeline.set_adapters(f"b{n}")

    def draw(self) -> list[Tensor]:
        return [self._alone(n) for n in range(len(self._work.requests))]

    def _alone(self, n: int) -> Tensor:
        self.switch(n)
        return drawn(self._pipeline, self._work, [n])[0]

    def close(self) -> None:
        pass


class Hotswap:
    """diffusers with one adapter, whose weights `load_lora_weights(..., hotswap=True)` replaces before each request.

    On a GPU its denoiser is compiled, the purpose of hotswapping; the other peers' switches would recompile.
    """

    def __init__(self, work: Workload) -> None:
        self._work = work
        self._states = [safetensors.torch.load(data) for data in work.files]
        self._pipeline: Any = work.pipeline()
        ranks = {len(value) for key, value in self._states[0].items() if ".lora_A." in key}
        self._pipeline.enable_lora_hotswap(target_rank=max(ranks))
        self._pipeline.load_lora_weights(dict(self._states[0]), adapter_name="brand")
        if work.family.device.type == "cuda":
            getattr(self._pipeline, work.family.spec.component).compile(mode="reduce-overhead")

    def switch(self, n: int) -> None:
        """Switch to brand n's adapter."""
        self._pipeline.load_lora_weights(dict(self._states[n]), adapter_name="brand", hotswap=True)

    def draw(self) -> list[Tensor]:
        pictures = []
        for n in range(len(self._work.requests)):
            self.switch(n)
            pictures += drawn(self._pipeline, self._work, [n])
        return pictures

    def close(self) -> None:
        pass


class PeftRows:
    """All requests in one call of the pipeline, with PEFT's `adapter_names` per row in every adapted layer.

    Forward pre-hooks set the names, as in PEFT's own models. Guidance repeats the whole batch, and the names with it.
    """

    def __init__(self, work: Workload) -> None:
        self._work, self._pipeline = work, pipeline_with_adapters(work, range(len(work.files)))
        self._pipeline.set_adapters([f"b{n}" for n in range(len(work.files))])
        self._names = [f"b{n}" for n in range(len(work.requests))]
        denoiser: nn.Module = getattr(self._pipeline, work.family.spec.component)
        for module in denoiser.modules():
            if isinstance(module, LoraLayer):
                module.register_forward_pre_hook(self._name_rows, with_kwargs=True)  # type: ignore[attr-defined]

    def _name_rows(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        copies = len(args[0]) // len(self._names)
        return args, {**kwargs, "adapter_names": self._names * copies}

    def draw(self) -> list[Tensor]:
        return drawn(self._pipeline, self._work, list(range(len(self._work.requests))))

    def close(self) -> None:
        pass


class ServeMultiplexed:
    """A local Ray Serve replica with a pipeline and up to three adapters, by `@serve.multiplexed`."""

    def __init__(self, work: Workload) -> None:
        import ray
        from ray import serve

        from benchmarks.lib.multiplexed import Base, Pipelines

        self._num = len(work.requests)
        self._folder = tempfile.TemporaryDirectory()
        for n, data in enumerate(work.files):
            (Path(self._folder.name) / f"{n}.safetensors").write_bytes(data)
        num_gpus = int(work.family.device.type == "cuda")
        ray.init(
            address="local",
            num_cpus=1,
            num_gpus=num_gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}},
        )
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        base = Base(work.family.spec.name, str(work.base), str(work.family.device), work.family.dtype)
        arguments = [work.arguments([request]) for request in work.requests]
        seeds = [request.parameters.seed for request in work.requests]
        app = Pipelines.options(ray_actor_options={"num_cpus": 1, "num_gpus": num_gpus}).bind(
            base, self._folder.name, arguments, seeds, torch.get_num_threads()
        )
        self._handle = serve.run(app, name="multiplexed", route_prefix=None)

    def draw(self) -> list[Tensor]:
        return asyncio.run(self._draw())

    async def _draw(self) -> list[Tensor]:
        calls = [self._handle.options(multiplexed_model_id=str(n)).draw.remote(n) for n in range(self._num)]
        return [torch.from_numpy(np.array(await call)).permute(2, 0, 1) for call in calls]

    def close(self) -> None:
        import ray

        ray.shutdown()  # the cluster is ours; shutting down Serve first makes Ray print warnings on standard output
        self._folder.cleanup()


WITH_PROCESSES = ("serve_multiplexed",)
"""Peers that use other processes."""
PEERS: dict[str, Callable[[Workload], Peer]] = {
    "set_adapters": SetAdapters,
    "hotswap": Hotswap,
    "peft_rows": PeftRows,
    "serve_multiplexed": ServeMultiplexed,
}
