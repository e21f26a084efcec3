"""Processor time of a platform's processes, by what they do. Reads Linux's /proc."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tools.harness.platform_process import command_line

ROLES = {
    "onbrand.serving.engine_child": "engine",
    "ServeReplica:engine-": "replica",
    "ServeReplica:onbrand": "ingress",
    "ServeReplica:internal": "system",
    "Proxy": "proxy",
    "postgres": "postgres",
    "ServeController": "controller",
}
"""A part of a process's command line, and the role of the process. All others are `ray`."""
_TICKS = os.sysconf("SC_CLK_TCK")


def seconds_by_role(pids: Iterable[int]) -> Counter[str]:
    """Processor seconds so far, of the processes and of their ended children."""
    found: Counter[str] = Counter()
    for pid in pids:
        found[role_of(pid)] += seconds_of(pid)
    return found


def role_of(pid: int) -> str:
    """What a process of a platform does."""
    text = command_line(pid)
    return next((role for part, role in ROLES.items() if part in text), "ray")


def seconds_of(pid: int) -> float:
    """User and system time in seconds, with that of ended children; 0 if the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS
