"""Validates addresses, proxies, tokens, headers and texts before a request is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import httpx

from onbrand.client.errors import InvalidArgument

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_HEADER = re.compile(r"[\x20-\x7e]*")
_HALF_CHARACTER = re.compile(r"[\ud800-\udfff]")
_NO_ADDRESS = (
    "the platform's address must begin with http:// or https:// and name a host, IPv6 in brackets: http://[::1]:8000; "
    "correct --url or ONBRAND_URL"
)
_SOCKS = (
    "the environment names a SOCKS proxy (ALL_PROXY, HTTPS_PROXY or HTTP_PROXY), which needs a package: "
    "pip install 'httpx[socks]', or unset it"
)
_NO_PROXY = (
    "the environment names a proxy that is no http:// or https:// address; correct ALL_PROXY, HTTPS_PROXY or "
    "HTTP_PROXY, or unset it"
)


def opened(base_url: str, **how: Any) -> httpx.Client:
    """An HTTP client for `base_url` with the environment's proxies; loopback addresses use no proxy.

    Raises InvalidArgument for an invalid address, and for a proxy that cannot be used.
    """
    url = _must_be_address(base_url)
    direct = {f"all://{host}": None for host in _LOOPBACK}
    try:
        return httpx.Client(base_url=url, mounts=direct, **how)
    except (ImportError, ValueError, httpx.InvalidURL) as problem:
        if url.host in {"localhost", "::1"} or url.host.startswith("127."):
            return httpx.Client(base_url=url, trust_env=False, **how)
        raise InvalidArgument(_SOCKS if isinstance(problem, ImportError) else _NO_PROXY) from None


def _must_be_address(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise InvalidArgument(_NO_ADDRESS) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidArgument(_NO_ADDRESS)
    return url


def must_be_token(token: str) -> str:
    """Return a bearer token or key. Raises InvalidArgument (without the token) if a header cannot contain it."""
    if not _TOKEN.fullmatch(token):
        raise InvalidArgument(
            "the token has characters that no token has (it is ASCII, without spaces or line ends); copy it anew, "
            "or log in again"
        )
    return token


def must_be_header(name: str, value: str) -> str:
    """Return a header's value. Raises InvalidArgument unless it is printable ASCII."""
    if not _HEADER.fullmatch(value):
        raise InvalidArgument(f"the header {name} takes printable ASCII only")
    return value


def must_be_text(value: Any, field: str = "a text") -> None:
    """Raise InvalidArgument, naming the field, for lone surrogates: bytes that were not UTF-8 when read."""
    if isinstance(value, str) and _HALF_CHARACTER.search(value):
        raise InvalidArgument(f"{field} has bytes that are not UTF-8; write it in UTF-8")
    if isinstance(value, Mapping):
        for name, part in value.items():
            must_be_text(part, str(name))
    if isinstance(value, list | tuple):
        for part in value:
            must_be_text(part, field)


def must_be_name(name: str) -> str:
    """Return a file's name. Raises InvalidArgument, naming the file, for bytes that are not UTF-8."""
    if _HALF_CHARACTER.search(name):
        shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise InvalidArgument(f"the name of the file '{shown}' is not in UTF-8; rename it")
    return name
