"""The tiny bases, loaded once a process, and small random adapters for them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch
from torch import nn

from onbrand.families.family import Family
from onbrand.families.loading import load_family
from onbrand.families.lora import serialize


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
