"""The proof of the proof: with one line of Onbrand broken at a time, this suite must fail every time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.isolation.faults.catalogue import AREAS, BadCatalogue, Fault, read_catalogue

LEAST = {"rows": 20, "storage": 6, "tickets": 6, "api": 6, "engine": 4}


def test_there_are_enough_faults_of_every_area() -> None:
    found = [fault.area for fault in read_catalogue()]
    assert len(found) >= 40
    assert {area: found.count(area) >= LEAST[area] for area in AREAS} == dict.fromkeys(AREAS, True)


def test_every_fault_stands_in_its_file_exactly_once() -> None:
    for fault in read_catalogue():
        assert fault.broken_text() != fault.path.read_text(), fault.id


def test_a_fault_whose_text_is_gone_is_told() -> None:
    gone = Fault("gone", "rows", "brand.py", "what never stood there", "", "", ())
    with pytest.raises(BadCatalogue, match="0 times"):
        gone.broken_text()


@pytest.mark.timeout(3600)
def test_the_suite_catches_every_fault(repository: Path, request: pytest.FixtureRequest) -> None:
    """`make prove-wall` says the same, line by line."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ONBRAND_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.isolation.faults"],
        cwd=repository,
        env=own,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^caught (\d+) / seeded (\d+)", done.stdout, re.MULTILINE)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    missed = [line for line in done.stdout.splitlines() if line.startswith(("SURVIVED", "BROKEN"))]
    assert (done.returncode, missed, found[1]) == (0, [], found[2])
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(found[0])
