"""The protocol between a checking child and its parent: frames of a JSON object and bytes, with their lengths in front.

Neither side understands anything else: a child that was taken over can send false answers, but only in this form.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

HEAD = struct.Struct("<IQ")
MESSAGE_BYTES_MAX = 2**18


class BrokenFrame(Exception):
    """The received bytes are not a valid frame."""


def head_of(message: dict[str, Any], num_bytes: int) -> bytes:
    """A frame without its bytes: the two lengths and the object."""
    text = json.dumps(message, allow_nan=False).encode()
    return HEAD.pack(len(text), num_bytes) + text


def read_head(read: Callable[[int], bytes], bytes_max: int) -> tuple[dict[str, Any], int]:
    """The object of the next frame, and how many bytes follow it.

    Args:
        read: returns exactly the requested number of bytes.

    Raises:
        BrokenFrame: the frame is longer than the limits or holds no object.
    """
    message_bytes, num_bytes = HEAD.unpack(read(HEAD.size))
    if message_bytes > MESSAGE_BYTES_MAX or num_bytes > bytes_max:
        raise BrokenFrame("the frame is longer than its limit")
    try:
        message = json.loads(read(message_bytes))
    except (ValueError, RecursionError):
        raise BrokenFrame("the frame holds no JSON") from None
    if not isinstance(message, dict):
        raise BrokenFrame("the frame holds no object")
    return message, num_bytes
