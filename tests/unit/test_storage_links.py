"""A link is bound to bucket, key, method and time, and no part of it can be changed."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from onbrand.config import Settings
from onbrand.errors import InvalidInput, Unauthenticated
from onbrand.storage import layout
from onbrand.storage.backends import LocalBackend
from onbrand.storage.layout import Key, incoming_file
from onbrand.storage.links import (
    LINK_SECONDS_MAX,
    Announced,
    sign_link,
    sign_upload,
    verify_link,
    verify_upload,
)

SECRET = "s" * 64
KEY = layout.generated_image("acme", date(2024, 12, 4), 1, "jpg")


def parts(link: str) -> dict[str, str]:
    """The arguments of `verify_link` as the files route takes them from a URL."""
    url = urlsplit(link)
    _, _, _, bucket, name = url.path.split("/", 4)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    return {"bucket": bucket, "name": name, "method": "GET", "secret": SECRET, **query}


WHAT = Announced("image/png", 1234, "a" * 64)
INCOMING = incoming_file("training-data", "acme", "0f1e2d3c-0000-4000-8000-000000000001")


def upload_parts(url: str) -> dict[str, Any]:
    """The arguments of `verify_upload` as the files route takes them from a URL."""
    given = parts(url)
    said = {name: given.pop(name) for name in ("type", "bytes", "sha256") if name in given}
    del given["method"]
    return {**given, "said": said}


@pytest.fixture
def announced() -> dict[str, Any]:
    return upload_parts(sign_upload(INCOMING, WHAT, 60, SECRET, "https://onbrand.test/").url)


@pytest.fixture
def genuine() -> dict[str, str]:
    return parts(sign_link(KEY, "GET", 60, SECRET, "https://onbrand.test/"))


def test_a_genuine_link_opens_its_key(genuine: dict[str, str]) -> None:
    assert verify_link(**genuine) == KEY


def test_a_link_stands_under_the_public_address() -> None:
    link = sign_link(KEY, "GET", 60, SECRET, "https://onbrand.test/")
    assert link.startswith("https://onbrand.test/v1/files/generated-content/acme/2024-12-04-001.jpg?expires=")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bucket", "models"),
        ("name", "globex/2024-12-04-001.jpg"),
        ("name", "acme/2024-12-04-002.jpg"),
        ("name", "acme/../globex/2024-12-04-001.jpg"),
        ("name", "acme/2024-12-04-001.jpg\n"),
        ("method", "DELETE"),
        ("method", "HEAD"),
        ("expires", "99999999999"),
        ("expires", "-1"),
        ("expires", ""),
        ("expires", "1e10"),
        ("expires", "\u0661"),
        ("signature", ""),
        ("signature", "A" * 43),
        ("signature", "\u00e9" * 43),
        ("secret", "t" * 64),
    ],
)
def test_a_link_with_anything_changed_is_refused(genuine: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(Unauthenticated):
        verify_link(**{**genuine, name: value})


def test_a_signature_padded_or_lengthened_is_refused(genuine: dict[str, str]) -> None:
    for signature in (genuine["signature"] + "=", genuine["signature"] + "A", genuine["signature"][:-1]):
        with pytest.raises(Unauthenticated):
            verify_link(**{**genuine, "signature": signature})


def test_an_old_link_is_refused_with_the_same_words_as_a_forged_one(
    genuine: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(**changes: str) -> str:
        with pytest.raises(Unauthenticated) as told:
            verify_link(**{**genuine, **changes})
        return told.value.message

    forged = words(signature="A" * 43)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert words() == forged


def test_parts_cannot_be_moved_between_one_another() -> None:
    link = parts(sign_link(Key("models", "acme/x/y.png"), "GET", 60, SECRET, "https://onbrand.test"))
    with pytest.raises(Unauthenticated):
        verify_link(**{**link, "bucket": "models\nacme", "name": "x/y.png"})


@pytest.mark.parametrize("seconds", [0, -1, LINK_SECONDS_MAX + 1])
def test_a_link_has_a_short_life(seconds: int) -> None:
    with pytest.raises(InvalidInput, match="seconds"):
        sign_link(KEY, "GET", seconds, SECRET, "https://onbrand.test")


def test_a_backend_does_not_show_its_secret(tmp_path: Path) -> None:
    assert SECRET not in repr(LocalBackend(tmp_path, SECRET, "https://onbrand.test"))


def test_an_upload_link_says_what_it_takes(announced: dict[str, Any]) -> None:
    assert verify_upload(**announced) == (INCOMING, WHAT)


def test_an_upload_link_without_a_hash_takes_any_bytes_of_the_size() -> None:
    link = sign_upload(INCOMING, Announced("application/pdf", 1), 60, SECRET, "https://onbrand.test")
    assert link.headers == {"Content-Type": "application/pdf", "Content-Length": "1"}
    assert verify_upload(**upload_parts(link.url))[1] == Announced("application/pdf", 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("type", "text/html"),
        ("type", ""),
        ("bytes", "1235"),
        ("bytes", "01234"),
        ("bytes", ""),
        ("sha256", "b" * 64),
        ("sha256", ""),
    ],
)
def test_an_upload_link_with_anything_else_announced_is_refused(
    announced: dict[str, Any], name: str, value: str
) -> None:
    with pytest.raises(Unauthenticated):
        verify_upload(**{**announced, "said": {**announced["said"], name: value}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bucket", "brand-documents"),
        ("name", "globex/incoming/0f1e2d3c-0000-4000-8000-000000000001"),
        ("name", "acme/logo-001.png"),
        ("expires", "99999999999"),
        ("signature", "A" * 43),
        ("signature", "\ud800" * 43),
        ("secret", "t" * 64),
    ],
)
def test_an_upload_link_with_anything_changed_is_refused(announced: dict[str, Any], name: str, value: str) -> None:
    with pytest.raises(Unauthenticated):
        verify_upload(**{**announced, name: value})


def test_a_link_to_get_is_none_to_upload_and_the_reverse(genuine: dict[str, str], announced: dict[str, Any]) -> None:
    reading = {name: value for name, value in genuine.items() if name != "method"}
    with pytest.raises(Unauthenticated):
        verify_upload(**reading, said={"type": "image/png", "bytes": "1234", "sha256": ""})
    with pytest.raises(Unauthenticated):
        verify_upload(**reading, said={})
    for method in ("GET", "HEAD", "PUT"):
        with pytest.raises(Unauthenticated):
            verify_link(**{name: value for name, value in announced.items() if name != "said"}, method=method)


def test_what_is_announced_cannot_move_into_the_end(announced: dict[str, Any]) -> None:
    said = announced["said"]
    moved = {**announced, "expires": f"{announced['expires']}\n{said['type']}", "said": {**said, "type": said["bytes"]}}
    with pytest.raises(Unauthenticated):
        verify_upload(**moved)


@pytest.mark.parametrize(
    ("facts", "param"),
    [
        (("image/png\nx", 1, None), "content_type"),
        (("IMAGE/PNG", 1, None), "content_type"),
        (("image/png; charset=utf-7", 1, None), "content_type"),
        (("image/png", 0, None), "bytes"),
        (("image/png", -1, None), "bytes"),
        (("image/png", 1, "A" * 64), "sha256"),
        (("image/png", 1, "a" * 63), "sha256"),
    ],
)
def test_what_cannot_be_announced_is_refused(facts: tuple[str, int, str | None], param: str) -> None:
    with pytest.raises(InvalidInput) as told:
        Announced(*facts)
    assert told.value.param == param


def test_an_upload_link_does_not_show_itself() -> None:
    link = sign_upload(INCOMING, WHAT, 60, SECRET, "https://onbrand.test")
    assert "signature" not in repr(link)


def test_only_the_incoming_folder_is_incoming() -> None:
    assert INCOMING.is_incoming
    assert not any(key.is_incoming for key in (KEY, Key("models", "acme/x/incoming"), Key("models", "incoming/x")))


@pytest.mark.parametrize("seconds", [0, LINK_SECONDS_MAX + 1])
def test_a_platform_whose_links_would_live_too_long_does_not_start(seconds: int) -> None:
    with pytest.raises(ValueError, match="link_seconds"):
        Settings(link_seconds=seconds)
