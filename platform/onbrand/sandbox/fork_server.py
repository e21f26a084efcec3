"""A process that has loaded its children's libraries and forks a child on each request.

It reads nothing from outside. A request on its one socket is a number and three descriptors: the child's input, its
output and its control socket. There the server sends the child's pid (with its pidfd, so that the parent can end the
child even if the server cannot) and, when the child has ended, its exit code. Closing a control socket ends its child;
closing the socket ends the server after its last child. `onbrand.sandbox.processes` is the other end.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import struct
from collections.abc import Callable
from typing import NoReturn

from onbrand.sandbox.seccomp import be_unreadable

REQUEST = struct.Struct("<Q")
STATUS = struct.Struct("<i")
"""First the pid, then the exit code (the negative number of a signal)."""
NUM_DESCRIPTORS = 3
_NICENESS = 4
"""Lowers the priority: the API and the database share the cores and need little of them."""
_STDIN, _STDOUT, _FIRST_OTHER = 0, 1, 3
_NUM_DESCRIPTORS_MAX = 1024


def serve(run: Callable[[int], None]) -> NoReturn:
    """Fork a child for every request at standard input, until it is closed.

    Args:
        run: called in the child with the number of the request. The child has its input and output as descriptors 0
            and 1, and no other but 2. It exits with 0 if `run` returns, with 1 if it raises.
    """
    be_unreadable()
    os.nice(_NICENESS)
    requests = socket.socket(fileno=_STDIN)
    child_exits = _child_exit_socket()
    limit = min(_NUM_DESCRIPTORS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    control_sockets: dict[int, socket.socket] = {}
    is_open = True
    gc.collect()
    gc.freeze()  # frozen objects are not touched by collection, so children share their pages
    while is_open or control_sockets:
        ready, _, _ = select.select([child_exits, *([requests] if is_open else []), *control_sockets.values()], [], [])
        if child_exits in ready:
            child_exits.recv(2**12)
        for pid, control_socket in list(control_sockets.items()):
            if control_socket in ready:
                os.kill(pid, signal.SIGKILL)  # it has not been waited for: the pid is still its own
            ended, status = os.waitpid(pid, 0 if control_socket in ready else os.WNOHANG)
            if ended:
                _send_exit_code(control_sockets.pop(pid), os.waitstatus_to_exitcode(status))
        if requests in ready:
            request, given, _, _ = socket.recv_fds(requests, REQUEST.size, NUM_DESCRIPTORS)
            is_open = len(request) == REQUEST.size and len(given) == NUM_DESCRIPTORS
            if not is_open:
                requests.close()
                for descriptor in given:
                    os.close(descriptor)
            else:
                control_socket = socket.socket(fileno=given[2])
                with contextlib.suppress(OSError):  # without a child the socket closes, which the parent notices
                    pid = _fork(run, REQUEST.unpack(request)[0], *given[:2])
                    control_sockets[pid] = control_socket
                    _send_pid(pid, control_socket)
    os._exit(0)


def _fork(run: Callable[[int], None], number: int, to_read: int, to_write: int) -> int:
    """Fork a child with these descriptors as input and output; returns its pid. Raises OSError."""
    try:
        pid = os.fork()
        if pid == 0:
            _run_child(run, number, to_read, to_write)
        return pid
    finally:
        os.close(to_read)
        os.close(to_write)


def _send_pid(pid: int, control_socket: socket.socket) -> None:
    """Send the child's pid and, where the system has them, its pidfd. Raises OSError."""
    descriptors = []
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            descriptors.append(os.pidfd_open(pid))
    try:
        socket.send_fds(control_socket, [STATUS.pack(pid)], descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _child_exit_socket() -> socket.socket:
    """A socket that becomes readable when a child has ended."""
    readable, writable = socket.socketpair()
    writable.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writable.detach(), warn_on_full_buffer=False)
    return readable


def _run_child(run: Callable[[int], None], number: int, to_read: int, to_write: int) -> NoReturn:
    """Run as the child, which keeps nothing of the server but its memory."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.dup2(to_read, _STDIN)
        os.dup2(to_write, _STDOUT)
        os.closerange(_FIRST_OTHER, _NUM_DESCRIPTORS_MAX)
        run(number)
        code = 0
    finally:
        os._exit(code)


def _send_exit_code(control_socket: socket.socket, code: int) -> None:
    with control_socket, contextlib.suppress(OSError):  # the other end may be closed already
        control_socket.send(STATUS.pack(code))
