"""What text of people must not hold, at every door alike: control characters, and what turns the reading direction.

Everything else is taken, seen or not: no-break and narrow spaces, joiners and non-joiners (Persian, Hindi, emoji), soft
hyphens, marks of direction, variation selectors. What is shown of foreign text in messages is made here too.
"""

from __future__ import annotations

import re
import unicodedata

from onbrand.errors import InvalidInput

TEXT_ENCODINGS = ("utf-8-sig", "utf-16")
"""Of text files."""
_CONTROLS = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
_TURNING = "\u202a-\u202e\u2066-\u2069"
_HALVES = "\ud800-\udfff"
_HIDING = re.compile(f"[{_CONTROLS}{_TURNING}{_HALVES}]")
_LINE_ENDS = re.compile("[\t\n\r]")
_BREAKING = re.compile("[\u2028\u2029]")


def hidden_in(text: str, lines: bool = False) -> str | None:
    """The first character that is refused, as ``U+202E``; None where there is none.

    Args:
        lines: tabs and ends of lines are taken, as captions and prompts may have them.
    """
    found = _HIDING.search(text) or (None if lines else _LINE_ENDS.search(text))
    return f"U+{ord(found[0]):04X}" if found else None


def must_be_visible(text: str, what: str, param: str, lines: bool = False) -> None:
    """Raise InvalidInput if the text, called `what` in the message, holds a character that is refused."""
    if (found := hidden_in(text, lines)) is not None:
        raise InvalidInput(f"{what} holds characters that cannot be seen ({found}); leave them out", param=param)


def printed(text: str) -> str:
    """The text on one line, safe to show in a message or a log line: a ``?`` for what is refused."""
    return _BREAKING.sub("?", _LINE_ENDS.sub("?", _HIDING.sub("?", text)))


def text_of(data: bytes) -> str:
    """What a text file says: UTF-8, or UTF-16 with its mark, as Windows saves "Unicode"; line ends are ``\\n``.

    Raises:
        ValueError: neither.
    """
    is_wide = data[:2] in (b"\xff\xfe", b"\xfe\xff") and len(data) > 2
    try:
        text = data.decode(TEXT_ENCODINGS[is_wide])
    except UnicodeDecodeError:
        raise ValueError("is not text in UTF-8, or in UTF-16 with a byte order mark") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def composed(text: str) -> str:
    """Letters with their marks as one character (NFC): macOS takes them apart in file names."""
    return unicodedata.normalize("NFC", text)
