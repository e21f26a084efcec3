"""Files from outside that lie on disk until it is their turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from onbrand.storage.findings import is_zip


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file that is not read yet.

    Args:
        head: its first four bytes.
        size: how many bytes it has.
        read: all its bytes, read anew at each call.
    """

    head: bytes
    size: int
    read: Callable[[], Awaitable[bytes]]


Content = bytes | SentFile
"""A file that was read, or that will be."""


async def bytes_of(content: Content) -> bytes:
    """All bytes; who calls holds them from here on."""
    return await content.read() if isinstance(content, SentFile) else content


def size_of(content: Content) -> int:
    """How many bytes it has; nothing is read."""
    return content.size if isinstance(content, SentFile) else len(content)


def is_archive(content: Content) -> bool:
    """Whether it says of itself that it is a zip archive; nothing is read."""
    return is_zip(content.head if isinstance(content, SentFile) else content)
