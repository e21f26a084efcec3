"""Addresses inside documents: they may lead to the web, to a mailbox, or within the document.

Browsers and viewers drop tabs, line ends and leading spaces, read a backslash as a slash, and complete addresses
without a scheme (WHATWG URL, 4.4). So an address that they would change is refused before its form is checked.
"""

from __future__ import annotations

import re
import unicodedata

_WEB = re.compile(r"https?://[^/?#]+", re.IGNORECASE)
_MAILBOX = re.compile(r"mailto:", re.IGNORECASE)
_RELATIVE = re.compile(r"/?(?:[A-Za-z0-9._~%+@!$'()*,;=-][^:]*?)?(?:[/?#].*)?")
_UNSEEN = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def is_plain_address(text: str) -> bool:
    """Whether the address is http, https, mailto or relative, and every viewer reads it the same way."""
    if "\\" in text or text != text.strip() or any(unicodedata.category(c) in _UNSEEN for c in text):
        return False
    if _WEB.match(text) or _MAILBOX.match(text):
        return True
    return not text.startswith("//") and _RELATIVE.fullmatch(text) is not None


def address_in_pdf(data: bytes) -> str:
    """The text of a PDF's address, read as UTF-8 (ISO 32000-2, 12.6.4.8). UTF-16 leaves NULs, which are not plain."""
    return data.decode("utf-8", "replace")
