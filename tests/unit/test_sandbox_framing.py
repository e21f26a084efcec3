"""Messages between a sandbox process and its parent: a malformed one is refused before it is read."""

from __future__ import annotations

import io

import pytest

from onbrand.sandbox.framing import HEAD, MESSAGE_BYTES_MAX, BrokenFrame, head_of, read_head


class Counted(io.BytesIO):
    """Bytes that count how many of them were requested."""

    asked = 0

    def read(self, size: int | None = -1) -> bytes:
        self.asked += size or 0
        return super().read(size)


def test_a_frame_comes_out_as_it_went_in() -> None:
    stream = Counted(head_of({"name": "día"}, 7) + b"1234567")
    assert read_head(stream.read, 7) == ({"name": "día"}, 7)
    assert stream.read(7) == b"1234567"


@pytest.mark.parametrize(
    ("message_bytes", "num_bytes"), [(2, 101), (2, 2**63), (MESSAGE_BYTES_MAX + 1, 0), (2**32 - 1, 0)]
)
def test_a_frame_over_the_limits_is_refused_by_its_head(message_bytes: int, num_bytes: int) -> None:
    stream = Counted(HEAD.pack(message_bytes, num_bytes) + b"{}")
    with pytest.raises(BrokenFrame, match="limit"):
        read_head(stream.read, 100)
    assert stream.asked == HEAD.size


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"1", b'"a"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(BrokenFrame):
        read_head(io.BytesIO(HEAD.pack(len(text), 0) + text).read, 0)


def test_numbers_that_are_none_are_not_said() -> None:
    with pytest.raises(ValueError):
        head_of({"a": float("nan")}, 0)
