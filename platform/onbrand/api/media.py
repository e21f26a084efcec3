"""Content types compared as RFC 9110 says: by their type, without case and without parameters."""

from __future__ import annotations

from email.message import Message

from starlette.datastructures import Headers

from onbrand.errors import InvalidInput

FORM = "multipart/form-data"
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})


def media_type_of(headers: Headers) -> str:
    """The type that a body says it has: ``image/png``; empty if it says none."""
    return plain_media_type(headers.get("content-type", ""))


def plain_media_type(text: str) -> str:
    """A content type in lower case, without its parameters."""
    return text.partition(";")[0].strip().lower()


def must_be_utf8_form(headers: Headers) -> None:
    """Raise InvalidInput for a form in another character set: some of Python's make text that no database holds."""
    message = Message()
    message["content-type"] = headers.get("content-type", "")
    charset = message.get_param("charset", "utf-8")
    if not isinstance(charset, str) or charset.lower() not in _CHARSETS:
        raise InvalidInput("send the form in UTF-8, or without a charset", param="Content-Type")
