"""Checks files from outside in child processes with few rights, little memory and little time, one file per child.

Children run `worker`. A compromised child sees no other file and can pass nothing on to another. Its answers
are not trusted either: their form and size are checked here, and their bytes are hashed here.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

import anyio
import anyio.to_thread
from pydantic import ValidationError

from onbrand.config import Limits
from onbrand.errors import OnbrandError, TooLarge, UnsupportedMedia
from onbrand.fair_turns import FairTurns, QueueOwner
from onbrand.lora_names import ImportOptions
from onbrand.sandbox.framing import BrokenFrame
from onbrand.sandbox.incoming_files import SentFile
from onbrand.sandbox.processes import Gone, WorkerKind, fork_child
from onbrand.sandbox.replies import (
    ImageReply,
    MarkdownReply,
    PackedReply,
    PdfReply,
    Reply,
    WeightsReply,
)
from onbrand.sandbox.results import (
    CheckedWeights,
    CleanDocument,
    CleanImage,
    ImageFeatures,
    Packed,
    shown,
)

log = logging.getLogger(__name__)

_NUM_CHILDREN = 4
_NOBODY = QueueOwner("", is_bounded=False)
_EXT = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
_DOCUMENT_TYPES = {"pdf": "application/pdf", "md": "text/markdown; charset=utf-8"}

A = TypeVar("A", bound=Reply)
T = TypeVar("T")


class Checker:
    """Checks files from outside, each in a child process.

    Its checks block and may be called from any thread; `run` and `whole` belong to one event loop.

    Args:
        limits: bounds of files; `check_bytes` is the memory that a child may have.
        num_children: files that are checked at once; more wait.

    All checks raise TooLarge, UnsupportedMedia or InvalidInput (AdapterRefused for weights) with a reason that names
    the file, and Unavailable if no child can be started.
    """

    def __init__(self, limits: Limits | None = None, num_children: int = _NUM_CHILDREN) -> None:
        self._limits = limits or Limits()
        self._child = threading.BoundedSemaphore(num_children)
        self._threads = anyio.CapacityLimiter(num_children)
        self._turns = FairTurns(num_children, self._limits.waiting_checks)
        self._requests = FairTurns(num_children, self._limits.waiting_checks)
        self._whose = _NOBODY

    def on_behalf_of(self, whose: QueueOwner) -> Checker:
        """The same checker, whose `run` waits in this brand's queue."""
        given = copy.copy(self)
        given._whose = whose
        return given

    async def run(self, check: Callable[..., T], *given: Any) -> T:
        """Run a check of this checker in a thread when it is the brand's turn. Waiting takes no thread and no child.

        A `SentFile` among `given` is read when the turn has come and released when it ends.

        Raises TooManyRequests when too many of the brand's files wait.
        """
        async with self._turns.take(self._whose):
            read = [await each.read() if isinstance(each, SentFile) else each for each in given]
            return await anyio.to_thread.run_sync(check, *read, limiter=self._threads)

    @asynccontextmanager
    async def whole(self) -> AsyncIterator[None]:
        """A turn for a whole request, from the first byte read until all is stored: few requests hold files at once.

        Raises TooManyRequests when too many requests of the brand wait.
        """
        async with self._requests.take(self._whose):
            yield

    def image(self, data: bytes, name: str = "the file") -> CleanImage:
        """The image decoded, measured and encoded anew."""
        _must_be_short(data, self._limits.upload_bytes, name, "files")
        request = _Request("images", name, "files", 4 * self._limits.image_pixels)
        facts, clean = self._one(ImageReply, request, data)
        digest = hashlib.sha256(clean).hexdigest()
        known = facts.features.model_dump() | {
            "sides": tuple(facts.features.sides),
            "sharpness": tuple(facts.features.sharpness),
        }
        ext, size = _EXT[facts.content_type], (facts.width, facts.height)
        return CleanImage(clean, facts.content_type, ext, *size, digest, ImageFeatures(**known))

    def unpack(self, data: bytes, name: str = "the archive") -> list[Packed]:
        """The images of a zip archive with their captions; the images themselves are still to be checked."""
        _must_be_short(data, self._limits.zip_bytes, name, "files")
        left = self._limits.unpacked_bytes
        found: list[Packed] = []
        for facts, image in self._ask(PackedReply, _Request("zips", name, "files", self._limits.upload_bytes), data):
            left -= len(image)
            if left < 0 or len(found) == self._limits.zip_files:
                raise _reader_failed(shown(name), "files")
            found.append(Packed(facts.filename, image, facts.caption))
        return found

    def document(self, data: bytes, ext: Literal["pdf", "md"], name: str = "the document") -> CleanDocument:
        """The document written anew."""
        _must_be_short(data, self._limits.document_bytes, name, "file")
        bytes_max = 2 * self._limits.document_bytes + 2**20
        reply_type: type[PdfReply | MarkdownReply] = PdfReply if ext == "pdf" else MarkdownReply
        facts, clean = self._one(reply_type, _Request("documents", name, "file", bytes_max, {"ext": ext}), data)
        digest = hashlib.sha256(clean).hexdigest()
        return CleanDocument(clean, _DOCUMENT_TYPES[ext], ext, facts.num_pages, digest)

    def weights(self, data: bytes, options: ImportOptions | None = None) -> CheckedWeights:
        """Check that a safetensors file's header is plain and its values are finite, and summarize it.

        Args:
            options: given when another trainer's file is imported (`weights.check_weights`).
        """
        extra = {"options": None if options is None else asdict(options)}
        facts, _ = self._one(WeightsReply, _Request("weights", "the adapter", "file", 0, extra), data)
        return CheckedWeights(**facts.model_dump())

    def _one(self, reply_type: type[A], request: _Request, data: bytes) -> tuple[A, bytes]:
        answers = list(self._ask(reply_type, request, data))
        if len(answers) != 1:
            raise _reader_failed(shown(request.name), request.param)
        return answers[0]

    def _ask(self, reply_type: type[A], request: _Request, data: bytes) -> Iterator[tuple[A, bytes]]:
        """The answers of a new child, each validated as `reply_type`."""
        name = shown(request.name)
        with self._child, contextlib.closing(fork_child(request.kind, self._limits.check_bytes)) as child:
            try:
                for reply, given in child.replies(request.message(self._limits), data, request.bytes_max):
                    yield _read(reply_type, reply, given), given
            except Gone:
                raise _ended(child.code(), name, request.param) from None
            except TimeoutError:
                raise _too_long(name, request.param) from None
            except (BrokenFrame, ValidationError):
                log.error("a checking child of %s sent an invalid reply", request.kind)
                raise _reader_failed(name, request.param) from None


@dataclass(frozen=True)
class _Request:
    """A request to a child, without the bytes."""

    kind: WorkerKind
    name: str
    param: str
    bytes_max: int
    extra: dict[str, Any] = field(default_factory=dict)

    def message(self, limits: Limits) -> dict[str, Any]:
        known = {"name": self.name, "shown": shown(self.name), "param": self.param}
        return known | {"limits": limits.model_dump()} | self.extra


def _must_be_short(data: bytes, bytes_max: int, name: str, param: str) -> None:
    if len(data) > bytes_max:
        raise TooLarge(f"{shown(name)} has {len(data)} bytes; the limit is {bytes_max}", param=param)


def _read(reply_type: type[A], reply: dict[str, Any], given: bytes) -> A:
    """The answer, validated as `reply_type`. Raises ValidationError, BrokenFrame."""
    answer = reply_type.model_validate(reply)
    if not answer.fits(given):
        raise BrokenFrame("the bytes are not of the declared type")
    return answer


def _reader_failed(name: str, param: str) -> UnsupportedMedia:
    return UnsupportedMedia(f"{name} makes its reader fail; save it anew", param=param)


def _too_long(name: str, param: str) -> UnsupportedMedia:
    return UnsupportedMedia(f"{name} takes too long to read; save it anew, smaller or simpler", param=param)


def _ended(code: int, name: str, param: str) -> OnbrandError:
    """The error for a file whose child ended with `code` before it answered."""
    if code in (-signal.SIGPROF, -signal.SIGXCPU):
        return _too_long(name, param)
    if code == -signal.SIGKILL:
        return TooLarge(f"{name} needs more memory than a file may take", param=param)
    log.warning("a checking child ended with %s", code)
    return _reader_failed(name, param)
