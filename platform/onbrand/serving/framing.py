"""What a request's framing may cost: so many headers, and no body whose chunks outweigh what they hold.

h11 bounds bytes only, and looks at each header and each chunk for some microseconds. Here lines are counted before h11
sees them, and chunks as they come.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import h11

HEADERS_MAX = 100
"""Header lines of a request, and of the trailers behind a body."""
FREE_CHUNKS = 128
"""Chunks that a body may have, whatever it holds."""
BYTES_PER_CHUNK = 512
"""What each further chunk holds on the average, at least."""
CHUNK_LINE_BYTES = 256
"""A chunk's size with its extensions."""
_LAST_CHUNK = re.compile(rb"0{1,20}[;\t\r ]")
_BLANK = (b"", b"\r")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection ends, as it is answered."""

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


class BoundedConnection(h11.Connection):
    """h11's connection to a client, with these bounds.

    `refusal` says which of them ended it, once one did; h11's own errors leave it None.
    """

    def __init__(self, max_incomplete_event_size: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size)
        self.refusal: Refusal | None = None
        self._num_chunks = self._num_bytes = 0
        self._is_between_chunks = self._is_at_end = False

    def next_event(self) -> Any:
        """h11's. Raises RemoteProtocolError beyond the bounds, too."""
        ahead = b""
        if self.their_state is h11.IDLE:
            self._must_have_few_lines(self.trailing_data[0])
        elif self.their_state is h11.SEND_BODY and self._is_between_chunks:
            ahead = self.trailing_data[0].lstrip(b"\r\n")
            self._must_have_short_line(ahead)
        event = super().next_event()
        if event is h11.NEED_DATA and b"\n" in ahead and not self._is_at_end:
            self._is_between_chunks = False  # the chunk's line was taken, and nothing of the chunk is here
        if isinstance(event, h11.Request):
            self._num_chunks = self._num_bytes = 0
            names = [name for name, _ in event.headers]
            self._is_between_chunks = b"transfer-encoding" in names
            self._is_at_end = False
            if self._is_between_chunks and b"content-length" in names:
                self._refuse(TWO_LENGTHS)  # a proxy that goes by the other one sees other requests behind it
        elif isinstance(event, h11.Data):
            self._count(event)
        return event

    def _must_have_few_lines(self, ahead: bytes) -> None:
        """Of a first line and headers, as far as they are here."""
        lines = ahead.split(b"\n", HEADERS_MAX + 2)[:-1]
        if len(lines) == HEADERS_MAX + 2 and not any(line in _BLANK for line in lines):
            self._refuse(TOO_MANY_HEADERS)

    def _must_have_short_line(self, ahead: bytes) -> None:
        """The next chunk's; behind the last one come trailers, which are headers."""
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
