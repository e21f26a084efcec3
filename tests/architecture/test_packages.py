"""`.ci/check-packages` accepts or rejects known vulnerabilities, and reports when it has no data."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TODAY = date(2026, 3, 1)
FINE = {"name": "fine", "version": "1.0", "vulns": []}
BAD = {
    "name": "bad",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "fix_versions": ["2.1"], "description": "x"}],
}
UNKNOWN = {"name": "other", "skip_reason": "Dependency not found on PyPI"}


@pytest.fixture(scope="module")
def check() -> Any:
    loader = SourceFileLoader("check_packages", str(ROOT / ".ci/check-packages"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def accepted(**fields: Any) -> list[dict[str, Any]]:
    return [{"id": "PYSEC-2026-1", "package": "bad", "reason": "not used", "until": date(2026, 3, 1)} | fields]


def test_packages_without_findings_pass(check: Any) -> None:
    lines, status = check.judged([FINE, UNKNOWN], [], TODAY)
    assert (lines, status) == (["packages: 1 checked, 1 not known to the service, 0 findings"], 0)


def test_a_finding_fails_and_says_what_fixes_it(check: Any) -> None:
    lines, status = check.judged([FINE, BAD], [], TODAY)
    assert (lines[0], status) == ("bad 2.0: PYSEC-2026-1 FOUND; fixed in 2.1", 1)


@pytest.mark.parametrize("name", ["PYSEC-2026-1", "CVE-2026-1"])
def test_an_accepted_finding_passes_up_to_its_day(check: Any, name: str) -> None:
    assert check.judged([BAD], accepted(id=name), TODAY)[1] == 0
    lines, status = check.judged([BAD], accepted(id=name, until=date(2026, 2, 28)), TODAY)
    assert (status, "look at it again" in lines[0]) == (1, True)


def test_a_finding_is_accepted_for_its_package_alone(check: Any) -> None:
    assert check.judged([BAD], accepted(package="fine"), TODAY)[1] == 1


def test_a_service_that_knows_nothing_is_told_apart_from_no_findings(check: Any) -> None:
    lines, status = check.judged([UNKNOWN, UNKNOWN], [], TODAY)
    assert (status, "NOT CHECKED" in lines[0]) == (0, True)


@pytest.mark.parametrize("output", ["", "Traceback", "[]", '{"other": 1}'])
def test_what_is_no_report_is_none(check: Any, output: str) -> None:
    assert check.report_of(output) is None


@pytest.mark.parametrize(
    "text",
    [
        '[[accepted]]\nid = "A"\npackage = "b"\nreason = "c"',
        '[[accepted]]\nid = "A"\npackage = "b"\nreason = ""\nuntil = 2026-01-01',
        '[[accepted]]\nid = "A"\npackage = "b"\nreason = "c"\nuntil = "soon"',
    ],
)
def test_an_acceptance_needs_a_reason_and_a_day(check: Any, text: str) -> None:
    with pytest.raises(SystemExit):
        check.accepted_of(text)


def test_the_accepted_findings_are_readable(check: Any) -> None:
    check.accepted_of((ROOT / ".ci/accepted-findings.toml").read_text())


def test_without_a_network_it_says_so_and_passes() -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "HTTPS_PROXY": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/check-packages"],
        env=nowhere,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, "NOT CHECKED" in done.stdout) == (0, True), done.stdout + done.stderr


def test_make_check_runs_it() -> None:
    assert ".ci/check-packages" in (ROOT / "Makefile").read_text()
