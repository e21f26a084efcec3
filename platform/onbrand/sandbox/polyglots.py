"""Polyglot files: an image that is also an archive, a PDF that is also an HTML page."""

from __future__ import annotations

import struct

from onbrand.errors import UnsupportedMedia

_SNIFFED = 1024
_MARKUP = (b"<script", b"<html", b"<!doctype html", b"<svg", b"<iframe", b"<body", b"<?php")
_END_OF_ARCHIVE = b"PK\x05\x06"
_COMMENT_BYTES_MAX = 2**16


def must_be_one_thing(data: bytes, kind: str, shown: str, param: str = "files") -> None:
    """Raise UnsupportedMedia if a reader of PDF, zip or HTML would also accept `data`, a `kind`.

    Args:
        kind: the file's declared type: ``picture`` or ``PDF``.
        shown: the file's name, safe to show.
    """
    head = data[:_SNIFFED].lower()
    if kind != "PDF" and b"%pdf-" in head:
        raise _twofold(shown, kind, "a PDF", param)
    if any(mark in head for mark in _MARKUP):
        raise _twofold(shown, kind, "a page for browsers", param)
    if _is_archive(data):
        raise _twofold(shown, kind, "a zip archive", param)


def _twofold(shown: str, kind: str, other: str, param: str) -> UnsupportedMedia:
    return UnsupportedMedia(f"{shown} is a {kind} and {other} in one; save the {kind} anew", param=param)


def _is_archive(data: bytes) -> bool:
    """Whether the end holds a consistent zip directory (APPNOTE.TXT, 4.3.16)."""
    tail_at = max(0, len(data) - _COMMENT_BYTES_MAX - 22)
    at = data.rfind(_END_OF_ARCHIVE, tail_at)
    while at >= 0:
        if len(data) - at >= 22:
            num_entries, size, begin, comment = struct.unpack("<10xHIIH", data[at : at + 22])
            if begin + size <= at and at + 22 + comment <= len(data) and 46 * num_entries <= size:
                return True
        at = data.rfind(_END_OF_ARCHIVE, tail_at, at)
    return False
