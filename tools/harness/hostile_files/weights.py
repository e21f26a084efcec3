"""Hostile adapters: false headers, numbers that are not finite, pickles."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from typing import Any

import numpy as np

from tools.harness.hostile_files.corpus import Hostile

ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def file_of(header: Any, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def one(**lies: Any) -> bytes:
    return file_of({"w": ENTRY | lies})


def numbers(dtype: str, value: bytes) -> bytes:
    """A tensor of a hundred numbers, the last of which is `value`."""
    data = bytes(len(value)) * 99 + value
    return file_of({"w": {"dtype": dtype, "shape": [100], "data_offsets": [0, len(data)]}}, data)


def million() -> bytes:
    """A file with a header of a million empty tensors, 67 MB."""
    entry = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    return file_of(b"{" + b"".join(entry % i for i in range(1_000_000))[:-1] + b"}", b"")


def in_bounds(count: int) -> bytes:
    entry = b'"%x":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]},'
    header = b"{" + b"".join(entry % (i, 4 * i, 4 * i + 4) for i in range(count))[:-1] + b"}"
    return file_of(header, bytes(4 * count))


def torch_file() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'id'\ntR.")
    return out.getvalue()


def numpy_file(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def hostile() -> list[Hostile]:
    made = [*_headers(), *_numbers(), *_others()]
    return [Hostile(f"weights: {name}", "publish", "a.safetensors", make, why) for name, make, why in made]


def _headers() -> list[tuple]:
    long = 8 * 2**20
    return [
        ("a header of 2^63 bytes", lambda: (2**63).to_bytes(8, "little") + b"{}", "header"),
        ("a header longer than the file", lambda: (100).to_bytes(8, "little") + b"{}", "cut short"),
        ("a million empty tensors", million, "header"),
        ("21,000 tensors", lambda: in_bounds(21_000), "21000 tensors"),
        ("a header of blanks", lambda: file_of(b" " * long), "header"),
        ("100,000 brackets", lambda: file_of(b"[" * 100_000), "not JSON"),
        ("a number of 10,000 digits", lambda: file_of(b"9" * 10_000), "not JSON"),
        ("a list", lambda: file_of([1]), "not a JSON object"),
        ("no tensor", lambda: file_of({}), "0 tensors"),
        ("notes that are no texts", lambda: file_of({"__metadata__": {"a": [1]}, "w": ENTRY}), "metadata"),
        ("1 MB of notes", lambda: file_of({"__metadata__": {"a": "x" * 2**20}, "w": ENTRY}), "metadata"),
        ("a name twice", lambda: file_of(b'{"w":{},"w":{}}'), "twice"),
        ("a name with a path", lambda: file_of({"../w": ENTRY}), "name"),
        ("a name with a zero", lambda: file_of({"w\0": ENTRY}), "name"),
        ("64-bit numbers", lambda: one(dtype="F64"), "dtype"),
        ("whole numbers", lambda: one(dtype="I64"), "dtype"),
        ("a dtype that runs", lambda: one(dtype="__import__('os')"), "dtype"),
        ("an empty shape", lambda: one(shape=[0]), "shape"),
        ("a negative shape", lambda: one(shape=[-4]), "shape"),
        ("a shape of 2^40", lambda: one(shape=[2**40]), "shape"),
        ("a shape that overflows", lambda: one(shape=[65536, 65536, 65536, 65536]), "shape"),
        ("a shape of true", lambda: one(shape=[True, 4]), "shape"),
        ("nine dimensions", lambda: one(shape=[1] * 9), "shape"),
        ("offsets that go back", lambda: one(data_offsets=[16, 0]), "shape"),
        ("offsets beyond the end", lambda: one(data_offsets=[16, 32]), "gaps"),
        ("tensors on each other", lambda: file_of({"v": ENTRY, "w": ENTRY}), "overlap"),
        ("a tail", lambda: file_of({"w": ENTRY}, bytes(17)), "follow"),
        ("cut data", lambda: file_of({"w": ENTRY}, bytes(15)), "cut short"),
        ("NaN in its header", lambda: file_of(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'), "NaN"),
    ]


def _numbers() -> list[tuple]:
    values = [
        ("NaN in F32", "F32", struct.pack("<f", float("nan"))),
        ("infinity in F32", "F32", struct.pack("<f", float("inf"))),
        ("minus infinity in F32", "F32", struct.pack("<f", float("-inf"))),
        ("a NaN with a message in F32", "F32", b"\x01\x02\x83\x7f"),
        ("NaN in F16", "F16", struct.pack("<e", float("nan"))),
        ("infinity in F16", "F16", struct.pack("<e", float("inf"))),
        ("NaN in BF16", "BF16", b"\xc0\x7f"),
        ("infinity in BF16", "BF16", b"\x80\xff"),
    ]
    return [(name, lambda t=dtype, v=value: numbers(t, v), "not finite") for name, dtype, value in values]


def _others() -> list[tuple]:
    return [
        ("a pickle", lambda: pickle.dumps({"w": [1.0]}), "header"),
        ("a pickle that runs", lambda: b"cos\nsystem\n(S'id'\ntR.", "header"),
        ("a checkpoint of torch", torch_file, "header"),
        ("arrays of numpy", lambda: numpy_file(w=np.ones(4)), "header"),
        ("arrays of objects", lambda: numpy_file(w=np.array([{}], dtype=object)), "header"),
        ("an HDF5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "header"),
        ("a picture", lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "header"),
        ("nothing", lambda: b"", "header"),
        ("a program", lambda: b"\x7fELF" + bytes(200), "header"),
        ("noise", lambda: bytes(range(256)) * 8, "header"),
    ]
