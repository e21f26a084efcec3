"""The three tiny bases, random adapters with known seeds, and diffusers pipelines to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from onbrand.config import FAMILIES
from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.families.family import Family
from onbrand.families.loading import load_pipeline
from onbrand.families.lora import read_adapter
from tools.harness.tiny_families import adapter_bytes, base_of, family_of


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


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., RandomAdapter]:
    """`make_adapter(family, rank=8, seed=0, brand="acme", scale=1.0)`."""

    def make(
        family: Family,
        rank: int = 8,
        seed: int = 0,
        brand: str = "acme",
        scale: float = 1.0,
        preset: str = "all",
        strength: float = 1.0,
    ) -> RandomAdapter:
        data = adapter_bytes(family, rank, seed, preset, strength)
        key = AdapterKey(brand, f"{family.spec.name}-{rank}-{seed}-{preset}-{strength}")
        return RandomAdapter(data, AdapterUse(key, read_adapter(data, family), scale))

    return make


@pytest.fixture
def diffusers_picture(tmp_path: Path) -> Callable[..., torch.Tensor]:
    """`diffusers_picture(family, data, scale, seed, **arguments)`: [3, H, W] by the plain pipeline and its own LoRA."""

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
