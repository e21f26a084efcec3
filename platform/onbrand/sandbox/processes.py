"""The parent's side of checking children: the servers that fork them, and the pipes to each child.

A process has one server per kind of file. It starts when it is first needed and lives as long as the process.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onbrand
from onbrand.errors import AdapterRefused, InvalidInput, OnbrandError, TooLarge, Unavailable, UnsupportedMedia
from onbrand.sandbox.fork_server import REQUEST, STATUS
from onbrand.sandbox.framing import BrokenFrame, head_of, read_head
from onbrand.visible import printed

log = logging.getLogger(__name__)

WorkerKind = Literal["images", "zips", "documents", "weights"]
WALL_SECONDS = 40.0
"""A child that has not answered by then is ended; its limits of processor time are much lower."""

_START_SECONDS = 60.0
_END_SECONDS = 5.0
_PIECE = 2**20
_RUN = (
    "import sys; root = sys.argv.pop(1); root in sys.path or sys.path.insert(0, root);"
    "from onbrand.sandbox.worker import main; main(sys.argv[1])"
)
_OUR_SIGNALS = (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGKILL)
"""Signals that end a child for taking too much time or memory; any other signal is a crash."""
_REFUSALS: dict[str, type[OnbrandError]] = {
    error.__name__: error for error in (AdapterRefused, InvalidInput, TooLarge, UnsupportedMedia)
}
Reply = tuple[dict[str, Any], bytes]


class Gone(Exception):
    """The child ended before it had answered."""


def fork_child(kind: WorkerKind, memory: int) -> Child:
    """A new child, confined and ready, that may use `memory` bytes. Raises Unavailable if none can be started."""
    for _ in range(2):
        server = _server_of(kind)
        try:
            child = server.fork(memory)
        except _ServerGone:  # it may have ended since the last request
            _retire(server)
            continue
        except OSError as problem:
            log.error("a checking child cannot be reached: %s", problem)
            raise _no_child() from None
        child.wait_until_ready()
        return child
    raise _no_child()


@cache
def _warn_unfiltered() -> None:
    """Log once that system calls are not filtered here, so that operators can choose another system."""
    log.warning("this system does not filter what checking children ask of it (seccomp): bounds of resources hold them")


class _ServerGone(Exception):
    """The server takes no more requests."""


class Server:
    """A process of `onbrand.sandbox.fork_server` that has loaded the libraries for one kind of file."""

    def __init__(self, kind: WorkerKind) -> None:
        self.kind: WorkerKind = kind
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _RUN, str(Path(onbrand.__file__).parents[1]), kind],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                cwd="/",
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, memory: int) -> Child:
        """Start a child. Raises _ServerGone, and OSError if no descriptors are left."""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            control_socket, other_end = map(theirs.enter_context, socket.socketpair())
            their_input, to = os.pipe()
            theirs.callback(os.close, their_input)
            ours.callback(os.close, to)
            come_from, their_output = os.pipe()
            theirs.callback(os.close, their_output)
            ours.callback(os.close, come_from)
            try:
                socket.send_fds(self._socket, [REQUEST.pack(memory)], [their_input, their_output, other_end.fileno()])
            except OSError:
                raise _ServerGone from None
            ours.pop_all()
            return Child(self, socket.socket(fileno=control_socket.detach()), to, come_from)

    def stop_requests(self) -> None:
        """Send no more requests: the server ends when its last child has ended."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """End the server at once; its children end when their control sockets are closed."""
        self._process.kill()

    def end(self, timeout: float) -> None:
        """End the server, by force if it has not ended within `timeout` seconds."""
        self.stop_requests()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()


_servers: dict[WorkerKind, Server] = {}
_retired: list[Server] = []
_lock = threading.Lock()


def _server_of(kind: WorkerKind) -> Server:
    with _lock:
        for server in [server for server in _retired if not server.is_alive]:
            server.end(0)
            _retired.remove(server)
        if kind not in _servers:
            try:
                _servers[kind] = Server(kind)
            except OSError as problem:
                log.error("no checking process can be started: %s", problem)
                raise _no_child() from None
        return _servers[kind]


def _retire(server: Server) -> None:
    """Stop using the server: the next child comes from a new one."""
    with _lock:
        if _servers.get(server.kind) is server:
            del _servers[server.kind]
            _retired.append(server)
            server.stop_requests()


@atexit.register
def end_servers(timeout: float = _END_SECONDS) -> None:
    """End all servers of this process; new ones start when needed."""
    with _lock:
        ending = [*_servers.values(), *_retired]
        _servers.clear()
        _retired.clear()
    for server in ending:
        server.stop_requests()
    for server in ending:
        server.end(timeout)


class Child:
    """One process of `worker`, with its two pipes and its control socket. It reads one file."""

    def __init__(self, server: Server, control_socket: socket.socket, to: int, come_from: int) -> None:
        self.pid = 0
        self._server = server
        self._control_socket, self._to, self._from = control_socket, to, come_from
        self._control_socket.settimeout(_END_SECONDS)
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._process: int | None = None
        self._left: list[memoryview] = []
        self._got = bytearray()

    def wait_until_ready(self) -> None:
        """Wait until the child has confined itself. Raises Unavailable if it does not."""
        self._until = time.monotonic() + _START_SECONDS
        try:
            reply, _ = self._frame(0)
            self._receive_pid()
            if reply.get("filtered") is not True:
                _warn_unfiltered()
        except (Gone, BrokenFrame, TimeoutError) as problem:
            log.error("a checking child of %s does not start (%s)", self._server.kind, type(problem).__name__)
            self.close()
            _retire(self._server)
            if isinstance(problem, TimeoutError):
                self._server.kill()  # it hangs
            raise _no_child() from None

    def replies(self, request: dict[str, Any], data: bytes, bytes_max: int) -> Iterator[Reply]:
        """The child's replies about `data`, until it is done.

        Raises:
            TooLarge, UnsupportedMedia, InvalidInput, AdapterRefused: the child refused the file; its message is kept.
            Gone, BrokenFrame, TimeoutError: it ended, broke the protocol, or did not answer in time.
        """
        self._until = time.monotonic() + WALL_SECONDS
        self._left = [memoryview(head_of(request, len(data))), memoryview(data)]
        while True:
            reply, given = self._frame(bytes_max)
            if "refused" in reply:
                raise _refusal(reply)
            if reply.get("done") is True:
                return
            yield reply, given

    def code(self) -> int:
        """The exit code of a child that has ended; the negative number of a signal.

        Raises:
            Unavailable: the server, which reports exit codes, is gone.
        """
        try:
            code = self._receive_exit_code()
        except TimeoutError:
            if not self._has_ended():
                return 1  # it runs on and has only closed its output
            _retire(self._server)
            raise _no_child() from None
        except Gone:
            _retire(self._server)
            raise _no_child() from None
        if code < 0 and code not in _OUR_SIGNALS:
            _retire(self._server)  # children of one server share a memory layout: no second guess
        return code

    def close(self) -> None:
        """Kill the child and close socket and pipes. The server cannot be asked: a child that was taken over may have
        stopped it. Repeated calls do nothing."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            os.close(self._process)
            self._process = None
        self._control_socket.close()
        for pipe in (self._to, self._from):
            if pipe >= 0:
                os.close(pipe)
        self._to = self._from = -1

    def _has_ended(self) -> bool:
        """Whether the process is known to have ended."""
        if self._process is None:
            return False
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        return bool(poll.poll(0))

    def _receive_pid(self) -> None:
        """Receive the child's pid and, where the system has them, its pidfd. Raises Gone, TimeoutError."""
        data, descriptors, _, _ = socket.recv_fds(self._control_socket, STATUS.size, 1)
        self._process = descriptors[0] if descriptors else None
        if len(data) != STATUS.size:
            raise Gone
        self.pid = int(STATUS.unpack(data)[0])

    def _receive_exit_code(self) -> int:
        """Receive the exit code from the server. Raises Gone, TimeoutError."""
        data = self._control_socket.recv(STATUS.size)
        if len(data) != STATUS.size:
            raise Gone
        return int(STATUS.unpack(data)[0])

    def _frame(self, bytes_max: int) -> Reply:
        message, num_bytes = read_head(self._exactly, bytes_max)
        return message, self._exactly(num_bytes)

    def _exactly(self, num_bytes: int) -> bytes:
        while len(self._got) < num_bytes:
            self._move()
        taken = bytes(memoryview(self._got)[:num_bytes])
        del self._got[:num_bytes]
        return taken

    def _move(self) -> None:
        """Write pending bytes and read available ones, whichever is possible first. Raises Gone, TimeoutError."""
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
                raise Gone
            self._got += piece

    def _write(self) -> None:
        try:
            while self._left:
                self._left[0] = self._left[0][os.write(self._to, self._left[0][:_PIECE]) :]
                if not self._left[0]:
                    self._left.pop(0)
        except BlockingIOError:
            return
        except BrokenPipeError:  # it has answered already or is gone: reading will tell
            self._left = []


def _no_child() -> Unavailable:
    return Unavailable("files cannot be checked now; try again", retry_after=5)


def _environment() -> dict[str, str]:
    """The environment of a server: only what loading programs needs, and settings for one thread."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    return kept | {"LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _refusal(reply: dict[str, Any]) -> OnbrandError:
    kind, message, param = reply["refused"], reply.get("message"), reply.get("param")
    if kind not in _REFUSALS or not isinstance(message, str) or not isinstance(param, str | None):
        raise BrokenFrame("the refusal has not the form of one")
    return _REFUSALS[kind](printed(message[:1000]), **({"param": param[:40]} if param else {}))
