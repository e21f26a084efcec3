"""SIGTERM keeps our handler. Ray's core resets it, which would leave the database and folders behind."""

import ctypes
import signal
import sys
from pathlib import Path

import pytest

from onbrand.local.ray_head import _own_signals


def caught_by_the_process(number: int) -> bool:
    """The caught signals according to the kernel, which `signal.getsignal` does not see."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_handler_stands_after_a_library_reset_it_behind_pythons_back():
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with _own_signals():
            ctypes.CDLL(None).signal(int(signal.SIGTERM), None)
            assert not caught_by_the_process(signal.SIGTERM)
        assert caught_by_the_process(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
