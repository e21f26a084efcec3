"""Writes a published adapter with kohya's names: `lora_unet_*`, `lora_down`, `lora_up`, `alpha`. Free of torch.

No arithmetic: tensors are renamed, and FLUX's layers that are one layer in the original are joined block by block.
Written on download; stored files stay in diffusers' format. `lora_conversion` reads such files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np

from onbrand.config import FamilyName
from onbrand.errors import AdapterRefused
from onbrand.families.spec import SPECS
from onbrand.safetensors_header import LORA_METADATA, TensorFacts, must_be_plain_safetensors

_CELL: dict[str, type[np.generic]] = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
"""Numbers are moved as bit patterns, never interpreted, so any dtype works."""
_MLP_RATIO = 4
"""In FLUX' single blocks `proj_mlp` has four times as many outputs as `to_q` (FluxSingleTransformerBlock)."""

_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE: dict[str, tuple[str, ...]] = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in_in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in_out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in_in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in_out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in_in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in_out_layer",
    "proj_out": "final_layer_linear",
    "norm_out.linear": "final_layer_adaLN_modulation_1",
}
_SWAPPED = "norm_out.linear"
"""Its scale and shift are in the opposite order in the original."""
_BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A tensor of the published file: its facts and its bytes."""

    facts: TensorFacts
    data: memoryview

    def rows(self) -> np.ndarray:
        """[rows, columns] bit patterns; a convolution's kernel counts as columns."""
        return np.frombuffer(self.data, _CELL[self.facts.dtype]).reshape(self.facts.shape[0], -1)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's pair as published: alpha = rank."""

    down: _Matrix
    up: _Matrix

    @property
    def rank(self) -> int:
        return self.down.facts.shape[0]

    @property
    def num_outputs(self) -> int:
        return self.up.facts.shape[0]


@dataclass(frozen=True, slots=True)
class _Fused:
    """The parts of one kohya layer in order, each with its number of outputs; None has no update."""

    name: str
    parts: tuple[tuple[_Layer | None, int], ...]
    is_swapped: bool = False

    @property
    def layers(self) -> list[_Layer]:
        return [layer for layer, _ in self.parts if layer is not None]

    @property
    def rank(self) -> int:
        return sum(layer.rank for layer in self.layers)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the kohya file; each call of `make` builds its bytes anew."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], bytes]


def kohya_file(data: bytes, family: FamilyName) -> Iterator[bytes]:
    """The kohya variant of a published file, in pieces.

    Args:
        data: a published adapter: diffusers' keys, alpha = rank for every layer.
        family: `sd15`, `sdxl` or `flux`.

    SD 1.5 and SDXL keep diffusers' module paths with `_` for `.` (as diffusers' own `convert_state_dict_to_kohya`
    does). FLUX gets the original's names, with q, k, v (and the single blocks' mlp) fused: `down` stacks their downs,
    `up` has their ups on its diagonal, so that up @ down is the stack of their products.

    Raises AdapterRefused: not a file that the platform publishes.
    """
    header = must_be_plain_safetensors(data)
    layers = _layers(data, header.tensors)
    _must_have_alpha_of_rank(header.metadata)
    fused = _flux(layers) if SPECS[family].kohya_fuses_layers else _unet(layers)
    tensors = sorted((tensor for each in fused for tensor in _tensors(each)), key=lambda tensor: tensor.name)
    notes = _notes(header.metadata, _hash_of(tensors), family)
    tensors.sort(
        key=lambda tensor: tensor.dtype != "F32" or bool(tensor.shape)
    )  # larger tensors then start at a multiple of their item size
    yield _head(tensors, notes)
    for tensor in tensors:
        yield tensor.make()


def kohya_name(model_name: str) -> str:
    """The name of the file: ``flux-lora-v2-kohya.safetensors``."""
    return f"{model_name}-kohya.safetensors"


def _refuse(why: str) -> NoReturn:
    raise AdapterRefused(f"this adapter cannot be written in kohya's format: {why}")


def _layers(data: bytes, tensors: Mapping[str, TensorFacts]) -> dict[str, _Layer]:
    """Layers by module path, without the component's prefix."""
    matrices: dict[str, _Matrix] = {}
    at = 8 + int.from_bytes(data[:8], "little")
    for name, facts in tensors.items():
        matrices[name] = _Matrix(facts, memoryview(data)[at : at + facts.num_bytes])
        at += facts.num_bytes
    paths = [name.removesuffix(".lora_A.weight") for name in matrices if name.endswith(".lora_A.weight")]
    if {f"{path}.lora_{side}.weight" for path in paths for side in "AB"} != set(matrices):
        _refuse("it is not lora_A and lora_B for every layer")
    pairs = {path: (matrices[f"{path}.lora_A.weight"], matrices[f"{path}.lora_B.weight"]) for path in paths}
    if len({matrix.facts.dtype for matrix in matrices.values()}) != 1:
        _refuse("its tensors have different dtypes")
    return {path.split(".", 1)[1]: _Layer(*pair) for path, pair in pairs.items()}


def _must_have_alpha_of_rank(metadata: Mapping[str, str]) -> None:
    config = json.loads(metadata.get(LORA_METADATA, "{}"))
    settings = {key.split(".", 1)[1]: value for key, value in config.items() if "." in key}
    if settings.get("lora_alpha") != settings.get("r") or settings.get("alpha_pattern"):
        _refuse("its alpha is not its rank")


def _unet(layers: Mapping[str, _Layer]) -> Iterator[_Fused]:
    for path, layer in layers.items():
        yield _Fused(f"lora_unet_{path.replace('.', '_')}", ((layer, layer.num_outputs),))


def _flux(layers: Mapping[str, _Layer]) -> Iterator[_Fused]:
    blocks: dict[tuple[str, int], dict[str, _Layer]] = {}
    for path, layer in layers.items():
        if found := _BLOCK.fullmatch(path):
            blocks.setdefault((found[1], int(found[2])), {})[found[3]] = layer
        elif path in _TOP:
            yield _Fused(f"lora_unet_{_TOP[path]}", ((layer, layer.num_outputs),), path == _SWAPPED)
        else:
            _refuse(f"it has no name for the layer {path}")
    for (kind, number), members in blocks.items():
        original, names = ("double_blocks", _DOUBLE) if kind == "transformer_blocks" else ("single_blocks", _SINGLE)
        if strange := set(members) - {path for paths in names.values() for path in paths}:
            _refuse(f"it has no name for the layer {kind}.{number}.{min(strange)}")
        for name, paths in names.items():
            if any(path in members for path in paths):
                yield _Fused(f"lora_unet_{original}_{number}_{name}", _parts(paths, members))


def _parts(paths: Sequence[str], members: Mapping[str, _Layer]) -> tuple[tuple[_Layer | None, int], ...]:
    """Each path's layer and number of outputs. The numbers of layers without an update follow from the others."""
    known = {path: members[path].num_outputs for path in paths if path in members}
    width = min(num // (_MLP_RATIO if path == "proj_mlp" else 1) for path, num in known.items())
    sizes = {path: known.get(path, width * (_MLP_RATIO if path == "proj_mlp" else 1)) for path in paths}
    return tuple((members.get(path), sizes[path]) for path in paths)


def _tensors(fused: _Fused) -> Iterator[_Tensor]:
    """The layer's alpha (= rank, as everywhere), down and up; both matrices keep their dtype."""
    first, rank = fused.layers[0], fused.rank
    dtype, down, up = first.down.facts.dtype, first.down.facts.shape, first.up.facts.shape
    num_outputs = sum(size for _, size in fused.parts)
    yield _Tensor(f"{fused.name}.alpha", "F32", (), partial(struct.pack, "<f", rank))
    downs = [layer.down.data for layer in fused.layers]
    yield _Tensor(f"{fused.name}.lora_down.weight", dtype, (rank, *down[1:]), partial(b"".join, downs))
    yield _Tensor(f"{fused.name}.lora_up.weight", dtype, (num_outputs, rank, *up[2:]), partial(_up, fused))


def _up(fused: _Fused) -> bytes:
    """[outputs, rank]: the parts' ups on the diagonal; all bits zero is 0.0 in every dtype."""
    blocks = [layer.up.rows() for layer in fused.layers]
    if len(fused.parts) == 1:
        return (np.roll(blocks[0], len(blocks[0]) // 2, axis=0) if fused.is_swapped else blocks[0]).tobytes()
    up = np.zeros((sum(size for _, size in fused.parts), fused.rank), blocks[0].dtype)
    row = column = 0
    for layer, size in fused.parts:
        if layer is not None:
            up[row : row + size, column : column + layer.rank] = layer.up.rows()
            column += layer.rank
        row += size
    return up.tobytes()


def _hash_of(tensors: Iterable[_Tensor]) -> str:
    """SHA-256 of the tensors' bytes in the order of their names (sai_model_spec 1.0.1, hash_sha256)."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.make())
    return digest.hexdigest()


def _notes(metadata: Mapping[str, str], digest: str, family: FamilyName) -> dict[str, str]:
    """The published header, without the notes for diffusers and those about the original tensors."""
    kept = {name: value for name, value in metadata.items() if name not in (LORA_METADATA, "format")}
    return {**kept, "modelspec.hash_sha256": f"0x{digest}", "ss_network_module": SPECS[family].kohya_network}


def _head(tensors: Iterable[_Tensor], notes: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(sorted(notes.items()))}
    at = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * np.dtype(_CELL[tensor.dtype]).itemsize
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
