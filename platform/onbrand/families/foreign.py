"""Other trainers' LoRA files, made into ours: kohya's, ai-toolkit's, diffusers'. Read by diffusers' own converters.

diffusers leaves out what it does not know and goes on. Here a file is read whole or refused: all that it adds to its
layers' weights must be found again in what was made of it. Writing kohya's format is in `families.kohya`.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import safetensors.torch
import torch
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import Tensor, nn

from onbrand.errors import AdapterRefused
from onbrand.families import lora
from onbrand.families.family import Family
from onbrand.families.lora import METADATA_KEY
from onbrand.safetensors_header import (
    FOREIGN_METADATA_BYTES_MAX,
    PairNames,
    must_be_plain_lora,
    must_be_plain_safetensors,
)

ADAPTER = "foreign"
FileKind = Literal["kohya", "diffusers"]
_FLUX_WIDTH = 3072
"""The only width at which diffusers takes a kohya file's `linear1` apart."""
_FLUX_PREFIX = "lora_unet_single_blocks_"
_MLP_RATIO = 4
_SAME = 1e-4
"""Relative difference of two sums of squares in float32 that is rounding."""
_REFUSED_CONFIG = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "use_qalora",
    "alora_invocation_tokens",
)
_PATTERN = re.compile(r"\^?[A-Za-z0-9_.]{1,200}")
_MISFITS = (
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)
_TAIL = re.compile(r".*\.(?:transformer_blocks|resnets|attentions|downsamplers|upsamplers)\.\d+\.(.+)")


@dataclass(frozen=True)
class ForeignLora:
    """What a file holds, as diffusers loads it.

    Args:
        layers: (A, B) by PEFT's module path, float32, as the converters gave them.
        config: of PEFT, where the file brings one; only what scales.
        energy: the sum of all squares of what the file adds to its layers' weights.
        dtype: of the file.
    """

    kind: FileKind
    layers: dict[str, tuple[Tensor, Tensor]]
    config: dict[str, Any] | None
    energy: float
    dtype: torch.dtype


@dataclass(frozen=True)
class OwnLora:
    """The same adapter as the platform publishes it: one rank everywhere, alpha = rank.

    Args:
        state: by PEFT key, as `lora.serialize` takes it.
    """

    state: dict[str, Tensor]
    rank: int
    targets: tuple[str, ...]


def read_foreign(data: bytes, family: Family) -> ForeignLora:
    """Read a LoRA file of another trainer for this base. Nothing is attached yet.

    Raises:
        AdapterRefused: not a plain safetensors file of a plain LoRA, values that are not finite, DoRA, text-encoder
            layers, or a layer for which diffusers' converters know no place in this family.
    """
    header = must_be_plain_safetensors(data, max_metadata=FOREIGN_METADATA_BYTES_MAX)
    pairs = must_be_plain_lora(header)
    raw = safetensors.torch.load(data)
    dtype = raw[pairs[0].down].dtype
    tensors = {name: value.float() for name, value in raw.items()}
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise AdapterRefused(f"the file is refused: {name[:120]} holds values that are not finite")
    config = _config(header.metadata, family.spec.component)
    energy = sum(_energy(tensors[pair.down], tensors[pair.up]) * _scale(pair, tensors, config) ** 2 for pair in pairs)
    kind: FileKind = "kohya" if any(pair.down.endswith(".lora_down.weight") for pair in pairs) else "diffusers"
    converted = _converted(_with_alpha_folded(tensors, pairs), family)
    layers = _layers(converted, family)
    _must_fit(layers, family)
    return ForeignLora(kind, layers, config, energy, dtype)


@contextmanager
def attached(foreign: ForeignLora, family: Family) -> Iterator[OwnLora]:
    """diffusers loads it into the family's denoiser, which draws with it inside; it is as before afterwards.

    Raises:
        AdapterRefused: the base has not all of its layers, or others; something of the file got lost or was scaled
            otherwise on the way; its rank is over the family's bound; or it adds nothing at all.
    """
    try:
        _attach(foreign, family)
        scales = _scales(family.denoiser)
        if set(scales) != set(foreign.layers):
            _refuse(family, f"{len(set(scales) ^ set(foreign.layers))} of its layers do not match")
        yield _own(foreign, family, scales)
    finally:
        family.denoiser.unload_lora()  # type: ignore[operator]


def _refuse(family: Family, why: str) -> NoReturn:
    raise AdapterRefused(f"the file does not fit the {family.spec.title} base of this platform: {why}")


def _energy(down: Tensor, up: Tensor) -> float:
    """The squared Frobenius norm of up @ down, by r x r matrices: tr((U'U)(DD')).

    It stays when layers are renamed or a stack of layers is cut into its parts, and changes when anything is lost.
    """
    d, u = down.flatten(1).double(), up.flatten(1).double()
    return float(((u.T @ u) * (d @ d.T)).sum())


def _scale(pair: PairNames, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> float:
    """alpha / rank as the file means it: its own tensor, else PEFT's configuration, else 1."""
    rank = tensors[pair.down].shape[0]
    if pair.alpha is not None:
        return float(tensors[pair.alpha].reshape(())) / rank
    if config is None:
        return 1.0
    path = pair.layer.split(".", 1)[-1]
    alpha = next((value for key, value in config["alpha_pattern"].items() if _is_of(key, path)), config["lora_alpha"])
    return alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank


def _is_of(pattern: str, path: str) -> bool:
    """Whether PEFT applies a pattern's value to this layer (`peft.utils.get_pattern_key`)."""
    return re.match(rf"(.*\.)?({pattern})$", path) is not None


def _config(metadata: Mapping[str, str], prefix: str) -> dict[str, Any] | None:
    """What scales in the file's own PEFT configuration. All else of it is left out: it could name code to import."""
    try:
        said = json.loads(metadata.get(METADATA_KEY, "{}")).items()
    except (ValueError, AttributeError, RecursionError):
        raise AdapterRefused(f"the header's {METADATA_KEY} is not a JSON object") from None
    config = {key.removeprefix(f"{prefix}."): value for key, value in said if key.startswith(f"{prefix}.")}
    if not config:
        return None
    if refused := next((name for name in _REFUSED_CONFIG if config.get(name)), None):
        raise AdapterRefused(f"the file was made with {refused}, which is not served; train a plain LoRA")
    patterns = {name: config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    numbers = [config.get("r"), config.get("lora_alpha"), *(n for each in patterns.values() for n in _values(each))]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise AdapterRefused(f"the header's {METADATA_KEY} has no r and lora_alpha that are numbers")
    return {
        "r": int(config["r"]),
        "lora_alpha": config["lora_alpha"],
        **patterns,
        "use_rslora": config.get("use_rslora") is True,
    }


def _values(pattern: object) -> Iterable[Any]:
    if not isinstance(pattern, dict) or not all(_PATTERN.fullmatch(key) for key in pattern):
        raise AdapterRefused(f"the patterns in the header's {METADATA_KEY} are not names of layers")
    return pattern.values()


def _with_alpha_folded(tensors: Mapping[str, Tensor], pairs: Iterable[PairNames]) -> dict[str, Tensor]:
    """The same layers with alpha = rank: diffusers forgets some layers' alpha (FLUX' `final_layer`)."""
    folded = dict(tensors)
    for pair in pairs:
        if pair.alpha is not None:
            rank = tensors[pair.down].shape[0]
            folded[pair.up] = tensors[pair.up] * (float(tensors[pair.alpha].reshape(())) / rank)
            folded[pair.alpha] = torch.tensor(float(rank))
    return folded


def _converted(tensors: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """What diffusers' converters make of the file: keys of diffusers, with or without PEFT's names."""
    pipeline: Any = family.pipeline
    try:
        if family.spec.name == "flux":
            apart = _linear1_apart(tensors, family)
            state = pipeline.lora_state_dict(tensors) if tensors else {}
            state = {_with_prefix(key, family): value for key, value in state.items()} | apart
        else:
            state, _, _ = pipeline.lora_state_dict(tensors, unet_config=pipeline.unet.config, return_lora_metadata=True)
    except _MISFITS as problem:
        raise AdapterRefused(
            f"diffusers reads no {family.spec.title} LoRA in this file ({type(problem).__name__}); it was made for "
            "another family, or in a format other than kohya's, ai-toolkit's and diffusers'"
        ) from None
    return {key: value for key, value in state.items() if not key.endswith(".alpha")}


def _with_prefix(key: str, family: Family) -> str:
    """diffusers' converter forgets the component of the layers outside FLUX' blocks, and then leaves them out."""
    known = ("transformer.", "text_encoder.")
    return key if key.startswith(known) or "lora_" not in key else f"{family.spec.component}.{key}"


def _linear1_apart(tensors: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """q, k, v and mlp of the single blocks' `linear1`, taken out of `tensors`, for bases that are not 3072 wide."""
    width = int(family.denoiser.inner_dim)  # type: ignore[arg-type]
    apart: dict[str, Tensor] = {}
    if width == _FLUX_WIDTH:
        return apart
    for down in [key for key in tensors if key.startswith(_FLUX_PREFIX) and key.endswith("_linear1.lora_down.weight")]:
        layer = down.removesuffix(".lora_down.weight")
        a, b = tensors.pop(down), tensors.pop(f"{layer}.lora_up.weight")
        tensors.pop(f"{layer}.alpha", None)
        block = f"transformer.single_transformer_blocks.{layer.removeprefix(_FLUX_PREFIX).removesuffix('_linear1')}"
        for part, rows in zip(
            ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            b.split([width, width, width, _MLP_RATIO * width]),
            strict=True,
        ):
            apart |= {f"{block}.{part}.lora_A.weight": a, f"{block}.{part}.lora_B.weight": rows}
    return apart


def _layers(converted: Mapping[str, Tensor], family: Family) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) by module path. Raises AdapterRefused for keys of another component, or none at all."""
    prefix = f"{family.spec.component}."
    strange = sorted(key for key in converted if not key.startswith(prefix))
    if strange or not converted:
        example = f" (for example {strange[0][:120]})" if strange else ""
        _refuse(family, f"{len(strange) or 'all'} of its keys are of something else{example}")
    state = {key.removeprefix(prefix): value for key, value in converted.items()}
    if not any("lora_A" in key for key in state):
        state = convert_unet_state_dict_to_peft(state)
    paths = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    if {f"{path}.lora_{side}.weight" for path in paths for side in "AB"} != set(state):
        _refuse(family, "some of its keys are no lora_A or lora_B of a layer")
    return {path: (state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"]) for path in paths}


def _must_fit(layers: Mapping[str, tuple[Tensor, Tensor]], family: Family) -> None:
    """Raise AdapterRefused unless the base has every layer, in its shape. (diffusers would log all that differ.)"""
    modules = dict(family.denoiser.named_modules())
    for path, (a, b) in layers.items():
        module = modules.get(path)
        if not isinstance(module, nn.Linear | nn.Conv2d):
            _refuse(family, f"it has no layer '{path[:120]}' that a LoRA can change")
        wanted = lora.pair_shapes(module, a.shape[0])
        if (tuple(a.shape), tuple(b.shape)) != wanted:
            _refuse(family, f"layer '{path[:120]}' has other shapes there; it was made for another one")


def _attach(foreign: ForeignLora, family: Family) -> None:
    prefix, pipeline = family.spec.component, family.pipeline
    state = {
        f"{prefix}.{path}.lora_{side}.weight": value
        for path, pair in foreign.layers.items()
        for side, value in zip("AB", pair, strict=True)
    }
    metadata = None
    if foreign.config is not None:
        config = foreign.config | {"target_modules": sorted(foreign.layers)}
        metadata = {f"{prefix}.{name}": value for name, value in config.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of names that are the end of others
            family.denoiser.load_lora_adapter(  # type: ignore[operator]
                state, prefix=prefix, adapter_name=ADAPTER, metadata=metadata, _pipeline=pipeline
            )
    except _MISFITS as problem:
        _refuse(family, f"diffusers does not load it ({type(problem).__name__})")


def _scales(denoiser: nn.Module) -> dict[str, float]:
    """Of every layer that now has the adapter, by its path."""
    return {
        name: float(module.scaling[ADAPTER])  # type: ignore[union-attr,index]
        for name, module in denoiser.named_modules()
        if ADAPTER in getattr(module, "lora_A", {})
    }


def _own(foreign: ForeignLora, family: Family, scales: Mapping[str, float]) -> OwnLora:
    """Each layer with its scale folded in, without what adds nothing, and filled up with zeros to one rank."""
    energy = sum(_energy(a, b) * scales[path] ** 2 for path, (a, b) in foreign.layers.items())
    if abs(energy - foreign.energy) > _SAME * foreign.energy:
        _refuse(family, "something of it got lost or was scaled otherwise when diffusers read it")
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
    """[rank, ...] and [out, rank, ...]: the same product."""
    more = rank - a.shape[0]
    zeros_a, zeros_b = a.new_zeros((more, *a.shape[1:])), b.new_zeros((b.shape[0], more, *b.shape[2:]))
    return torch.cat([a, zeros_a]).contiguous(), torch.cat([b, zeros_b], dim=1).contiguous()


def _targets(paths: set[str], denoiser: nn.Module) -> tuple[str, ...]:
    """Names for `target_modules` that mean exactly these layers: short ones, else their whole paths."""
    modules = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    plain = {name.removesuffix(".base_layer") for name in modules if ".lora_" not in name}
    short = tuple(sorted({found[1] if (found := _TAIL.fullmatch(path)) else path for path in paths}))
    meant = {name for name in plain if f".{name}".endswith(tuple(f".{target}" for target in short))}
    return short if meant == paths else tuple(sorted(paths))
