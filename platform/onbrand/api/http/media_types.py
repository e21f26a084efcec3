"""Content types, compared by RFC 9110: case-insensitive and without parameters."""

from __future__ import annotations

from email.message import Message

from starlette.datastructures import Headers

from onbrand.errors import InvalidInput

FORM = "multipart/form-data"
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})


def media_type_of(headers: Headers) -> str:
    """The body's media type from its Content-Type header, e.g. ``image/png``; empty without one."""
    return plain_media_type(headers.get("content-type", ""))


def plain_media_type(text: str) -> str:
    """A content type in lower case and without parameters."""
    return text.partition(";")[0].strip().lower()


def must_be_utf8_form(headers: Headers) -> None:
    """Raise InvalidInput for a form with another charset: some of Python's codecs yield text no database stores."""
    message = Message()
    message["content-type"] = headers.get("content-type", "")
    charset = message.get_param("charset", "utf-8")
    if not isinstance(charset, str) or charset.lower() not in _CHARSETS:
        raise InvalidInput("send the form in UTF-8, or without a charset", param="Content-Type")
