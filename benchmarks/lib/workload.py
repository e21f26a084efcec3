"""The common input of all peers: one picture per brand, with adapter file and request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.request import Request
from onbrand.families.family import Family
from onbrand.families.loading import load_pipeline
from onbrand.families.lora import attach, detach, extract, read_adapter, serialize
from tools.harness.engine_requests import engine_request

_SUBJECTS = ("square", "circle", "star", "triangle", "ring", "cross", "heart", "moon")
_COLORS = ("red", "blue", "green", "yellow", "black", "white", "orange")


@dataclass(frozen=True)
class Workload:
    """One picture per brand: adapter files and requests."""

    family: Family
    base: Path
    files: list[bytes]
    requests: list[Request]

    def pipeline(self) -> DiffusionPipeline:
        """diffusers' pipeline of the base, with the family's device and dtype. On a GPU it shares the family's weights,
        as a copy per peer would not fit."""
        pipeline = load_pipeline(self.family.spec.name, self.base, self.family.dtype)
        if self.family.device.type != "cpu":
            share_weights(pipeline, self.family.pipeline)
        return pipeline.to(self.family.device)

    def arguments(self, requests: list[Request]) -> dict[str, Any]:
        """Arguments for all requests in one call of the diffusers pipeline; size, steps and guidance must be equal."""
        first = requests[0].parameters
        said: dict[str, Any] = {
            "prompt": [request.parameters.prompt for request in requests],
            "negative_prompt": [request.parameters.negative_prompt for request in requests],
            "height": first.height,
            "width": first.width,
            "num_inference_steps": first.num_inference_steps,
            "guidance_scale": first.guidance_scale,
        }
        if self.family.spec.name == "flux":
            said["true_cfg_scale"] = first.true_cfg_scale
            said["max_sequence_length"] = self.family.recommended.max_sequence_length or 512
        return said


def share_weights(pipeline: DiffusionPipeline, owner: DiffusionPipeline) -> None:
    """Make all models of `pipeline` use the tensors of `owner`, a pipeline of the same base."""
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            part.load_state_dict(owner.components[name].state_dict(), assign=True)


def random_adapter(family: Family, rank: int, seed: int, preset: str) -> bytes:
    """The file of a LoRA with random weights on the targets of `preset`."""
    targets = family.spec.targets[preset]
    attach(family.denoiser, rank, targets, seed)
    state = extract(family.denoiser)
    detach(family.denoiser)
    generator = torch.Generator().manual_seed(seed)
    for name, value in state.items():
        if ".lora_B." in name:
            state[name] = torch.randn(value.shape, generator=generator) * 0.02
    return serialize(family, state, rank, targets, {})


def workload(
    family: Family, base: Path, num_brands: int, rank: int, steps: int | None, preset: str, side: int | None = None
) -> Workload:
    """A workload with the base's recommended guidance.

    Args:
        steps: None: the base's recommendation.
        side: of the pictures, in pixels; None: small.
    """
    files = [random_adapter(family, rank, seed, preset) for seed in range(num_brands)]
    uses = [AdapterUse(AdapterKey(f"b{n}", str(n)), read_adapter(data, family)) for n, data in enumerate(files)]
    advice = family.recommended
    side = side or min(advice.resolution or 512, 64)
    numbers: dict[str, Any] = {"height": side, "width": side, "negative_prompt": "blurry"}
    numbers |= {"num_inference_steps": steps or advice.num_inference_steps, "guidance_scale": advice.guidance_scale}
    numbers |= {"true_cfg_scale": advice.true_cfg_scale or 1.0}
    requests = [
        engine_request(str(n), use.key.brand_id, prompt(n), n, adapters=(use,), **numbers) for n, use in enumerate(uses)
    ]
    return Workload(family, base, files, requests)


def prompt(n: int) -> str:
    """A prompt, different for each n below 56."""
    return f"a {_COLORS[n % len(_COLORS)]} {_SUBJECTS[n % len(_SUBJECTS)]} on a white card"
