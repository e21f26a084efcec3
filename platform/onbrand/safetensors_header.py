"""Bounds of a safetensors file, checked before any tensor library loads it.

The safetensors readers accept a 67 MB header of a million empty tensors; this module refuses it in microseconds.
`onbrand.sandbox.weights` checks finiteness, `onbrand.families.lora` the fit to a base, and `onbrand.lora_names`
interprets the names of layers.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from onbrand.errors import AdapterRefused

ADAPTER_BYTES_MAX = 2 * 2**30
TENSORS_MAX = 20_000
LORA_METADATA = "lora_adapter_metadata"
"""Metadata key under which diffusers stores a LoRA's configuration as JSON."""
HEADER_BYTES_MAX = 4 * 2**20
METADATA_BYTES_MAX = 64 * 2**10
FOREIGN_METADATA_BYTES_MAX = 2 * 2**20
"""A higher limit, because other trainers write every tag of every image into their files."""
_DIMS_MAX = 8
_SIDE_MAX = 2**31
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_ALPHA_ITEM_BYTES = _ITEM_BYTES | {"F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
"""Some trainers write a layer's alpha as an integer or in double precision."""
_ALPHA = ".alpha"
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,255}")


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One entry of the header."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A header within its bounds; tensors in the order of their bytes, which are contiguous."""

    tensors: dict[str, TensorFacts]
    metadata: dict[str, str]


def must_be_plain_safetensors(
    data: bytes | memoryview,
    max_bytes: int = ADAPTER_BYTES_MAX,
    max_tensors: int = TENSORS_MAX,
    max_metadata: int = METADATA_BYTES_MAX,
    is_foreign: bool = False,
) -> SafetensorsHeader:
    """Read the header of a whole file in memory. Arguments and errors as for `must_be_plain_header`."""
    size = int.from_bytes(data[:8], "little")
    head = bytes(data[: 8 + min(size, HEADER_BYTES_MAX)])
    return must_be_plain_header(head, len(data), max_bytes, max_tensors, max_metadata, is_foreign)


def must_be_plain_header(
    head: bytes,
    num_bytes: int,
    max_bytes: int = ADAPTER_BYTES_MAX,
    max_tensors: int = TENSORS_MAX,
    max_metadata: int = METADATA_BYTES_MAX,
    is_foreign: bool = False,
) -> SafetensorsHeader:
    """Read a file's header.

    Args:
        head: the file's first bytes: eight with the header's length, then the header.
        num_bytes: of the whole file.
        is_foreign: True for another trainer's file: a layer's alpha may be an integer or in double precision.

    Raises:
        AdapterRefused: too big, truncated, too many tensors, invalid names, dtypes other than F16, BF16 and F32,
            shapes that do not match their bytes, gaps, overlaps, or duplicate keys.
    """
    if num_bytes > max_bytes:
        _refuse(f"it has {num_bytes} bytes; the limit is {max_bytes}")
    header = _parsed(_header_bytes(head))
    metadata = _must_be_metadata(header.pop("__metadata__", {}), max_metadata)
    if not 1 <= len(header) <= max_tensors:
        _refuse(f"it has {len(header)} tensors; 1 to {max_tensors} are accepted")
    places = {name: _must_be_entry(name, entry, is_foreign) for name, entry in header.items()}
    _must_tile(places, num_bytes - len(head))
    in_order = sorted(places.items(), key=lambda place: place[1][1])
    return SafetensorsHeader({name: facts for name, (facts, _, _) in in_order}, metadata)


def _refuse(why: str) -> NoReturn:
    raise AdapterRefused(f"the safetensors file is refused: {why}")


def _header_bytes(data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > HEADER_BYTES_MAX:
        _refuse(f"its header must have 2 to {HEADER_BYTES_MAX} bytes")
    if 8 + size > len(data):
        _refuse("it is cut short within its header")
    return data[8 : 8 + size]


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_without_twins,
            parse_constant=lambda name: _refuse(f"its header holds {name}"),
        )
    except (ValueError, RecursionError):
        _refuse("its header is not JSON")
    if not isinstance(header, dict):
        _refuse("its header is not a JSON object")
    return header


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("a key appears twice in its header")
    return found


def _must_be_metadata(metadata: object, most: int) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("its metadata is not a map of strings")
    if sum(len(name) + len(value) for name, value in metadata.items()) > most:
        _refuse(f"its metadata has more than {most} characters")
    return metadata


def _must_be_entry(name: str, entry: object, is_foreign: bool) -> tuple[TensorFacts, int, int]:
    """Facts, begin and end of one tensor. Errors show its name only if the name is valid."""
    if not _TENSOR_NAME.fullmatch(name):
        _refuse("a tensor's name is not letters, digits, '_', '.' and '-'")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(f"the entry of {name} must hold dtype, shape and data_offsets")
    known = _ALPHA_ITEM_BYTES if is_foreign and name.endswith(_ALPHA) else _ITEM_BYTES
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in known:
        _refuse(f"the dtype of {name} is none of {', '.join(known)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape, least=1) or len(shape) > _DIMS_MAX:
        _refuse(f"the shape of {name} must be at most {_DIMS_MAX} sizes from 1 to {_SIDE_MAX}")
    if not _are_counts(offsets, least=0, most=ADAPTER_BYTES_MAX) or len(offsets) != 2:
        _refuse(f"the data_offsets of {name} must be two numbers")
    num_bytes = math.prod(shape) * known[entry["dtype"]]
    if offsets[1] - offsets[0] != num_bytes:
        _refuse(f"the shape of {name} does not fit its bytes")
    return TensorFacts(entry["dtype"], tuple(shape), num_bytes), offsets[0], offsets[1]


def _are_counts(values: object, least: int, most: int = _SIDE_MAX) -> bool:
    return isinstance(values, list) and all(type(value) is int and least <= value <= most for value in values)


def _must_tile(places: dict[str, tuple[TensorFacts, int, int]], num_bytes: int) -> None:
    """Tensors must be contiguous from the first byte to the last: no gap, no overlap, no trailing bytes."""
    at = 0
    for _, begin, end in sorted(places.values(), key=lambda place: place[1]):
        if begin != at:
            _refuse("its tensors overlap or leave gaps")
        at = end
    if at != num_bytes:
        _refuse("it is cut short, or bytes follow its tensors")
