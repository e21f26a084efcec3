"""The three tiny bases, small random adapters of known seeds, and diffusers' own pipelines to compare with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.families.family import Family, load_family, load_pipeline
from onbrand.families.lora import read_adapter, serialize

FAMILIES = ("sd15", "sdxl", "flux")


def base_of(name: str) -> Path:
    """The base to test with: our own tiny flavour, or one below the folder ONBRAND_TEST_BASES."""
    if "ONBRAND_TEST_BASES" in os.environ:
        return Path(os.environ["ONBRAND_TEST_BASES"]) / name
    from onbrand.families.tiny import tiny_base

    return Path(tiny_base(name))


@cache
def family_of(name: str) -> Family:
    """One loaded family per process: drawing changes nothing, engines only add and remove hooks."""
    family = load_family(name, base_of(name))
    if name == "flux" and family.recommended.max_sequence_length == 512:  # a base without `onbrand.json`
        family.recommended = family.recommended.model_copy(update={"max_sequence_length": 32})
    return family


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    """Each family in turn."""
    return family_of(request.param)


@pytest.fixture
def sd15() -> Family:
    return family_of("sd15")


@dataclass(frozen=True)
class RandomAdapter:
    """A small random LoRA as a published file and as the engine uses it."""

    data: bytes
    use: AdapterUse


def adapter_bytes(family: Family, rank: int, seed: int, preset: str = "all", strength: float = 1.0) -> bytes:
    """The safetensors file of a random LoRA whose update is about a tenth of each layer's weight at strength 1."""
    targets = family.spec.targets[preset]
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, module in family.denoiser.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and f".{name}".endswith(tuple(f".{t}" for t in targets)):
            fan_in = module.weight[0].numel()
            a = torch.randn((rank, *module.weight.shape[1:]), generator=generator)
            b = torch.randn((len(module.weight), rank, *[1] * (module.weight.dim() - 2)), generator=generator)
            state[f"{name}.lora_A.weight"] = a / rank**0.5
            state[f"{name}.lora_B.weight"] = b * 0.1 * strength / fan_in**0.5
    return serialize(family, state, rank, targets, {})


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., RandomAdapter]:
    """`make_adapter(family, rank=8, seed=0, brand="acme", scale=1.0)`."""

    def make(
        family: Family, rank: int = 8, seed: int = 0, brand: str = "acme", scale: float = 1.0, preset: str = "all",
        strength: float = 1.0,
    ) -> RandomAdapter:
        data = adapter_bytes(family, rank, seed, preset, strength)
        key = AdapterKey(brand, f"{family.spec.name}-{rank}-{seed}-{preset}-{strength}")
        return RandomAdapter(data, AdapterUse(key, read_adapter(data, family), scale))

    return make


@pytest.fixture
def diffusers_picture(tmp_path: Path) -> Callable[..., torch.Tensor]:
    """`diffusers_picture(family, data, scale, **arguments)`: [3, H, W] by the plain pipeline with `load_lora_weights`."""

    def draw(family: Family, data: bytes | None, scale: float, seed: int, **arguments: object) -> torch.Tensor:
        pipeline = load_pipeline(family.spec.name, base_of(family.spec.name))
        if family.recommended.max_sequence_length:
            arguments["max_sequence_length"] = family.recommended.max_sequence_length
        if data is not None:
            path = tmp_path / "adapter.safetensors"
            path.write_bytes(data)
            pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="brand")
            pipeline.set_adapters("brand", scale)
        images = pipeline(generator=torch.Generator().manual_seed(seed), output_type="np", **arguments).images
        return torch.from_numpy(images[0]).permute(2, 0, 1)

    return draw
