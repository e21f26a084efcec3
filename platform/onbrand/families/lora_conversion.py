"""Converts other trainers' LoRA files: kohya's, ai-toolkit's, ComfyUI's, PEFT's, diffusers'.

diffusers skips unknown tensors silently. This module reads a file in full or refuses it: the converted layers must add
the same to the base's weights as the file. Layers of text encoders are dropped if the importer allows it, and counted
and weighed. `lora_conversion_names` maps names to layers; `lora_kohya` writes kohya's format.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from onbrand.errors import AdapterRefused
from onbrand.families.family import Family
from onbrand.families.lora_conversion_names import MISFITS, Layers, placed, refuse
from onbrand.lora_names import (
    Dropped,
    ImportOptions,
    LoraNames,
    LoraSettings,
    PairNames,
    must_be_plain_lora,
    must_be_settings,
    must_be_zeros,
    scale_of,
)
from onbrand.safetensors_header import FOREIGN_METADATA_BYTES_MAX, must_be_plain_safetensors

ADAPTER = "foreign"
FileKind = Literal["kohya", "diffusers"]
_SAME = 1e-4
"""Largest relative difference of two sums of squares in float32 that counts as rounding."""
_TAIL = re.compile(r".*\.(?:transformer_blocks|resnets|attentions|downsamplers|upsamplers)\.\d+\.(.+)")


@dataclass(frozen=True)
class ForeignLora:
    """The content of a file, as diffusers loads it.

    Args:
        layers: (A, B) by PEFT's module path, float32, in the shapes of the base's layers.
        settings: of PEFT, if the file has them and they are not folded into B.
        energy: sum of squares of the file's additions to the denoiser's weights.
        dtype: of the file.
        dropped: the dropped text-encoder layers.
    """

    kind: FileKind
    layers: Layers
    settings: LoraSettings | None
    energy: float
    dtype: torch.dtype
    dropped: Dropped | None = None


@dataclass(frozen=True)
class OwnLora:
    """The same adapter in published form: one rank everywhere, alpha = rank.

    Args:
        state: by PEFT key, as `lora.serialize` takes it.
    """

    state: dict[str, Tensor]
    rank: int
    targets: tuple[str, ...]


def read_foreign(data: bytes, family: Family, options: ImportOptions = ImportOptions()) -> ForeignLora:
    """Read a LoRA file of another trainer for this base. Attaches nothing yet.

    Raises:
        AdapterRefused: not a plain safetensors file of a plain LoRA, values that are not finite, DoRA, text-encoder
            layers that may not be dropped, or a layer that this base does not have.
    """
    header = must_be_plain_safetensors(data, max_metadata=FOREIGN_METADATA_BYTES_MAX, is_foreign=True)
    names = must_be_plain_lora(header, options.text_encoder)
    settings = must_be_settings(header.metadata)
    raw = safetensors.torch.load(data)
    tensors = {name: value.float() for name, value in raw.items()}
    _must_be_values(tensors, names)
    scales = _Scales(names, tensors, settings, options)
    energy = scales.energy(names.pairs)
    kind: FileKind = "kohya" if any(".lora_down." in pair.down for pair in names.pairs) else "diffusers"
    own = settings.get(family.spec.component, settings.get(""))
    is_folded = own is None or any(pair.alpha for pair in names.pairs)
    layers = placed(names.pairs, scales.folded(names.pairs) if is_folded else tensors, family)
    dropped = None
    if names.text_pairs:
        lost = scales.energy(names.text_pairs)
        dropped = Dropped(len(names.text_pairs), math.sqrt(lost), math.sqrt(lost + energy))
    dtype = raw[names.pairs[0].down].dtype
    return ForeignLora(kind, layers, None if is_folded else own, energy, dtype, dropped)


@contextmanager
def attached(foreign: ForeignLora, family: Family) -> Iterator[OwnLora]:
    """Within the context, the file is loaded into the family's denoiser, which draws with it. Restored afterwards.

    Raises:
        AdapterRefused: the layers do not match the base's; a part of the file was lost or scaled differently; its rank
            is over the family's bound; or it adds nothing at all.
    """
    try:
        _attach(foreign, family)
        scales = _attached_scales(family.denoiser)
        if set(scales) != set(foreign.layers):
            refuse(family, f"{len(set(scales) ^ set(foreign.layers))} of its layers do not match")
        yield _own(foreign, family, scales)
    finally:
        family.denoiser.unload_lora()  # type: ignore[operator]


class _Scales:
    """alpha / rank of every layer of a file."""

    def __init__(
        self,
        names: LoraNames,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, LoraSettings],
        options: ImportOptions,
    ) -> None:
        self._tensors = tensors
        self._of = {
            pair.layer: scale_of(pair, tensors[pair.down].shape[0], _alpha(pair, tensors), settings, options)
            for pair in (*names.pairs, *names.text_pairs)
        }

    def energy(self, pairs: Iterable[PairNames]) -> float:
        """Sum of squares of these layers' additions to their weights."""
        return sum(
            _energy(self._tensors[pair.down], self._tensors[pair.up]) * self._of[pair.layer] ** 2 for pair in pairs
        )

    def folded(self, pairs: Sequence[PairNames]) -> dict[str, Tensor]:
        """The tensors of these layers with alpha = rank: diffusers loses some layers' alpha (FLUX' `final_layer`)."""
        tensors = {pair.down: self._tensors[pair.down] for pair in pairs}
        for pair in pairs:
            up, scale = self._tensors[pair.up], self._of[pair.layer]
            tensors[pair.up] = up if scale == 1 else up * scale
            if not torch.isfinite(tensors[pair.up]).all():
                raise AdapterRefused(f"the file is refused: {pair.up} times alpha / rank ({scale:.3g}) is not finite")
        return tensors


def _alpha(pair: PairNames, tensors: Mapping[str, Tensor]) -> float | None:
    return None if pair.alpha is None else float(tensors[pair.alpha].reshape(()))


def _must_be_values(tensors: Mapping[str, Tensor], names: LoraNames) -> None:
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise AdapterRefused(f"the file is refused: {name[:120]} holds values that are not finite")
    for name in names.zeros:
        if tensors[name].any():
            must_be_zeros(name)


def _energy(down: Tensor, up: Tensor) -> float:
    """The squared Frobenius norm of up @ down, by r x r matrices: tr((U'U)(DD')).

    It does not change if layers are renamed or a stack of layers is split, and changes if anything is lost.
    """
    d, u = down.flatten(1).double(), up.flatten(1).double()
    return float(((u.T @ u) * (d @ d.T)).sum().clamp(min=0))


def _attach(foreign: ForeignLora, family: Family) -> None:
    prefix, pipeline = family.spec.component, family.pipeline
    state = {
        f"{prefix}.{path}.lora_{side}.weight": value
        for path, pair in foreign.layers.items()
        for side, value in zip("AB", pair, strict=True)
    }
    metadata = None
    if (settings := foreign.settings) is not None:
        config: dict[str, Any] = asdict(settings)
        config["target_modules"] = sorted(foreign.layers)
        metadata = {f"{prefix}.{name}": value for name, value in config.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # about names that are suffixes of others
            family.denoiser.load_lora_adapter(  # type: ignore[operator]
                state, prefix=prefix, adapter_name=ADAPTER, metadata=metadata, _pipeline=pipeline
            )
    except MISFITS as problem:
        refuse(family, f"diffusers does not load it ({type(problem).__name__})")


def _attached_scales(denoiser: nn.Module) -> dict[str, float]:
    """The scale of every layer that now has the adapter, by its path."""
    return {
        name: float(module.scaling[ADAPTER])  # type: ignore[union-attr,index]
        for name, module in denoiser.named_modules()
        if ADAPTER in getattr(module, "lora_A", {})
    }


def _own(foreign: ForeignLora, family: Family, scales: Mapping[str, float]) -> OwnLora:
    """Each layer with its scale folded in, without ranks that add nothing, zero-padded to one common rank."""
    energy = sum(_energy(a, b) * scales[path] ** 2 for path, (a, b) in foreign.layers.items())
    if abs(energy - foreign.energy) > _SAME * foreign.energy:
        refuse(family, "something of it got lost or was scaled otherwise when diffusers read it")
    used = {path: _used(a, b * scales[path]) for path, (a, b) in foreign.layers.items()}
    rank = max(a.shape[0] for a, _ in used.values())
    if rank == 0:
        raise AdapterRefused("the file adds nothing: all its layers are zero")
    if rank > family.spec.rank_max:
        raise AdapterRefused(f"the adapter's rank is {rank}; at most {family.spec.rank_max} is served")
    kept = {path: _filled(a, b, rank) for path, (a, b) in used.items() if a.shape[0]}
    state = {
        f"{path}.lora_{side}.weight": value
        for path, pair in kept.items()
        for side, value in zip("AB", pair, strict=True)
    }
    if all(torch.equal(value.to(foreign.dtype).float(), value) for value in state.values()):
        state = {key: value.to(foreign.dtype) for key, value in state.items()}
    return OwnLora(state, rank, _targets(set(kept), family.denoiser))


def _used(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The ranks that add something."""
    keep = (a.flatten(1) != 0).any(1) & (b.flatten(1) != 0).any(0)
    return a[keep], b[:, keep]


def _filled(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """[rank, ...] and [out, rank, ...] with the same product, zero-padded."""
    more = rank - a.shape[0]
    zeros_a, zeros_b = a.new_zeros((more, *a.shape[1:])), b.new_zeros((b.shape[0], more, *b.shape[2:]))
    return torch.cat([a, zeros_a]).contiguous(), torch.cat([b, zeros_b], dim=1).contiguous()


def _targets(paths: set[str], denoiser: nn.Module) -> tuple[str, ...]:
    """Names for `target_modules` that match exactly these layers: short ones, else full paths."""
    modules = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    plain = {name.removesuffix(".base_layer") for name in modules if ".lora_" not in name}
    short = tuple(sorted({found[1] if (found := _TAIL.fullmatch(path)) else path for path in paths}))
    meant = {name for name in plain if f".{name}".endswith(tuple(f".{target}" for target in short))}
    return short if meant == paths else tuple(sorted(paths))
