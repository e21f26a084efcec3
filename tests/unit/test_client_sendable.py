"""Values that the client refuses before it sends anything: URLs, proxies, tokens, headers, texts, file names."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from onbrand.client import InvalidArgument, Onbrand
from onbrand.client.sendable import opened

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


def client(token: str = "t") -> Onbrand:
    answer = httpx.Response(200, json={"data": [], "has_more": False})
    return Onbrand("http://test", token, transport=httpx.MockTransport(lambda request: answer))


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "http://::1:8000", "http://", "ftp://host", "http://[::1", "http://h:x"]
)
def test_an_address_that_is_none_is_refused_with_the_form_it_has(url: str) -> None:
    with pytest.raises(InvalidArgument, match=r"http://\[::1\]:8000"):
        Onbrand(url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://[::1]:8000", "http://localhost", "http://127.9.9.9"])
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://x", "http://127.0.0.1:9"])
def test_a_platform_on_this_machine_is_asked_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    http = opened(url)
    if not url.endswith("9.9.9") or not proxy.startswith("http"):
        assert http._transport_for_url(httpx.URL(url)) is http._transport


def test_another_machine_is_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    http = opened("https://onbrand.example")
    assert http._transport_for_url(httpx.URL("https://onbrand.example/v1")) is not http._transport


def test_a_socks_proxy_says_which_package_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(InvalidArgument, match=r"pip install 'httpx\[socks\]'"):
        Onbrand("https://onbrand.example")


def test_a_proxy_that_is_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "nonsense://word")
    with pytest.raises(InvalidArgument, match="ALL_PROXY") as refused:
        Onbrand("https://onbrand.example")
    assert "word" not in str(refused.value)


@pytest.mark.parametrize("token", ["tök", "t\n", "two words", "t\u2028", "\udcff", "t\0"])
def test_a_token_that_no_header_can_carry_is_refused_without_it(token: str) -> None:
    with pytest.raises(InvalidArgument, match="the token has characters") as refused:
        list(client(token).brands.list())
    assert token not in str(refused.value)


def test_a_header_of_other_characters_is_named() -> None:
    with pytest.raises(InvalidArgument, match="idempotency-key"):
        client().transport.send("POST", "/v1/x", idempotency_key="schlüssel")


def test_text_that_was_not_utf8_names_its_field_and_not_its_content() -> None:
    with pytest.raises(InvalidArgument, match="password has bytes that are not UTF-8") as refused:
        client().log_in("ada@acme.example", "geheim\udcfc")
    assert "geheim" not in str(refused.value)


def test_a_file_whose_name_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/logo-\xe9.png"))
    file.write_bytes(b"x")
    with pytest.raises(InvalidArgument, match=r"'logo-\\xe9\.png' is not in UTF-8; rename it"):
        client().assets.upload("acme", [file])
