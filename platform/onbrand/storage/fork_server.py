"""A process that has loaded all that its children need, and forks one whenever it is asked.

It reads nothing from outside. Over its one socket come, for each child, a number and three descriptors: the child's
input, its output and its leash. On the leash the server tells the child's pid when it begins and its exit code when
it has ended; with the pid comes a descriptor of the process, for whoever must end it although the server cannot. Who
lets go of a leash ends its child; who lets go of the socket ends the server with its last child.
`onbrand.storage.children` is the other end.
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

from onbrand.storage.syscalls import be_unreadable

ASKED = struct.Struct("<Q")
TOLD = struct.Struct("<i")
"""First the pid, then the exit code (of a signal: its number, negative)."""
NUM_DESCRIPTORS = 3
_NICENESS = 4
"""Files are read beside the API and the database, which share the cores and need little of them."""
_STDIN, _STDOUT, _FIRST_OTHER = 0, 1, 3
_NUM_DESCRIPTORS_MAX = 1024


def serve(run: Callable[[int], None]) -> NoReturn:
    """Fork for every message that comes at standard input, until there are no more.

    Args:
        run: what a child does, given the number it was asked with; it has its input and output as descriptors 0 and 1
            and no other but 2. It ends with 0 if this returns, with 1 if it raises.
    """
    be_unreadable()
    os.nice(_NICENESS)
    requests = socket.socket(fileno=_STDIN)
    woken = _wakes_at_a_childs_end()
    most = min(_NUM_DESCRIPTORS_MAX, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    leashes: dict[int, socket.socket] = {}
    is_asked = True
    gc.collect()
    gc.freeze()  # what is never collected is never copied for a child
    while is_asked or leashes:
        ready, _, _ = select.select([woken, *([requests] if is_asked else []), *leashes.values()], [], [])
        if woken in ready:
            woken.recv(2**12)
        for pid, leash in list(leashes.items()):
            if leash in ready:
                os.kill(pid, signal.SIGKILL)  # it has not been waited for: the pid is still its own
            ended, status = os.waitpid(pid, 0 if leash in ready else os.WNOHANG)
            if ended:
                _tell(leashes.pop(pid), os.waitstatus_to_exitcode(status))
        if requests in ready:
            asked, given, _, _ = socket.recv_fds(requests, ASKED.size, NUM_DESCRIPTORS)
            is_asked = len(asked) == ASKED.size and len(given) == NUM_DESCRIPTORS
            if not is_asked:
                requests.close()
                for descriptor in given:
                    os.close(descriptor)
            else:
                leash = socket.socket(fileno=given[2])
                with contextlib.suppress(OSError):  # without a process, the leash is let go: that tells
                    pid = _fork(run, ASKED.unpack(asked)[0], *given[:2])
                    leashes[pid] = leash
                    _tell_of(pid, leash)
    os._exit(0)


def _fork(run: Callable[[int], None], number: int, to_read: int, to_write: int) -> int:
    """A child with these for its input and output; its pid. Raises OSError."""
    try:
        pid = os.fork()
        if pid == 0:
            _become(run, number, to_read, to_write)
        return pid
    finally:
        os.close(to_read)
        os.close(to_write)


def _tell_of(pid: int, leash: socket.socket) -> None:
    """The child's pid, and where the system has such a thing, a descriptor of it. Raises OSError."""
    descriptors = []
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            descriptors.append(os.pidfd_open(pid))
    try:
        socket.send_fds(leash, [TOLD.pack(pid)], descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _wakes_at_a_childs_end() -> socket.socket:
    """What can be read when a child has ended."""
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.detach(), warn_on_full_buffer=False)
    return woken


def _become(run: Callable[[int], None], number: int, to_read: int, to_write: int) -> NoReturn:
    """Be the child, with nothing of the server's but its memory."""
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


def _tell(leash: socket.socket, code: int) -> None:
    with leash, contextlib.suppress(OSError):  # nobody may hold the other end any more
        leash.send(TOLD.pack(code))
