"""An adapter's file from a worker: header and every number in it, read in pieces. Runs in the checking child."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onbrand.errors import AdapterRefused
from onbrand.safetensors_header import (
    FOREIGN_METADATA_BYTES_MAX,
    HEADER_BYTES_MAX,
    METADATA_BYTES_MAX,
    must_be_plain_header,
    must_be_plain_lora,
)

_PIECE_BYTES = 2**22
_EXPONENT: dict[str, tuple[str, int]] = {
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""A number is infinite or none when all bits of its exponent are set (IEEE 754-2019, 3.4)."""


def check_weights(read: Callable[[int], bytes], num_bytes: int, is_foreign: bool = False) -> int:
    """Read a safetensors file and return the number of its tensors.

    Args:
        read: the next bytes of the file, exactly as many as are asked for.
        num_bytes: of the whole file.
        is_foreign: another trainer's file, to be imported: it may hold more notes, and must be a plain LoRA.

    Raises:
        AdapterRefused: a header that is not plain, or a value that is not finite.
    """
    head = read(min(8, num_bytes))
    size = int.from_bytes(head, "little")
    if len(head) == 8 and size <= HEADER_BYTES_MAX:
        head += read(min(size, num_bytes - 8))
    most = FOREIGN_METADATA_BYTES_MAX if is_foreign else METADATA_BYTES_MAX
    header = must_be_plain_header(head, num_bytes, max_metadata=most)
    if is_foreign:
        must_be_plain_lora(header)
    for name, facts in header.tensors.items():
        _must_be_finite(name, facts.dtype, facts.num_bytes, read)
    return len(header.tensors)


def _must_be_finite(name: str, dtype: str, num_bytes: int, read: Callable[[int], bytes]) -> None:
    kind, exponent = _EXPONENT[dtype]
    for at in range(0, num_bytes, _PIECE_BYTES):
        numbers = np.frombuffer(read(min(_PIECE_BYTES, num_bytes - at)), kind)
        if bool(((numbers & exponent) == exponent).any()):
            raise AdapterRefused(f"the safetensors file is refused: {name} holds a value that is not finite")
