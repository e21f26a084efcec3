"""Addresses in documents: which are plain, and which only appear so."""

from __future__ import annotations

import pytest

from onbrand.sandbox.document_links import address_in_pdf, is_plain_address

PLAIN = [
    "https://acme.example/brand?a=b:c#d", "HTTP://acme.example",
    "mailto:brand@acme.example?subject=Hi%20there", "https://acme.example/a b.pdf",
    "https://xn--acm-dma.example/\u00fc", "https://[2001:db8::1]/", "", "#page=2", "?a=b:c", "guides/logo.md",
    "./a.png", "../b.md#c", "/start", "www.acme.example", "www.acme.example/a:b", "a.md?at=12:30",
]  # fmt: skip
OTHERS = [
    b"\x01javascript:alert(1)", b"java\nscript:alert(1)", b"java\tscript:alert(1)", b"java\r\nscript:x",
    b" javascript:x", b"javascript :x", b"javascript\x00:x", b"\\\\evil\\share", b"\\/evil/share",
    b"/\\evil/share", b"//evil/share", b"https:\\\\evil\\share", b"https:/evil", b"https:evil",
    b"http:///evil", b"file:///etc/passwd", b"data:text/html,x", b"vbscript:x", b"JaVaScRiPt:x",
    b"ms-word:ofe|u|https://evil", b"search-ms:query=x", b"smb://evil/share", b"c:/windows",
    b"view-source:https://x", b"java\xc2\xadscript:x", b"java\xe2\x80\x8bscript:x", b"\xe2\x80\xaehttps://x",
    b"x\x7f", b"\xef\xbb\xbfjavascript:x", b"\xfe\xff\x00j\x00a\x00v\x00a", b"javascript%3Aalert(1):",
    b"javascript&colon;x:y", b"\xc2\x85javascript:x", b"https://acme.example/\r\nx",
    b"https://acme.example/\x1b", "\u2028javascript:x".encode(), b"\xff\xfej\x00a\x00", b"java script:x",
    b"mailto :a@b", b"http s://x", b"ht\ttps://x", b":javascript:x", b"&#106;s:x",
]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_an_address_of_the_web_or_of_the_document_is_plain(text: str) -> None:
    assert is_plain_address(text)


@pytest.mark.parametrize("data", OTHERS, ids=repr)
def test_what_a_viewer_would_change_or_start_is_not_plain(data: bytes) -> None:
    assert not is_plain_address(address_in_pdf(data))
