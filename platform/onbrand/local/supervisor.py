"""Run one command as a child process, and end it with all its descendants when the command or the parent ends.

`onbrand up` starts Ray by `python -m onbrand.local.supervisor PARENT FOLDER COMMAND...`, so that no process of Ray
remains, even after `kill -9`. FOLDER is removed, and so is the command's own temporary folder, because a killed process
does not clean up. Standard library only, so that the process stays small.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GRACE_SECONDS, _KILL_SECONDS, _POLL_SECONDS = 3.0, 10.0, 0.25


def main(parent: int, folder: Path, command: list[str]) -> int:
    """Run `command` while process `parent` lives; returns the command's exit status."""
    signals = _listen()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphaned descendants become our children, so that none is lost
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    scratch = tempfile.mkdtemp(prefix="onbrand-")
    environment = os.environ | {"TMPDIR": scratch}
    child = subprocess.Popen(command, env=environment, preexec_fn=_die_with_parent)  # noqa: PLW1509 - one thread here
    try:
        while not signals and child.poll() is None and os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
            _reap(child.pid)
        return child.returncode or 0
    finally:
        end_tree(os.getpid())
        for gone in (folder, scratch):
            shutil.rmtree(gone, ignore_errors=True)


def end_tree(root: int) -> None:
    """End every descendant of process `root`: SIGTERM to its children first, SIGKILL to all that remain."""
    for pid in children(root):
        _signal(pid, signal.SIGTERM)
    end = time.monotonic() + _GRACE_SECONDS
    while _alive_below(root) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS / 5)
    end = time.monotonic() + _KILL_SECONDS
    while (left := _alive_below(root)) and time.monotonic() < end:
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS / 5)


def children(pid: int) -> list[int]:
    """Direct children of a process (Linux; empty elsewhere)."""
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, tasks.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    direct = children(pid)
    return direct + [deeper for child in direct for deeper in descendants(child)]


def _alive_below(root: int) -> list[int]:
    _reap(None)
    return descendants(root)


def _reap(but: int | None) -> None:
    """Reap ended child processes except `but`, whose status `Popen` must see."""
    for pid in children(os.getpid()):
        if pid != but:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _listen() -> list[int]:
    """The termination signals received so far, as a growing list; the parent handles a terminal's Ctrl-C."""
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return signals


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
