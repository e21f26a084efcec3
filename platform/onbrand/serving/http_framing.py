"""Bounds on a request's framing: number of headers, and number of chunks for the bytes they hold.

h11 bounds bytes only, and spends some microseconds on each header and each chunk. Here lines are counted before h11
parses them, and chunks as they arrive.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import h11

HEADERS_MAX = 100
"""Header lines of a request, and of the trailers behind a body."""
FREE_CHUNKS = 128
"""Number of chunks that any body may have."""
BYTES_PER_CHUNK = 512
"""Bytes that further chunks must hold on average."""
CHUNK_LINE_BYTES = 256
"""Most bytes of a chunk's size line with its extensions."""
_LAST_CHUNK = re.compile(rb"0{1,20}[;\t\r ]")
_BLANK = (b"", b"\r")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*(?:\r|$)", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer that ends a connection."""

    status: int
    code: str
    detail: str


TOO_MANY_HEADERS = Refusal(431, "too_many_headers", f"the request has more than {HEADERS_MAX} headers; send fewer")
TOO_MUCH_FRAMING = Refusal(
    400,
    "bad_request",
    f"the body comes in more than {FREE_CHUNKS} chunks that hold fewer than {BYTES_PER_CHUNK} bytes on the average, or "
    f"with a line of more than {CHUNK_LINE_BYTES} bytes between them; send larger chunks, or Content-Length",
)

TWO_LENGTHS = Refusal(
    400, "bad_request", "the request has a Content-Length and a Transfer-Encoding; send one of them (RFC 9112, 6.1)"
)


def holds_request(data: bytes) -> bool:
    """True if `data` looks like a whole request: headers, and a body of the announced length or with a last chunk.

    A client that sends `Expect: 100-continue` waits for an answer to its headers (RFC 9110, 10.1.1), so they suffice.
    """
    head, end, body = data.partition(b"\r\n\r\n")
    if not end or _EXPECTS.search(head):
        return bool(end)
    if _CHUNKED.search(head):
        return body.endswith(b"0\r\n\r\n")
    length = _LENGTH.search(head)
    return length is None or len(body) >= int(length[1])


class BoundedConnection(h11.Connection):
    """h11's connection to a client, with these bounds.

    `refusal` is the bound that ended it, if one did; h11's own errors leave it None.
    """

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self.refusal: Refusal | None = None
        self._num_chunks = self._num_bytes = 0
        self._is_between_chunks = self._is_at_end = False

    def next_event(self) -> Any:
        """The next event of h11. Also raises RemoteProtocolError beyond the bounds."""
        ahead = b""
        if self.their_state is h11.IDLE:
            self._must_have_few_lines(self.trailing_data[0])
        elif self.their_state is h11.SEND_BODY and self._is_between_chunks:
            ahead = self.trailing_data[0].lstrip(b"\r\n")
            self._must_have_short_line(ahead)
        event = super().next_event()
        if event is h11.NEED_DATA and b"\n" in ahead and not self._is_at_end:
            self._is_between_chunks = False  # h11 took the chunk's line; none of its data is here
        if isinstance(event, h11.Request):
            self._num_chunks = self._num_bytes = 0
            names = [name for name, _ in event.headers]
            self._is_between_chunks = b"transfer-encoding" in names
            self._is_at_end = False
            if self._is_between_chunks and b"content-length" in names:
                self._refuse(TWO_LENGTHS)  # a proxy that uses the other length would see other requests after it
        elif isinstance(event, h11.Data):
            self._count(event)
        return event

    def _must_have_few_lines(self, ahead: bytes) -> None:
        """Check the number of a request's lines received so far: first line and headers."""
        lines = ahead.split(b"\n", HEADERS_MAX + 2)[:-1]
        if len(lines) == HEADERS_MAX + 2 and not any(line in _BLANK for line in lines):
            self._refuse(TOO_MANY_HEADERS)

    def _must_have_short_line(self, ahead: bytes) -> None:
        """Check the next chunk's line. After the last chunk come trailers, which count as headers."""
        self._is_at_end = self._is_at_end or _LAST_CHUNK.match(ahead) is not None
        if self._is_at_end:
            self._must_have_few_lines(ahead)
        elif len(ahead) > CHUNK_LINE_BYTES and b"\n" not in ahead[: CHUNK_LINE_BYTES + 1]:
            self._refuse(TOO_MUCH_FRAMING)

    def _count(self, data: h11.Data) -> None:
        self._num_chunks += data.chunk_end
        self._num_bytes += len(data.data)
        self._is_between_chunks = data.chunk_end
        if self._num_chunks > FREE_CHUNKS + self._num_bytes // BYTES_PER_CHUNK:
            self._refuse(TOO_MUCH_FRAMING)

    def _refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        raise h11.RemoteProtocolError(refusal.detail, error_status_hint=refusal.status)
