"""The supervisor ends all processes that its command started, however they started and however the parent ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="subreapers are Linux's")
PLATFORM = Path(__file__).parents[2] / "platform"

STRAYS = """
import os, subprocess, sys, tempfile, time
tempfile.mkdtemp()
stray = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
subprocess.run(["sh", "-c", "exec \\"$@\\" & echo $!", "sh", *stray], start_new_session=True)
print("up", flush=True)
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys
folder, strays = sys.argv[1:]
command = [sys.executable, "-m", "onbrand.local.supervisor", str(os.getpid()), folder, sys.executable, "-c", strays]
keeper = subprocess.Popen(command, start_new_session=True)
sys.exit(keeper.wait())
"""


def start(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a parent with a supervisor; returns also the pid of a child with its own session that ignores SIGTERM."""
    folder.mkdir()
    scratch_of(folder).mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), STRAYS],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PLATFORM), "TMPDIR": str(scratch_of(folder))},
    )
    assert parent.stdout is not None
    stray = int(parent.stdout.readline())
    assert parent.stdout.readline() == "up\n"
    assert len(list(scratch_of(folder).iterdir())) == 1
    return parent, stray


def scratch_of(folder: Path) -> Path:
    """The parent's temporary folder."""
    return folder.with_name("scratch")


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def must_clear_up(folder: Path, stray: int) -> None:
    def left() -> list[object]:
        return [*([] if is_gone(stray) else [stray]), *folder.parent.glob(folder.name), *scratch_of(folder).iterdir()]

    end = time.monotonic() + 20
    while left() and time.monotonic() < end:
        time.sleep(0.05)
    assert left() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_stays_when_the_parent_dies(tmp_path: Path, number: signal.Signals) -> None:
    parent, stray = start(tmp_path / "session")
    with parent:
        parent.send_signal(number)
    must_clear_up(tmp_path / "session", stray)


def test_nothing_stays_when_the_keeper_is_asked_to_end(tmp_path: Path) -> None:
    parent, stray = start(tmp_path / "session")
    with parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
    must_clear_up(tmp_path / "session", stray)
