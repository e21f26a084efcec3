"""A plugin that counts the checks of the matrix (one persona, one row, one response each) and reports them at the end.

tests/conftest.py loads it. With several test processes, each counts, and the first one adds the counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest


@dataclass
class CheckCounter:
    """Counts of checks by kind (`http`, `sql`), of mismatches, and further lines to report."""

    num_checks: dict[str, int] = field(default_factory=dict)
    num_mismatches: int = 0
    lines: list[str] = field(default_factory=list)

    def compare(self, way: str, found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
        """Count every response, then fail with all mismatches."""
        assert found.keys() == wanted.keys()
        wrong = {name: f"{found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]}
        self.num_checks[way] = self.num_checks.get(way, 0) + len(wanted)
        self.num_mismatches += len(wrong)
        assert not wrong, wrong

    def add(self, other: CheckCounter) -> None:
        """Add the counts of another process."""
        for way, num in other.num_checks.items():
            self.num_checks[way] = self.num_checks.get(way, 0) + num
        self.num_mismatches += other.num_mismatches
        self.lines += other.lines

    def told(self) -> list[str]:
        """The lines to report at the end of a run."""
        if not self.num_checks:
            return self.lines
        ways = ", ".join(f"{num} {way}" for way, num in sorted(self.num_checks.items()))
        num = sum(self.num_checks.values())
        return [f"the matrix: {num} checks ({ways}), {self.num_mismatches} mismatches", *self.lines]


_CHECK_COUNTER = pytest.StashKey[CheckCounter]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_CHECK_COUNTER] = CheckCounter()


@pytest.fixture(scope="session")
def check_counter(pytestconfig: pytest.Config) -> CheckCounter:
    """The counter of the matrix's checks."""
    return pytestconfig.stash[_CHECK_COUNTER]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send a worker process's counts to the first process."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["check_counter"] = asdict(session.config.stash[_CHECK_COUNTER])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    counted = getattr(node, "workeroutput", {}).get("check_counter")
    if counted:
        node.config.stash[_CHECK_COUNTER].add(CheckCounter(**counted))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[_CHECK_COUNTER].told():
        terminalreporter.write_line(line)
