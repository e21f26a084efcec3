"""A link is bound to bucket, key, method and time, and nothing of it can be changed."""

from __future__ import annotations

import time
from datetime import date
from urllib.parse import parse_qs, urlsplit

import pytest

from onbrand.errors import InvalidInput, Unauthenticated
from onbrand.storage import layout
from onbrand.storage.layout import Key
from onbrand.storage.links import LINK_SECONDS_MAX, LinkSigner, sign_link, verify_link

SECRET = "s" * 64
KEY = layout.generated_image("acme", date(2024, 12, 4), 1, "jpg")


def parts(link: str) -> dict[str, str]:
    """The arguments of `verify_link` as the files route takes them from a URL."""
    url = urlsplit(link)
    _, _, _, bucket, name = url.path.split("/", 4)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    return {"bucket": bucket, "name": name, "method": "GET", "secret": SECRET, **query}


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


def test_a_signer_does_not_show_its_secret() -> None:
    assert SECRET not in repr(LinkSigner(SECRET, "https://onbrand.test"))
