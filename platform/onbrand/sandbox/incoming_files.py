"""Incoming files that stay on disk until their turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from onbrand.sandbox.results import is_zip


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file that is not in memory yet.

    Args:
        head: its first four bytes.
        size: its size in bytes.
        read: reads all bytes, anew at each call.
    """

    head: bytes
    size: int
    read: Callable[[], Awaitable[bytes]]


Content = bytes | SentFile
"""The bytes of a file, or a file that is still to be read."""


async def bytes_of(content: Content) -> bytes:
    """All bytes, now in the caller's memory."""
    return await content.read() if isinstance(content, SentFile) else content


def size_of(content: Content) -> int:
    """The size in bytes, without reading the file."""
    return content.size if isinstance(content, SentFile) else len(content)


def is_archive(content: Content) -> bool:
    """Whether the file begins like a zip archive; only its head is used."""
    return is_zip(content.head if isinstance(content, SentFile) else content)
