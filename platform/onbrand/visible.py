"""Refuse control characters and bidirectional overrides in users' text, the same at every entry point.

All else is accepted, visible or not: no-break and narrow spaces, joiners and non-joiners (Persian, Hindi, emoji),
soft hyphens, direction marks, variation selectors. Also makes foreign text safe to show in messages.
"""

from __future__ import annotations

import re
import unicodedata

from onbrand.errors import InvalidInput

TEXT_ENCODINGS = ("utf-8-sig", "utf-16")
"""Encodings of text files."""
_CONTROLS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_TURNING = "\u202a-\u202e\u2066-\u2069"
_HALVES = "\ud800-\udfff"
_HIDING = re.compile(f"[{_CONTROLS}{_TURNING}{_HALVES}]")
_LINE_ENDS = re.compile("[\t\n\r]")
_BREAKING = re.compile("[\u2028\u2029]")


def hidden_in(text: str, lines: bool = False) -> str | None:
    """The first refused character, as ``U+202E``; None if there is none.

    Args:
        lines: accept tabs and line ends, as in captions and prompts.
    """
    found = _HIDING.search(text) or (None if lines else _LINE_ENDS.search(text))
    return f"U+{ord(found[0]):04X}" if found else None


def must_be_visible(text: str, what: str, param: str, lines: bool = False) -> None:
    """Raise InvalidInput if the text, called `what` in the message, holds a refused character."""
    if (found := hidden_in(text, lines)) is not None:
        raise InvalidInput(f"{what} holds characters that cannot be seen ({found}); leave them out", param=param)


def must_be_name(name: str) -> str:
    """The name of a brand, a key or a job, stripped. Raises InvalidInput."""
    name = name.strip()
    if not 1 <= len(name) <= 200:
        raise InvalidInput("name must have 1 to 200 characters", param="name")
    must_be_visible(name, "name", "name")
    return name


def printed(text: str) -> str:
    """The text on one line, safe for a message or a log line: ``?`` replaces refused characters and line ends."""
    return _BREAKING.sub("?", _LINE_ENDS.sub("?", _HIDING.sub("?", text)))


def text_of(data: bytes) -> str:
    """Decode a text file: UTF-8, or UTF-16 with its mark, as Windows saves "Unicode"; line ends become ``\\n``.

    Raises:
        ValueError: neither encoding.
    """
    is_wide = data[:2] in (b"\xff\xfe", b"\xfe\xff") and len(data) > 2
    try:
        text = data.decode(TEXT_ENCODINGS[is_wide])
    except UnicodeDecodeError:
        raise ValueError("is not text in UTF-8, or in UTF-16 with a byte order mark") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def composed(text: str) -> str:
    """The text in NFC: macOS decomposes letters with marks in file names."""
    return unicodedata.normalize("NFC", text)
