"""Files from outside are read by children only: few rights, little memory, little time, and gone after a bad file.

`checking_child` is what runs there. A child that refused a file, crashed or ran out of something is never asked again,
and a child reads the files of one owner only: one that was taken over sees nothing of another brand, and can give
nothing to it. What a child says is not trusted either: it is bounded, of a known form, and hashed here.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import anyio
import anyio.to_thread
from pydantic import ValidationError

import onbrand
from onbrand.config import Limits
from onbrand.errors import AdapterRefused, InvalidInput, OnbrandError, TooLarge, Unavailable, UnsupportedMedia
from onbrand.storage.answers import (
    Answer,
    FactsSaid,
    FeaturesSaid,
    MarkdownSaid,
    PackedSaid,
    PdfSaid,
    PictureSaid,
    WeightsSaid,
)
from onbrand.storage.findings import CleanDocument, CleanImage, ImageFacts, Packed, PictureFeatures, shown
from onbrand.storage.frames import BrokenFrame, head_of, read_head

log = logging.getLogger(__name__)

Trade = Literal["pictures", "features", "zips", "documents", "weights"]
WALL_SECONDS = 40.0
"""A child that has not answered by then is ended; its bounds of processor time are much narrower."""

_START_SECONDS = 60.0
_END_SECONDS = 5.0
_NUM_CHILDREN = 4
_NUM_IDLE = 2
_FILES_PER_CHILD = 200
_PIECE = 2**20
_RUN = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root);"
    "from onbrand.storage.checking_child import main; main(sys.argv[1], int(sys.argv[2]))"
)
_REFUSALS: dict[str, type[OnbrandError]] = {
    kind.__name__: kind for kind in (AdapterRefused, InvalidInput, TooLarge, UnsupportedMedia)
}
_EXT = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
_DOCUMENT_TYPES = {"pdf": "application/pdf", "md": "text/markdown; charset=utf-8"}
Said = tuple[dict[str, Any], bytes]


A = TypeVar("A", bound=Answer)
T = TypeVar("T")


class _Gone(Exception):
    """The child ended before it had answered."""


class Checker:
    """Checks files from outside, each in a child process. Safe to share between threads; its methods block.

    Args:
        limits: bounds of files; `check_bytes` is the memory that a child may have.
        num_children: files that are checked at once; more wait.
        has_spares: keep a fresh child ready, which takes 20 MB and saves 0.2 s.

    All checks raise TooLarge, UnsupportedMedia or InvalidInput (AdapterRefused for weights) with a reason that names
    the file, and Unavailable if no child can be started.
    """

    def __init__(
        self, limits: Limits | None = None, num_children: int = _NUM_CHILDREN, has_spares: bool = True
    ) -> None:
        self._limits = limits or Limits()
        self._owner = ""
        self._root: Checker = self
        self._has_spares = has_spares
        self._turn = threading.BoundedSemaphore(num_children)
        self._turns = anyio.CapacityLimiter(num_children)
        self._lock = threading.Lock()
        self._idle: dict[Trade, list[Child]] = {}
        self.close = weakref.finalize(self, _end_all, self._idle)
        """Ends the children that wait for work. Asking again starts others."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, owner: str) -> Checker:
        """The same checker for the files of one owner (a brand's id): they share no child with another's."""
        bound = copy.copy(self._root)
        bound._owner = owner
        return bound

    async def run(self, check: Callable[..., T], *given: Any) -> T:
        """A check of this checker in a thread; who waits for a turn holds none."""
        return await anyio.to_thread.run_sync(check, *given, limiter=self._turns)

    def picture(self, data: bytes, name: str = "the file") -> CleanImage:
        """The picture decoded and encoded anew."""
        _must_be_short(data, self._limits.upload_bytes, name, "files")
        asked = _Asked("pictures", name, "files", 4 * self._limits.image_pixels, {"facts_only": False})
        facts, clean = self._one(PictureSaid, asked, data)
        digest = hashlib.sha256(clean).hexdigest()
        return CleanImage(clean, facts.content_type, _EXT[facts.content_type], facts.width, facts.height, digest)

    def picture_facts(self, data: bytes, name: str = "the file") -> ImageFacts:
        """What the picture's header says, checked as far as that goes."""
        _must_be_short(data, self._limits.upload_bytes, name, "files")
        facts, _ = self._one(FactsSaid, _Asked("pictures", name, "files", 0, {"facts_only": True}), data)
        return ImageFacts(facts.format, facts.content_type, facts.width, facts.height)

    def features(self, data: bytes, name: str = "the picture") -> PictureFeatures:
        """What a stored picture looks like, in numbers; it is decoded whole. (Made anew, it may exceed an upload.)"""
        limits = self._limits.model_copy(update={"upload_bytes": 8 * self._limits.image_pixels})
        _must_be_short(data, limits.upload_bytes, name, "files")
        asked = _Asked("features", name, "files", 0, {"limits": limits.model_dump()})
        said, _ = self._one(FeaturesSaid, asked, data)
        known = said.model_dump() | {"sides": tuple(said.sides), "sharpness": tuple(said.sharpness)}
        return PictureFeatures(**known)

    def unpack(self, data: bytes, name: str = "the archive") -> list[Packed]:
        """The pictures of a zip archive with their captions; the pictures themselves are still to be checked."""
        _must_be_short(data, self._limits.zip_bytes, name, "files")
        left = self._limits.unpacked_bytes
        found: list[Packed] = []
        for facts, picture in self._ask(PackedSaid, _Asked("zips", name, "files", self._limits.upload_bytes), data):
            left -= len(picture)
            if left < 0 or len(found) == self._limits.zip_files:
                raise _nonsense(shown(name), "files")
            found.append(Packed(facts.filename, picture, facts.caption))
        return found

    def document(self, data: bytes, ext: Literal["pdf", "md"], name: str = "the document") -> CleanDocument:
        """The document written anew."""
        _must_be_short(data, self._limits.document_bytes, name, "file")
        most = 2 * self._limits.document_bytes + 2**20
        kind: type[PdfSaid | MarkdownSaid] = PdfSaid if ext == "pdf" else MarkdownSaid
        facts, clean = self._one(kind, _Asked("documents", name, "file", most, {"ext": ext}), data)
        digest = hashlib.sha256(clean).hexdigest()
        return CleanDocument(clean, _DOCUMENT_TYPES[ext], ext, facts.num_pages, digest)

    def weights(self, data: bytes, is_foreign: bool = False) -> int:
        """The number of tensors of a safetensors file whose header is plain and whose values are finite.

        Args:
            is_foreign: another trainer's file (`storage.weights.check_weights`).
        """
        facts, _ = self._one(WeightsSaid, _Asked("weights", "the adapter", "file", 0, {"is_foreign": is_foreign}), data)
        return facts.num_tensors

    def _one(self, kind: type[A], asked: _Asked, data: bytes) -> tuple[A, bytes]:
        answers = list(self._ask(kind, asked, data))
        if len(answers) != 1:
            raise _nonsense(shown(asked.name), asked.param)
        return answers[0]

    def _ask(self, kind: type[A], asked: _Asked, data: bytes) -> Iterator[tuple[A, bytes]]:
        """What a child answers; it is ended unless each answer is of this kind."""
        name = shown(asked.name)
        with self._turn, self._child(asked.trade) as child:
            try:
                for said, given in child.answers(asked.said(self._limits), data, asked.bytes_max):
                    yield _read(kind, said, given), given
            except _Gone:
                raise _ended(child.end(_END_SECONDS), name, asked.param) from None
            except TimeoutError:
                raise _too_long(name, asked.param) from None
            except (BrokenFrame, ValidationError):
                log.error("a checking child of %s said what it must not say", asked.trade)
                raise _nonsense(name, asked.param) from None

    @contextlib.contextmanager
    def _child(self, trade: Trade) -> Iterator[Child]:
        """A child that waits for work, or a new one; it is kept if all went well."""
        child = self._waiting(trade) or Child(trade, self._limits.check_bytes)
        child.owner = self._owner
        try:
            child.must_be_ready()
            yield child
        except BaseException as problem:
            child.end()
            if not isinstance(problem, Unavailable):
                self._stock(trade)
            raise
        self._keep(trade, child)
        self._stock(trade)

    def _waiting(self, trade: Trade) -> Child | None:
        """A child that waits for work, has read for nobody else, and is still alive; or None."""
        while True:
            with self._lock:
                waiting = self._idle.get(trade, [])
                child = next((each for each in waiting if each.owner == self._owner), None) or next(
                    (each for each in waiting if each.owner is None), None
                )
                if child is not None:
                    waiting.remove(child)
            if child is None or child.is_alive:
                return child
            child.end()

    def _keep(self, trade: Trade, child: Child) -> None:
        """Let it wait for its owner's next file; of those who wait for owners, the oldest leave."""
        leaving = [child]
        with self._lock:
            waiting = self._idle.setdefault(trade, [])
            if self.close.alive and child.num_files < _FILES_PER_CHILD:
                waiting.append(child)
                leaving = [each for each in waiting if each.owner is not None][:-_NUM_IDLE]
                for each in leaving:
                    waiting.remove(each)
        for each in leaving:
            each.end()

    def _stock(self, trade: Trade) -> None:
        """Start a child that will be ready when somebody needs a fresh one."""
        with self._lock:
            waiting = self._idle.setdefault(trade, [])
            if not self._has_spares or not self.close.alive or any(each.owner is None for each in waiting):
                return
            with contextlib.suppress(OSError):
                waiting.append(Child(trade, self._limits.check_bytes))


@dataclass(frozen=True)
class _Asked:
    """What is asked of a child beside the bytes."""

    trade: Trade
    name: str
    param: str
    bytes_max: int
    more: dict[str, Any] = field(default_factory=dict)

    def said(self, limits: Limits) -> dict[str, Any]:
        known = {"name": self.name, "shown": shown(self.name), "param": self.param}
        return known | {"limits": limits.model_dump()} | self.more


@contextlib.contextmanager
def borrowed(checker: Checker | None, limits: Limits) -> Iterator[Checker]:
    """`checker`, or where there is none, one for this block only."""
    if checker is not None:
        yield checker
        return
    with Checker(limits, has_spares=False) as own:
        yield own


def _end_all(idle: dict[Trade, list[Child]]) -> None:
    for child in [child for children in idle.values() for child in children]:
        child.end()
    idle.clear()


def _must_be_short(data: bytes, most: int, name: str, param: str) -> None:
    if len(data) > most:
        raise TooLarge(f"{shown(name)} has {len(data)} bytes; the limit is {most}", param=param)


def _read(kind: type[A], said: dict[str, Any], given: bytes) -> A:
    """The answer, if it has the form that this kind has. Raises ValidationError, BrokenFrame."""
    answer = kind.model_validate(said)
    if not answer.fits(given):
        raise BrokenFrame("the bytes are not of the type that is said of them")
    return answer


def _nonsense(name: str, param: str) -> UnsupportedMedia:
    return UnsupportedMedia(f"{name} makes its reader fail; save it anew", param=param)


def _too_long(name: str, param: str) -> UnsupportedMedia:
    return UnsupportedMedia(f"{name} takes too long to read; save it anew, smaller or simpler", param=param)


def _ended(code: int, name: str, param: str) -> OnbrandError:
    """What a child's end without an answer says of the file."""
    if code in (-signal.SIGPROF, -signal.SIGXCPU):
        return _too_long(name, param)
    if code == -signal.SIGKILL:
        return TooLarge(f"{name} needs more memory than a file may take", param=param)
    log.warning("a checking child ended with %s", code)
    return _nonsense(name, param)


class Child:
    """One process of `checking_child` and the two pipes to it. It starts while nobody waits for it.

    `owner` is whose files it reads; None until it has read one.
    """

    def __init__(self, trade: Trade, memory: int) -> None:
        self.num_files = 0
        self.owner: str | None = None
        root = str(Path(onbrand.__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _RUN, root, trade, str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._left: list[memoryview] = []
        self._got = bytearray()
        self._is_ready = False

    def must_be_ready(self) -> None:
        """Wait until it has loaded what it needs and closed itself in. Raises Unavailable if it does not."""
        if self._is_ready:
            return
        self._until = time.monotonic() + _START_SECONDS
        try:
            self._frame(0)
        except (_Gone, BrokenFrame, TimeoutError):
            log.error("a checking child does not start (exit code %s)", self.end())
            raise Unavailable("files cannot be checked now; try again", retry_after=5) from None
        self._is_ready = True

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def answers(self, asked: dict[str, Any], data: bytes, bytes_max: int) -> Iterator[Said]:
        """What the child says about `data`, until it is done.

        Raises:
            TooLarge, UnsupportedMedia, InvalidInput, AdapterRefused: what it refused, in its words.
            _Gone, BrokenFrame, TimeoutError: it ended, said something else, or nothing.
        """
        self.num_files += 1
        self._until = time.monotonic() + WALL_SECONDS
        self._left = [memoryview(head_of(asked, len(data))), memoryview(data)]
        while True:
            said, given = self._frame(bytes_max)
            if "refused" in said:
                raise _refusal(said)
            if said.get("done") is True:
                return
            yield said, given

    def end(self, patience: float = 0.0) -> int:
        """End the process, if it does not by itself within `patience`; its exit code. Again, it does nothing."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return self._process.wait()

    def _frame(self, bytes_max: int) -> Said:
        said, num_bytes = read_head(self._exactly, bytes_max)
        return said, self._exactly(num_bytes)

    def _exactly(self, num_bytes: int) -> bytes:
        while len(self._got) < num_bytes:
            self._move()
        taken = bytes(memoryview(self._got)[:num_bytes])
        del self._got[:num_bytes]
        return taken

    def _move(self) -> None:
        """Write what is left to be written, and read what there is to read: whichever is possible first."""
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        if self._left:
            poll.register(self._to, select.POLLOUT)
        ready = dict(poll.poll(max(0.0, self._until - time.monotonic()) * 1000))
        if not ready:
            raise TimeoutError
        if self._to in ready:
            self._write()
        if self._from in ready:
            piece = os.read(self._from, _PIECE)
            if not piece:
                raise _Gone
            self._got += piece

    def _write(self) -> None:
        try:
            while self._left:
                self._left[0] = self._left[0][os.write(self._to, self._left[0][:_PIECE]) :]
                if not self._left[0]:
                    self._left.pop(0)
        except BlockingIOError:
            return
        except BrokenPipeError:  # it has answered already, or is gone: reading tells
            self._left = []


def _environment() -> dict[str, str]:
    """Nothing of ours but how programs are loaded and that one thread is enough."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    return kept | {"LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _refusal(said: dict[str, Any]) -> OnbrandError:
    kind, message, param = said["refused"], said.get("message"), said.get("param")
    if kind not in _REFUSALS or not isinstance(message, str) or not isinstance(param, str | None):
        raise BrokenFrame("the refusal has not the form of one")
    plain = "".join(c if c.isprintable() else "?" for c in message[:1000])
    return _REFUSALS[kind](plain, **({"param": param[:40]} if param else {}))
