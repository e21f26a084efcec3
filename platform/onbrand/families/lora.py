"""LoRA on a family's denoiser: attach, extract, save, read, refuse. The file format is diffusers' own (PEFT keys).

Reading refuses files that do not fit the base exactly; diffusers would load another family's file with zero keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from onbrand.errors import AdapterRefused
from onbrand.families.family import Family
from onbrand.safetensors_header import LORA_METADATA, SafetensorsHeader, must_be_plain_safetensors

ADAPTER = "brand"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class LayerWeights:
    """One layer's update: y += scale * B (A x).

    Args:
        a: [r, in] of a linear layer, [r, in, kh, kw] of a convolution.
        b: [out, r], with alpha / r folded in.
    """

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class AdapterWeights:
    """A validated adapter: its layers by module path in the denoiser, and its largest rank."""

    layers: dict[str, LayerWeights]
    rank: int
    metadata: dict[str, str]

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self.layers.values() for t in (layer.a, layer.b))


def attach(denoiser: nn.Module, rank: int, targets: tuple[str, ...], seed: int) -> None:
    """Put a trainable float32 LoRA (alpha = rank, A gaussian, B zero; Hu et al. 2021) on the layers of `targets`."""
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
    for parameter in trainable(denoiser):
        parameter.data = parameter.data.float()


def detach(denoiser: nn.Module) -> None:
    """Remove the LoRA; the base is as before."""
    denoiser.unload_lora()  # type: ignore[operator]


def trainable(denoiser: nn.Module) -> list[nn.Parameter]:
    """The LoRA's parameters, always in the same order."""
    return [parameter for parameter in denoiser.parameters() if parameter.requires_grad]


def extract(denoiser: nn.Module) -> dict[str, Tensor]:
    """The LoRA's tensors by PEFT key (`<module>.lora_A.weight`, `<module>.lora_B.weight`), detached."""
    state = get_peft_model_state_dict(denoiser, adapter_name=ADAPTER)
    return {key: value.detach().clone().contiguous() for key, value in state.items()}


def restore(denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put extracted tensors back into an attached LoRA. Raises AdapterRefused if a key or a shape is not its own."""
    own = extract(denoiser)
    if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in own.items()}:
        raise AdapterRefused("the saved tensors are of another LoRA: rank, targets or base differ")
    set_peft_model_state_dict(denoiser, dict(state), adapter_name=ADAPTER)


def serialize(
    family: Family, state: Mapping[str, Tensor], rank: int, targets: tuple[str, ...], header: Mapping[str, str]
) -> bytes:
    """The safetensors file of extracted tensors: diffusers keys, and `lora_adapter_metadata` beside `header`.

    Without that metadata diffusers guesses alpha, and a file of r=16, alpha=4 draws four times too strong.
    """
    prefix = family.spec.component
    config = {"r": rank, "lora_alpha": rank, "target_modules": sorted(targets), "lora_bias": False, "use_dora": False}
    metadata = {"format": "pt", **header}
    metadata[LORA_METADATA] = json.dumps({f"{prefix}.{k}": v for k, v in config.items()}, sort_keys=True)
    tensors = {f"{prefix}.{key}": state[key].detach().cpu().contiguous() for key in sorted(state)}
    return safetensors.torch.save(tensors, metadata=metadata)


def read_adapter(data: bytes | memoryview | Path, family: Family) -> AdapterWeights:
    """Read and check a LoRA file for this base.

    The tensors of a file mapped into memory (a writable view of it) stay in place, if they are float32 and alpha =
    rank, as in published files. So processes that map one file share its pages.

    Raises:
        AdapterRefused: not a plain safetensors file, another family's, a layer that is not in the base, shapes that do
            not fit, a rank over the family's bound, DoRA, text-encoder layers, or a value that is not finite.
    """
    raw = data.read_bytes() if isinstance(data, Path) else data
    header = must_be_plain_safetensors(raw)
    pairs = _pairs(_tensors(raw, header), family.spec.component, family.spec.title)
    scales = _Scales(header.metadata, family.spec.component)
    modules = dict(family.denoiser.named_modules())
    layers = {name: _layer(name, a, b, modules, scales) for name, a, b in pairs}
    rank = max(layer.a.shape[0] for layer in layers.values())
    if rank > family.spec.rank_max:
        raise AdapterRefused(f"the adapter's rank is {rank}; at most {family.spec.rank_max} is served")
    return AdapterWeights(layers, rank, header.metadata)


def _tensors(raw: bytes | memoryview, header: SafetensorsHeader) -> dict[str, Tensor]:
    """The file's tensors: views of mapped data, copies of other data."""
    buffer = raw if isinstance(raw, memoryview) else bytearray(raw)
    at = len(raw) - sum(facts.num_bytes for facts in header.tensors.values())
    tensors: dict[str, Tensor] = {}
    for name, facts in header.tensors.items():
        dtype, num = _DTYPES[facts.dtype], math.prod(facts.shape)
        aligned = at % dtype.itemsize == 0
        source, offset = (buffer, at) if aligned else (bytearray(buffer[at : at + facts.num_bytes]), 0)
        tensors[name] = torch.frombuffer(source, dtype=dtype, count=num, offset=offset).view(facts.shape)
        at += facts.num_bytes
    return tensors


def _pairs(tensors: dict[str, Tensor], prefix: str, title: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(module path, A, B) for each layer; every key must belong to one."""
    downs = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    expected = {f"{name}.lora_{side}.weight" for name in downs for side in "AB"}
    strange = set(tensors) ^ expected
    if strange or not downs:
        example = f" (for example '{sorted(strange)[0][:120]}')" if strange else ""
        raise AdapterRefused(f"the file is not a plain LoRA with lora_A and lora_B for every layer{example}")
    for name in sorted(downs):
        if not name.startswith(f"{prefix}."):
            raise AdapterRefused(f"layer '{name[:120]}' is not of a {title} {prefix}; train it for this family")
        yield name.removeprefix(f"{prefix}."), tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]


class _Scales:
    """alpha / r of each layer, from the file's `lora_adapter_metadata`; 1 without it, as in diffusers."""

    def __init__(self, metadata: dict[str, str], prefix: str) -> None:
        try:
            config: dict[str, Any] = json.loads(metadata.get(LORA_METADATA, "{}"))
        except ValueError:
            raise AdapterRefused(f"the header's {LORA_METADATA} is not JSON") from None
        self._config = {key.removeprefix(f"{prefix}."): value for key, value in config.items()}
        if self._config.get("use_dora") or self._config.get("lora_bias"):
            raise AdapterRefused("DoRA and LoRA biases are not served; train a plain LoRA")

    def of(self, name: str, rank: int) -> float:
        """alpha / r of the layer `name`. Raises AdapterRefused if its alpha is not a number."""
        pattern = cast(dict[str, float], self._config.get("alpha_pattern") or {})
        alpha = pattern.get(name, self._config.get("lora_alpha", rank))
        if not isinstance(alpha, int | float) or isinstance(alpha, bool):
            raise AdapterRefused(f"the header's alpha for layer '{name[:120]}' is not a number")
        return float(alpha) / rank


def _layer(name: str, a: Tensor, b: Tensor, modules: dict[str, nn.Module], scales: _Scales) -> LayerWeights:
    module = modules.get(name)
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise AdapterRefused(f"layer '{name[:120]}' is not a linear or convolution layer of this base")
    rank = a.shape[0] if a.dim() else 0
    wanted_a, wanted_b = pair_shapes(module, rank)
    if rank == 0 or tuple(a.shape) != wanted_a or tuple(b.shape) != wanted_b:
        raise AdapterRefused(
            f"layer '{name[:120]}' has shapes {tuple(a.shape)} and {tuple(b.shape)}; this base needs "
            f"{('r', *wanted_a[1:])} and {(wanted_b[0], 'r', *wanted_b[2:])}: it was made for another base"
        )
    scale = scales.of(name, rank)
    a, b = a.float(), b.float().flatten(1)
    b = b if scale == 1 else b * scale
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise AdapterRefused(f"layer '{name[:120]}' holds values that are not finite")
    return LayerWeights(a, b)


def pair_shapes(module: nn.Linear | nn.Conv2d, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of A and B on this layer; empty if it cannot have any."""
    if isinstance(module, nn.Linear):
        return (rank, module.in_features), (module.out_features, rank)
    if module.groups != 1:
        return (), ()
    height, width = cast(tuple[int, int], module.kernel_size)
    return (rank, module.in_channels, height, width), (module.out_channels, rank, 1, 1)
