"""Checks an adapter's file: its header and every number in it, read in pieces. Runs in the checking child.

The engine copies a published file into a slot unchanged. So everything that it would have to convert or refuse is
refused here: other kinds of adapters, text-encoder layers, and an alpha that is not folded into B. For another
trainer's file, which is about to be imported, the result says what an import would drop.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from onbrand.errors import AdapterRefused
from onbrand.lora_names import ImportOptions, must_be_plain_lora, must_be_settings, must_be_zeros
from onbrand.safetensors_header import (
    FOREIGN_METADATA_BYTES_MAX,
    HEADER_BYTES_MAX,
    LORA_METADATA,
    METADATA_BYTES_MAX,
    SafetensorsHeader,
    TensorFacts,
    must_be_plain_header,
)
from onbrand.sandbox.lora_norms import Norms
from onbrand.sandbox.results import CheckedWeights

_PIECE_BYTES = 2**22
_BITS: dict[str, tuple[str, int, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000, 0x8000_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000, 0x8000_0000),
    "F16": ("<u2", 0x7C00, 0x8000),
    "BF16": ("<u2", 0x7F80, 0x8000),
}
"""Type, exponent mask and sign mask: a value with all exponent bits set is infinite or NaN (IEEE 754-2019, 3.4)."""
_DORA = re.compile(r".*(lora_magnitude_vector|dora_scale)")
_TEXT_ENCODER = re.compile(r"(text_encoder|lora_te)")
_DOWN = ".lora_A.weight"


def check_weights(
    read: Callable[[int], bytes],
    num_bytes: int,
    options: ImportOptions | None = None,
    allow: Callable[[], object] = lambda: None,
) -> CheckedWeights:
    """Read a safetensors file.

    Args:
        read: returns exactly the requested number of the next bytes.
        num_bytes: size of the whole file.
        options: given for the import of another trainer's file, which may hold more metadata and must be a plain LoRA.
        allow: called before norms are computed, which takes longer than reading.

    Raises:
        AdapterRefused: the header is not plain, the adapter cannot be served unchanged, or a value is not finite.
    """
    head = read(min(8, num_bytes))
    size = int.from_bytes(head, "little")
    if len(head) == 8 and size <= HEADER_BYTES_MAX:
        head += read(min(size, num_bytes - 8))
    if options is not None:
        return _check_foreign(read, head, num_bytes, options, allow)
    header = must_be_plain_header(head, num_bytes, max_metadata=METADATA_BYTES_MAX)
    must_be_served(header)
    for name, facts in header.tensors.items():
        _must_be_finite(name, facts, read)
    return CheckedWeights(len(header.tensors))


def _check_foreign(
    read: Callable[[int], bytes], head: bytes, num_bytes: int, options: ImportOptions, allow: Callable[[], object]
) -> CheckedWeights:
    header = must_be_plain_header(head, num_bytes, max_metadata=FOREIGN_METADATA_BYTES_MAX, is_foreign=True)
    names = must_be_plain_lora(header, options.text_encoder)
    norms = Norms(names, header, must_be_settings(header.metadata), options)
    if names.text_pairs:
        allow()
    for name, facts in header.tensors.items():
        if norms.wants(name):
            data = read(facts.num_bytes)
            _must_be_finite(name, facts, io.BytesIO(data).read)
            norms.take(name, data, facts)
        else:
            _must_be_finite(name, facts, read, name in names.zeros)
    text_norm, norm = norms.of_text_and_all()
    return CheckedWeights(len(header.tensors), len(names.text_pairs), text_norm, norm)


def must_be_served(header: SafetensorsHeader) -> None:
    """Raise AdapterRefused for DoRA, biases, layers of a text encoder, or an alpha that is not the layer's rank."""
    for name in header.tensors:
        if _DORA.match(name):
            raise AdapterRefused("DoRA is not served; train a plain LoRA")
        if name.endswith(".bias"):
            raise AdapterRefused("LoRA biases are not served; train without them")
        if _TEXT_ENCODER.match(name):
            raise AdapterRefused("the adapter changes the text encoder, which is not served; train the denoiser alone")
    config = _config(header.metadata)
    if config.get("use_dora") or config.get("lora_bias"):
        raise AdapterRefused("DoRA and LoRA biases are not served; train a plain LoRA")
    for name, facts in header.tensors.items():
        if name.endswith(_DOWN):
            _must_be_folded(name.removesuffix(_DOWN), facts.shape[0], config)


def _config(metadata: dict[str, str]) -> dict[str, Any]:
    """The LoRA's configuration, without component prefixes; empty if the file has none, so that alpha is the rank."""
    try:
        config = json.loads(metadata.get(LORA_METADATA, "{}"))
    except (ValueError, RecursionError):
        raise AdapterRefused(f"the header's {LORA_METADATA} is not JSON") from None
    if not isinstance(config, dict):
        raise AdapterRefused(f"the header's {LORA_METADATA} is not a JSON object")
    return {key.partition(".")[2]: value for key, value in config.items()}


def _must_be_folded(layer: str, rank: int, config: dict[str, Any]) -> None:
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise AdapterRefused("the header's alpha_pattern is not a JSON object")
    alpha = patterns.get(layer.partition(".")[2], config.get("lora_alpha", rank))
    if alpha != rank or isinstance(alpha, bool):
        raise AdapterRefused(f"alpha of layer '{layer[:120]}' is not its rank, {rank}; fold alpha / rank into lora_B")


def _must_be_finite(name: str, facts: TensorFacts, read: Callable[[int], bytes], is_zero: bool = False) -> None:
    """Read a tensor. Raises AdapterRefused for a value that is not finite or, if `is_zero`, not zero."""
    kind, exponent, sign = _BITS.get(facts.dtype, ("<u1", 0, 0))
    for at in range(0, facts.num_bytes, _PIECE_BYTES):
        numbers = np.frombuffer(read(min(_PIECE_BYTES, facts.num_bytes - at)), kind)
        if exponent and bool(((numbers & exponent) == exponent).any()):
            raise AdapterRefused(f"the safetensors file is refused: {name} holds a value that is not finite")
        if is_zero and bool((numbers & ~np.array(sign, kind)).any()):
            must_be_zeros(name)
