"""Runs the trials of all faults, several at a time, and collects their results."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.isolation.faults import trial
from tests.isolation.faults.catalogue import Fault
from tests.isolation.faults.server import Logins, Server, running_server
from tests.isolation.faults.trial import Story

TRIAL_SECONDS = 900.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Outcome:
    """The result of one fault's trial (None: nothing broken), and its `seconds` of wall clock."""

    fault: Fault | None
    story: Story
    seconds: float

    def __str__(self) -> str:
        if self.fault is None:
            if self.story.is_whole:
                return f"unbroken: {self.story.num_passed} tests pass in {self.seconds:.0f} s"
            return f"the suite fails with nothing broken: {self._what_else}"
        verdict = "caught  " if self.story.is_caught else "SURVIVED" if self.story.is_whole else "BROKEN  "
        told = self.story.failed_at.removeprefix("tests/") if self.story.is_caught else self._what_else
        return f"{verdict} {self.fault.id:<42} {self.seconds:5.1f} s  {told}"

    @property
    def _what_else(self) -> str:
        if not self.story.is_planted:
            return "the broken file was never read"
        if self.story.is_whole:
            return f"{self.story.num_passed} tests passed: {self.fault.why if self.fault else ''}"
        return "; ".join([*self.story.problems, f"{self.story.failed_at} {self.story.because}"])[:400]


@dataclass
class _Running:
    pid: int
    since: float
    into: Path
    database: str


class Prover:
    """Runs trials on one server."""

    def __init__(self, server: Server, folder: Path, num_at_once: int) -> None:
        self._server, self._folder, self._num_at_once = server, folder, num_at_once

    def outcomes(self, faults: Sequence[Fault]) -> Iterator[Outcome]:
        """Results as they come in: of all the faults' tests with nothing broken, and of every fault."""
        waiting: list[Fault | None] = [None, *faults]
        going: list[tuple[Fault | None, _Running]] = []
        while waiting or going:
            while waiting and len(going) < self._num_at_once:
                fault = waiting.pop(0)
                going.append((fault, self._begin_unbroken(faults) if fault is None else self._begin(fault)))
            for fault, running in list(going):
                if self._has_ended(running):
                    going.remove((fault, running))
                    yield Outcome(fault, self._story_of(running), time.monotonic() - running.since)
            time.sleep(_POLL_SECONDS)

    def _begin_unbroken(self, faults: Sequence[Fault]) -> _Running:
        tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
        return self._start("unbroken", None, tests, self._server.copy("unbroken"))

    def _begin(self, fault: Fault) -> _Running:
        name = "trial_" + fault.id.replace("-", "_")
        if fault.own_server:
            return self._start(name, fault, fault.tests, None)
        logins = self._server.empty(name) if fault.is_sql else self._server.copy(name)
        return self._start(name, fault, fault.tests, logins)

    def _start(self, name: str, fault: Fault | None, tests: Sequence[str], logins: Logins | None) -> _Running:
        into = self._folder / f"{name}.json"
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            trial.run(fault, tests, None if logins is None else str(logins), into)
        return _Running(pid, time.monotonic(), into, name)

    def _has_ended(self, running: _Running) -> bool:
        ended, _ = os.waitpid(running.pid, os.WNOHANG)
        if not ended and time.monotonic() - running.since > TRIAL_SECONDS:
            os.killpg(running.pid, signal.SIGKILL)
            os.waitpid(running.pid, 0)
            return True
        return bool(ended)

    def _story_of(self, running: _Running) -> Story:
        self._server.drop(running.database)
        if not running.into.exists():
            return Story(problems=[f"no end within {TRIAL_SECONDS:.0f} s, or the process died"])
        return Story(**json.loads(running.into.read_text()))


@contextmanager
def prover(num_at_once: int) -> Iterator[Prover]:
    """A prover with its own server. Logs of trials are in a temporary folder until the end."""
    folder = Path(tempfile.mkdtemp(prefix="onbrand-trials-"))
    try:
        with running_server() as server:
            yield Prover(server, folder, num_at_once)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prove(faults: Sequence[Fault], num_at_once: int, say: Callable[[str], None]) -> bool:
    """Run all trials and report. True if the suite passes with nothing broken and catches every fault."""
    begun = time.monotonic()
    with prover(num_at_once) as proving:
        num_caught, is_whole = 0, False
        for outcome in proving.outcomes(faults):
            say(str(outcome))
            if outcome.fault is None:
                is_whole = outcome.story.is_whole
            else:
                num_caught += outcome.story.is_caught
    say(f"caught {num_caught} / seeded {len(faults)} in {time.monotonic() - begun:.0f} s")
    return is_whole and num_caught == len(faults)
