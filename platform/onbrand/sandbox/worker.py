"""The child process that reads a file from outside. It can only read its input, compute and answer.

A server (`fork_server`) for one kind of file (`images`, `zips`, `documents`, `weights`) first reads a file that it
made itself, which loads all libraries. Each of its children then confines itself, can open no file from then on, and
reads one file from outside within a limit of processor time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

from onbrand.errors import OnbrandError, TooLarge, UnsupportedMedia
from onbrand.sandbox.fork_server import serve
from onbrand.sandbox.framing import head_of, read_head
from onbrand.sandbox.seccomp import allow_only_computing

READ_SECONDS = 1.5
"""Processor time for reading a file. Further time depends on the size of what was read."""
_SECONDS_PER_MEGAPIXEL = 0.9
_SECONDS_PER_GIGABYTE = 6.0
_SECONDS_PER_GIGABYTE_WEIGHED = 40.0
_SECONDS_PER_GIGABYTE_UNPACKED = 30.0
_PIPE_BYTES = 2**20
_NOBODY = 65534
_ROUNDED = 8 * 2**20
Reply = tuple[dict[str, Any], bytes]


def main(kind: str) -> None:
    """Fork children for this kind of file until the input ends. A request is a child's limit of memory in bytes."""
    warm_up, answer = {
        "images": (_warm_up_images, _image),
        "zips": (_warm_up_zips, _zip),
        "documents": (_warm_up_documents, _document),
        "weights": (_warm_up_weights, _weights),
    }[kind]
    warm_up()
    _, resident = _pages()
    serve(lambda memory: _read_one(answer, memory - resident))


def _read_one(answer: Callable[[Any, int], Iterator[Reply]], memory: int) -> None:
    _send({"ready": True, "filtered": confine(memory)})
    with contextlib.suppress(EOFError):
        _answer(answer, *read_head(_exactly, 2**40))
        _exactly(1)  # waits until the parent closes the pipe


def confine(memory: int) -> bool:
    """Limit memory, files, programs, processes and core dumps, and become the user nobody if run as root.

    The limits are POSIX resource limits. Where the system supports it, system calls are filtered too (`seccomp`).

    Args:
        memory: bytes that the process may take from now on.

    Returns:
        Whether system calls are filtered.
    """
    size, _ = _pages()
    _bound(resource.RLIMIT_AS, size + max(_ROUNDED, memory - _ROUNDED))
    _bound(resource.RLIMIT_CORE, 0)
    _bound(resource.RLIMIT_FSIZE, 0)
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
    _bound(resource.RLIMIT_NPROC, 0)
    _bound(resource.RLIMIT_NOFILE, 0)  # closing one of the three open descriptors allows no new one
    return allow_only_computing()


def _bound(what: int, most: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # systems other than Linux lack some of the limits
        resource.setrlimit(what, (most, most))


def _pages() -> tuple[int, int]:
    """Bytes of address space, and bytes in memory."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            size, resident = (int(number) * resource.getpagesize() for number in file.read().split()[:2])
            return size, resident
    except OSError:
        return 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _limit_cpu_seconds(seconds: float) -> None:
    """End this process (SIGPROF) after `seconds` of processor time from now; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(answer: Callable[[Any, int], Iterator[Reply]], fields: Any, num_bytes: int) -> None:
    _limit_cpu_seconds(READ_SECONDS)
    request = SimpleNamespace(**(fields | {"limits": SimpleNamespace(**fields["limits"])}))
    try:
        for reply, data in answer(request, num_bytes):
            _send(reply, data)
        _send({"done": True})
    except OnbrandError as problem:
        _refuse(type(problem).__name__, problem)
    except MemoryError:
        _refuse("TooLarge", TooLarge(f"{request.shown} needs more memory than a file may take", param=request.param))
    except RecursionError:
        _refuse("UnsupportedMedia", UnsupportedMedia(f"{request.shown} is nested too deep", param=request.param))
    _limit_cpu_seconds(0)


def _refuse(kind: str, problem: OnbrandError) -> NoReturn:
    """Send the reason and exit."""
    _send({"refused": kind, "message": problem.message, "param": problem.param})
    os._exit(0)


def _image(request: Any, num_bytes: int) -> Iterator[Reply]:
    from onbrand.sandbox.images import clean_image

    data = _exactly(num_bytes)
    clean = clean_image(data, request.limits, request.name, _allow_encoding)
    yield _facts_of(clean) | {"features": _facts_of(clean.features)}, clean.bytes


def _allow_encoding(num_pixels: int) -> None:
    _limit_cpu_seconds(READ_SECONDS + num_pixels / 1e6 * _SECONDS_PER_MEGAPIXEL)


def _zip(request: Any, num_bytes: int) -> Iterator[Reply]:
    from onbrand.sandbox.archives import unpack

    _limit_cpu_seconds(READ_SECONDS + num_bytes / 1e9 * _SECONDS_PER_GIGABYTE_UNPACKED)
    for packed in unpack(_exactly(num_bytes), request.limits, request.shown):
        yield _facts_of(packed), packed.data


def _document(request: Any, num_bytes: int) -> Iterator[Reply]:
    from onbrand.sandbox.documents import clean_document

    clean = clean_document(_exactly(num_bytes), request.ext, request.limits, request.shown)
    yield _facts_of(clean), clean.bytes


def _weights(request: Any, num_bytes: int) -> Iterator[Reply]:
    from onbrand.lora_names import ImportOptions
    from onbrand.sandbox.weights import check_weights

    _limit_cpu_seconds(READ_SECONDS + num_bytes / 1e9 * _SECONDS_PER_GIGABYTE)
    options = None if request.options is None else ImportOptions(**request.options)
    allow = partial(_limit_cpu_seconds, READ_SECONDS + num_bytes / 1e9 * _SECONDS_PER_GIGABYTE_WEIGHED)
    yield _facts_of(check_weights(_exactly, num_bytes, options, allow)), b""


def _warm_up_images() -> None:
    from PIL import Image, ImageCms

    from onbrand.sandbox.images import clean_image

    limits: Any = SimpleNamespace(upload_bytes=2**20, image_pixels=2**20, image_side_min=1, profile_bytes=2**20)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "JPEG", "WEBP"):
        out = io.BytesIO()
        Image.new("RGB", (80, 80)).save(out, kind, icc_profile=profile, exif=exif)
        clean_image(out.getvalue(), limits)


def _warm_up_zips() -> None:
    import codecs
    import zipfile

    from onbrand.sandbox.archives import unpack
    from onbrand.sandbox.zip_names import CODE_PAGES
    from onbrand.visible import TEXT_ENCODINGS

    for encoding in (*CODE_PAGES, *TEXT_ENCODINGS):
        codecs.lookup(encoding)  # a confined child can load none
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"a")
        archive.writestr("a.txt", b"a")
    limits: Any = SimpleNamespace(
        zip_bytes=2**20, zip_files=9, upload_bytes=2**20, unpacked_bytes=2**20, caption_chars=9
    )
    list(unpack(out.getvalue(), limits, "an archive"))


def _warm_up_documents() -> None:
    import pikepdf

    from onbrand.sandbox.documents import clean_document

    limits: Any = SimpleNamespace(document_bytes=2**20, document_pages=9, markdown_bytes=2**20)
    out = io.BytesIO()
    with pikepdf.Pdf.new() as pdf:
        pdf.add_blank_page()
        pdf.save(out)
    clean_document(out.getvalue(), "pdf", limits, "a document")
    clean_document(b"# A\n\n- [b](c) `d` *e*\n", "md", limits, "a document")


def _warm_up_weights() -> None:
    from onbrand.lora_names import ImportOptions
    from onbrand.sandbox.weights import check_weights

    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(4)
    check_weights(io.BytesIO(data).read, len(data))
    names = ("a.lora_down.weight", "a.lora_up.weight", "lora_te_a.lora_down.weight", "lora_te_a.lora_up.weight")
    entries = {
        name: {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * n, 4 * n + 4]} for n, name in enumerate(names)
    }
    header = json.dumps(entries).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(16)
    check_weights(io.BytesIO(data).read, len(data), ImportOptions("drop"))


def _facts_of(thing: Any) -> dict[str, Any]:
    """The fields of a dataclass, without those of type bytes."""
    fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    return {name: value for name, value in fields.items() if not isinstance(value, bytes)}


def _exactly(num_bytes: int) -> bytes:
    """The next bytes of the input. Raises EOFError when it has ended."""
    got = io.BytesIO()  # getvalue() makes no second copy
    while (left := num_bytes - got.tell()) > 0:
        piece = os.read(0, min(left, _PIPE_BYTES))
        if not piece:
            raise EOFError
        got.write(piece)
    return got.getvalue()


def _send(message: dict[str, Any], data: bytes = b"") -> None:
    for part in (head_of(message, len(data)), data):
        left = memoryview(part)
        while left:
            left = left[os.write(1, left) :]


if __name__ == "__main__":
    main(sys.argv[1])
