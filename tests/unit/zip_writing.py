"""Writes zip archives by hand, and lists what the sandbox reads from them."""

from __future__ import annotations

import struct
import zlib

from onbrand.config import Limits
from onbrand.sandbox.archives import unpack
from onbrand.sandbox.results import Packed

LIMITS = Limits()
PICTURE = b"\x89PNG of pixels"


def archive(*entries: tuple[bytes, bytes], flags: int = 0, extra: bytes = b"", comment: bytes = b"") -> bytes:
    """An archive written by hand, so that names are exactly the given bytes. `extra` belongs to the first entry."""
    body, directory = b"", b""
    for index, (name, data) in enumerate(entries):
        packed = zlib.compress(data, wbits=-15)
        middle = struct.pack("<5H3I", 20, flags, 8, 0, 33, zlib.crc32(data), len(packed), len(data))
        more = extra if index == 0 else b""
        lengths = struct.pack("<2H", len(name), len(more))
        directory += b"PK\x01\x02\x14\0" + middle + lengths + struct.pack("<3H2I", 0, 0, 0, 0, len(body)) + name + more
        body += b"PK\x03\x04" + middle + lengths + name + more + packed
    count = len(entries)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), len(comment))
    return body + directory + end + comment


def found_in(data: bytes) -> list[Packed]:
    return list(unpack(data, LIMITS, "all.zip"))


def names_in(*names: bytes, flags: int = 0, extra: bytes = b"") -> list[str]:
    found = found_in(archive(*[(name, PICTURE) for name in names], flags=flags, extra=extra))
    assert all(one.data == PICTURE for one in found)
    return [one.filename for one in found]
