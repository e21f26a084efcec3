"""With one line of Onbrand broken at a time, the isolation suite must fail each time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.isolation.check_counter import CheckCounter
from tests.isolation.faults.catalogue import AREAS, SOME, BadCatalogue, Fault, read_catalogue, some
from tests.isolation.faults.trial import Story


def test_there_are_enough_faults_of_every_area() -> None:
    found = [fault.area for fault in read_catalogue()]
    assert {area: found.count(area) >= SOME[area] for area in AREAS} == dict.fromkeys(AREAS, True)


def test_the_part_that_is_tried_has_different_ones_of_every_area() -> None:
    tried = some(read_catalogue())
    assert len({fault.id for fault in tried}) == len(tried) == sum(SOME.values()) >= 17
    assert {area: sum(fault.area == area for fault in tried) for area in AREAS} == SOME


def test_every_fault_stands_in_its_file_exactly_once() -> None:
    for fault in read_catalogue():
        assert fault.broken_text() != fault.path.read_text(), fault.id


def test_a_fault_whose_text_is_gone_is_told() -> None:
    gone = Fault("gone", "rows", "brand.py", "what never stood there", "", "", ())
    with pytest.raises(BadCatalogue, match="0 times"):
        gone.broken_text()


@pytest.mark.timeout(3600)
def test_the_suite_catches_every_fault(repository: Path, check_counter: CheckCounter) -> None:
    """A part of every area; `make prove-wall` says it of all, line by line (ONBRAND_TEST_ALL_FAULTS=1: here too)."""
    part = [] if os.environ.get("ONBRAND_TEST_ALL_FAULTS") else ["--some"]
    own = {name: value for name, value in os.environ.items() if not name.startswith(("ONBRAND_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.isolation.faults", *part],
        cwd=repository,
        env=own,
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^caught (\d+) / seeded (\d+)", done.stdout, re.MULTILINE)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    missed = [line for line in done.stdout.splitlines() if line.startswith(("SURVIVED", "BROKEN"))]
    assert (missed, found[1]) == ([], found[2])
    assert done.returncode == 0, done.stdout[:500]
    check_counter.lines.append(found[0])


def story(**said: object) -> Story:
    return Story(**{"num_passed": 3, "failed_at": "a test", "is_assertion": True} | said)  # type: ignore[arg-type]


def test_an_assertion_that_fails_catches_a_fault() -> None:
    assert story().is_caught
    assert not story().is_whole


@pytest.mark.parametrize(
    "said",
    [{"is_assertion": False}, {"is_planted": False}, {"failed_at": ""}],
    ids=["an error of another kind", "a file that nobody read", "no failure"],
)
def test_nothing_else_catches_one(said: dict[str, object]) -> None:
    assert not story(**said).is_caught


@pytest.mark.parametrize(
    "said",
    [{"failed_at": "a test"}, {"num_passed": 0}, {"problems": ["collecting x"]}],
    ids=lambda said: next(iter(said)),
)
def test_a_suite_is_whole_only_when_something_passed_and_nothing_failed(said: dict[str, object]) -> None:
    good = {"failed_at": "", "is_assertion": False}
    assert story(**good).is_whole
    assert not story(**good | said).is_whole
