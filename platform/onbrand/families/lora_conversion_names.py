"""Maps layer names of a foreign file to layers of a base. Names of the base's own layers are matched directly.
diffusers' converters read the original models' names (sgm's for UNets, Black Forest Labs' for FLUX) and diffusers' old
ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import Tensor, nn

from onbrand.errors import AdapterRefused
from onbrand.families import lora
from onbrand.families.family import Family
from onbrand.lora_names import PairNames

Layers = dict[str, tuple[Tensor, Tensor]]
"""(A, B) by module path."""
MISFITS = (
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)
"""Exceptions that diffusers raises for unexpected tensors."""
_FLUX_WIDTH = 3072
"""The only width at which diffusers splits `linear1` of FLUX' original."""
_MLP_RATIO = 4
_KOHYA = re.compile(r"lora_(unet|transformer)_")
_ORIGINAL = {
    "unet": re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)[._]"),
    "transformer": re.compile(
        r"(double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|guidance_in|final_layer)(?![A-Za-z])"
    ),
}
_OLD = (".lora.down.weight", "_lora.down.weight")


def placed(pairs: Sequence[PairNames], tensors: Mapping[str, Tensor], family: Family) -> Layers:
    """The file's layers by their paths in the base, each in its layer's shape.

    Raises AdapterRefused naming a layer that the base lacks, or has in another shape.
    """
    modules = {
        name: module for name, module in family.denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    underscored = {name.replace(".", "_"): name for name in modules}
    layers: Layers = {}
    for pair in pairs:
        path = _own_path(pair.name, family.spec.component, modules, underscored)
        a, b = tensors[pair.down], tensors[pair.up]
        found = {path: (a, b)} if path is not None else _converted(pair, a, b, family)
        for name, (down, up) in found.items():
            if name in layers:
                refuse(family, f"'{pair.layer[:120]}' names a layer that another one names too, '{name}'")
            layers[name] = _fitted(pair, name, down, up, modules.get(name), family)
    return layers


def refuse(family: Family, why: str) -> NoReturn:
    """Raise AdapterRefused for a file that is not for this base."""
    raise AdapterRefused(f"the file does not fit the {family.spec.title} base of this platform: {why}")


def _own_path(name: str, component: str, modules: Mapping[str, object], underscored: Mapping[str, str]) -> str | None:
    """The module of this name, as diffusers, PEFT or kohya write it; None if there is none."""
    if kohya := _KOHYA.match(name):
        return underscored.get(name[kohya.end() :])
    path = name.removeprefix(f"{component}.")
    return path if path in modules else None


def _converted(pair: PairNames, a: Tensor, b: Tensor, family: Family) -> Layers:
    """The layers that diffusers' converters make of this one."""
    given = _for_converters(pair, a, b, family)
    try:
        state = _read_by_diffusers(given, family)
    except MISFITS as problem:
        refuse(
            family, f"diffusers reads no {family.spec.title} layer in '{pair.layer[:120]}' ({type(problem).__name__})"
        )
    if not any("lora_A" in key for key in state):
        state = convert_unet_state_dict_to_peft(state)
    paths = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    if not paths or {f"{path}.lora_{side}.weight" for path in paths for side in "AB"} != set(state):
        refuse(family, f"diffusers makes no layer of '{pair.layer[:120]}'")
    return {path: (state[f"{path}.lora_A.weight"], state[f"{path}.lora_B.weight"]) for path in paths}


def _for_converters(pair: PairNames, a: Tensor, b: Tensor, family: Family) -> dict[str, Tensor]:
    """One layer under names that the converters know; its alpha is folded in already."""
    component = family.spec.component
    if pair.down.endswith(_OLD) and component == "unet":
        bare = pair.name.removeprefix("unet.")
        return {f"unet.{bare}{key.removeprefix(pair.layer)}": value for key, value in ((pair.down, a), (pair.up, b))}
    kohya = _KOHYA.match(pair.name)
    name = pair.name[kohya.end() :] if kohya else pair.name.removeprefix(f"{component}.")
    if not _ORIGINAL[component].match(name):
        refuse(family, f"it has no layer '{pair.layer[:120]}' that a LoRA can change")
    layer = f"lora_unet_{name.replace('.', '_')}"
    alpha = torch.tensor(float(a.shape[0]))
    return {f"{layer}.lora_down.weight": a, f"{layer}.lora_up.weight": b, f"{layer}.alpha": alpha}


def _read_by_diffusers(given: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The tensors under diffusers' keys, without the component."""
    pipeline: Any = family.pipeline
    if family.spec.component == "unet":
        state, _, _ = pipeline.lora_state_dict(given, unet_config=pipeline.unet.config, return_lora_metadata=True)
    else:
        state = _linear1_apart(given, family) or pipeline.lora_state_dict(given)
    prefix = f"{family.spec.component}."
    # diffusers' converter omits the component for layers outside FLUX' blocks
    return {key.removeprefix(prefix): value for key, value in state.items() if not key.endswith(".alpha")}


def _linear1_apart(given: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """q, k, v and mlp of a single block's `linear1` for bases that are not 3072 wide; empty for other layers."""
    width = int(family.denoiser.inner_dim)  # type: ignore[arg-type]
    found = re.fullmatch(r"lora_unet_single_blocks_(\d+)_linear1\.lora_down\.weight", next(iter(given)))
    if found is None or width == _FLUX_WIDTH:
        return {}
    a, b, _ = given.values()
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    rows = b.split([width, width, width, _MLP_RATIO * width])
    block = f"single_transformer_blocks.{found[1]}"
    return {
        f"{block}.{part}.lora_{side}.weight": value
        for part, up in zip(parts, rows, strict=True)
        for side, value in (("A", a), ("B", up))
    }


def _fitted(
    pair: PairNames, path: str, a: Tensor, b: Tensor, module: nn.Linear | nn.Conv2d | None, family: Family
) -> tuple[Tensor, Tensor]:
    """The matrices in the shapes of the base's layer; 1x1 convolutions and matrices are interchangeable."""
    if module is None:
        refuse(family, f"it has no layer '{path[:120]}' that a LoRA can change (named {pair.layer[:120]} in the file)")
    wanted = lora.pair_shapes(module, a.shape[0])
    if (_as_matrix(a.shape), _as_matrix(b.shape)) != tuple(map(_as_matrix, wanted)):
        refuse(
            family,
            f"layer '{path[:120]}' has other shapes there, {wanted[0]} and {wanted[1]}, than '{pair.layer[:120]}', "
            f"{tuple(a.shape)} and {tuple(b.shape)}; it was made for another one",
        )
    return a.reshape(wanted[0]), b.reshape(wanted[1])


def _as_matrix(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[:2]) if tuple(shape[2:]) == (1, 1) else tuple(shape)
