"""Convert paths and hosts to URLs and back. Only this module builds and parses `file://` URLs, so quoting matches."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from onbrand.errors import ConfigurationError

_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, and lone surrogates, which Python uses for bytes that are not UTF-8."""
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"[0-9A-Za-z.:_%-]+")


def is_url(place: str) -> bool:
    """Whether a place is a URL and not a path."""
    return bool(_SCHEME.match(place))


def is_s3(place: str) -> bool:
    """Whether a place is on S3."""
    return place.startswith("s3://")


def file_url(path: Path) -> str:
    """The `file://` URL of an absolute path; characters that are special in URLs are quoted."""
    return path.as_uri()


def path_of_file_url(url: str, setting: str) -> Path:
    """The absolute path that `url` names.

    Args:
        setting: name of the setting that holds the URL, for the error.

    Raises ConfigurationError for another scheme, a host, a relative path, an unquoted `#` or `?` (the rest of the path
    would be lost), control characters, and bytes that are not UTF-8.
    """
    variable = f"ONBRAND_{setting.upper()}"
    if _UNUSABLE.search(url):
        raise ConfigurationError(f"{variable} has a control character, or bytes that are not UTF-8", param=setting)
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
        raise ConfigurationError(f"{variable} must be file:///absolute/folder", param=setting)
    if "#" in url or "?" in url:
        raise ConfigurationError(f"{variable} has a '#' or '?' in it; write %23 or %3F", param=setting)
    path = os.fsdecode(unquote_to_bytes(parts.path))
    return must_be_plain_path(Path(path), setting)


def must_be_plain_path(path: Path, setting: str) -> Path:
    """Return `path`.

    Raises ConfigurationError for control characters and for bytes that are not UTF-8: PostgreSQL, Arrow and Ray do not
    support all of them.
    """
    if _UNUSABLE.search(str(path)):
        shown = os.fsencode(path).decode("utf-8", "backslashreplace").encode("unicode_escape").decode()
        raise ConfigurationError(
            f"the path '{shown}' has a control character, or bytes that are not UTF-8; "
            f"choose another in ONBRAND_{setting.upper()}",
            param=setting,
        )
    return path


def http_url(host: str, port: int) -> str:
    """`http://host:port` for a caller on this machine: IPv6 in brackets, a wildcard address becomes loopback."""
    known = _ANY_ADDRESS.get(host, host)
    if ":" in known:
        known = f"[{known.replace('%', '%25', 1)}]"  # RFC 6874: the zone separator is quoted
    return f"http://{known}:{port}"


def must_be_host(host: str) -> str:
    """Return the address or host name to listen on, without brackets around IPv6. Raises ConfigurationError."""
    known = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not _HOST.fullmatch(known):
        raise ConfigurationError(
            "host must be an address or a name, like 127.0.0.1, ::1 or localhost; fix --host or ONBRAND_HOST",
            param="host",
        )
    return known
