"""A plain Ray Serve application that draws with diffusers: FastAPI in front of one pipeline, as in Ray's documentation.

No wall, no store, no queue of its own: an answer is the picture's PNG. Every brand's adapter is loaded at the start,
and `set_adapters` chooses one before each picture. `python -m benchmarks.lib.plain_serve` serves until its standard
input closes; it prints its address.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import ray
import torch
from fastapi import FastAPI, Response
from pydantic import BaseModel
from ray import serve
from ray.serve.config import HTTPOptions

from onbrand.engine.compilation import keep_memory
from onbrand.families.loading import load_pipeline
from tools.harness.platform_process import REPOSITORY, free_port

app = FastAPI()


class Wish(BaseModel):
    """One picture; `adapter` is "" for the base alone."""

    adapter: str
    prompt: str
    seed: int
    side: int
    steps: int
    guidance_scale: float


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=1000)
class Pipeline:
    """The pipeline, with all adapters of a folder loaded."""

    def __init__(self, family: str, base: str, folder: str) -> None:
        torch.set_num_threads(1)
        keep_memory()
        self._pipeline: Any = load_pipeline(family, Path(base), torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        for file in sorted(Path(folder).glob("*.safetensors")):
            self._pipeline.load_lora_weights(folder, weight_name=file.name, adapter_name=file.stem)

    def draw(self, wish: Wish) -> bytes:
        """The picture's PNG."""
        if wish.adapter:
            self._pipeline.enable_lora()
            self._pipeline.set_adapters(wish.adapter)
        elif self._pipeline.get_list_adapters():
            self._pipeline.disable_lora()
        image = self._pipeline(
            wish.prompt,
            width=wish.side,
            height=wish.side,
            num_inference_steps=wish.steps,
            guidance_scale=wish.guidance_scale,
            generator=torch.Generator().manual_seed(wish.seed),
        ).images[0]
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)
@serve.ingress(app)
class Front:
    """The HTTP interface."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    @app.post("/draw")
    async def draw(self, wish: Wish) -> Response:
        """Draw one picture."""
        return Response(await self._pipeline.draw.remote(wish), media_type="image/png")


def main(family: str, base: str, folder: str) -> None:
    """Serve until standard input closes."""
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'platform'}"}},
    )
    port = free_port()
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port), logging_config={"log_level": "ERROR"})
    serve.run(Front.bind(Pipeline.bind(family, base, folder)), name="plain", route_prefix="/")
    print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
