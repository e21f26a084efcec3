"""A hostile safetensors file is refused before a tensor library reads it."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from onbrand.errors import AdapterRefused
from onbrand.safetensors_header import HEADER_BYTES_MAX, must_be_plain_safetensors

ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def file_of(header: Any, num_bytes: int = 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(num_bytes)


def test_a_file_that_the_library_wrote_is_plain() -> None:
    data = save(
        {"unet.a.lora_A.weight": np.ones((4, 8), np.float16), "unet.a.lora_B.weight": np.ones((8, 4), np.float32)},
        {"modelspec.title": "acme"},
    )
    header = must_be_plain_safetensors(data)
    assert header.metadata == {"modelspec.title": "acme"}
    assert header.tensors["unet.a.lora_A.weight"].shape == (4, 8)
    assert sum(facts.num_bytes for facts in header.tensors.values()) == 4 * 8 * 2 + 8 * 4 * 4


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "header"),
        (b"\x10\x00", "header"),
        ((2**63).to_bytes(8, "little") + b"{}", "header"),
        ((HEADER_BYTES_MAX + 1).to_bytes(8, "little") + b"{}", "header"),
        ((100).to_bytes(8, "little") + b"{}", "cut short"),
        (file_of(b"not json"), "not JSON"),
        (file_of(b"\xff\xfe"), "not JSON"),
        (file_of(b"[" * 100_000), "not JSON"),
        (file_of(b"9" * 10_000), "not JSON"),
        (file_of([1, 2]), "not a JSON object"),
        (file_of({}), "0 tensors"),
        (file_of({"__metadata__": {"a": 1}, "w": ENTRY}), "metadata"),
        (file_of({"__metadata__": [], "w": ENTRY}), "metadata"),
        (file_of({"__metadata__": {"a": "x" * 70_000}, "w": ENTRY}), "metadata"),
        (file_of(b'{"w": {}, "w": {}}'), "twice"),
        (file_of(b'{"w": {"dtype": "F32", "dtype": "F32"}}'), "twice"),
        (file_of(b'{"w": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}'), "NaN"),
        (file_of({"../w": ENTRY}), "name"),
        (file_of({"w\x00": ENTRY}), "name"),
        (file_of({"w" * 300: ENTRY}), "name"),
        (file_of({"": ENTRY}), "name"),
        (file_of({"w": []}), "entry"),
        (file_of({"w": {**ENTRY, "more": 1}}), "entry"),
        (file_of({"w": {**ENTRY, "dtype": "F64"}}), "dtype"),
        (file_of({"w": {**ENTRY, "dtype": ["F32"]}}), "dtype"),
        (file_of({"w": {**ENTRY, "dtype": "I64"}}), "dtype"),
        (file_of({"w": {**ENTRY, "shape": [0]}}), "shape"),
        (file_of({"w": {**ENTRY, "shape": [-4]}}), "shape"),
        (file_of({"w": {**ENTRY, "shape": [True, 4]}}), "shape"),
        (file_of({"w": {**ENTRY, "shape": [1] * 9}}), "shape"),
        (file_of({"w": {**ENTRY, "shape": [2**40]}}), "shape"),
        (file_of({"w": {**ENTRY, "shape": "22"}}), "shape"),
        (file_of({"w": {**ENTRY, "shape": [2, 3]}}), "shape"),
        (file_of({"w": {**ENTRY, "shape": [65536, 65536, 65536, 65536]}}), "shape"),
        (file_of({"w": {**ENTRY, "data_offsets": [0]}}), "data_offsets"),
        (file_of({"w": {**ENTRY, "data_offsets": [16, 0]}}), "shape"),
        (file_of({"w": {**ENTRY, "data_offsets": [0.0, 16]}}), "data_offsets"),
        (file_of({"w": {**ENTRY, "data_offsets": [8, 24]}}, 24), "gaps"),
        (file_of({"w": ENTRY, "v": {**ENTRY, "data_offsets": [8, 24]}}, 24), "overlap"),
        (file_of({"w": ENTRY, "v": ENTRY}), "overlap"),
        (file_of({"w": ENTRY}, 15), "cut short"),
        (file_of({"w": ENTRY}, 17), "follow"),
    ],
)
def test_a_file_that_is_not_plain_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(AdapterRefused, match=why):
        must_be_plain_safetensors(data)


def test_a_file_over_the_limit_is_refused_by_its_size() -> None:
    with pytest.raises(AdapterRefused, match="the limit is 10"):
        must_be_plain_safetensors(file_of({"w": ENTRY}), max_bytes=10)


def test_a_file_of_many_tensors_is_refused_by_their_number() -> None:
    header = {f"w{i}": {**ENTRY, "data_offsets": [16 * i, 16 * i + 16]} for i in range(3)}
    assert len(must_be_plain_safetensors(file_of(header, 48), max_tensors=3).tensors) == 3
    with pytest.raises(AdapterRefused, match="3 tensors"):
        must_be_plain_safetensors(file_of(header, 48), max_tensors=2)


def test_a_giant_header_is_refused_at_once() -> None:
    data = file_of(b" " * (67 * 2**20))
    started = time.perf_counter()
    with pytest.raises(AdapterRefused, match="header"):
        must_be_plain_safetensors(data)
    assert time.perf_counter() - started < 0.1


def test_a_refusal_does_not_show_a_name_that_is_not_plain() -> None:
    with pytest.raises(AdapterRefused) as told:
        must_be_plain_safetensors(file_of({"canary \u202e": ENTRY}))
    assert "canary" not in str(told.value)
