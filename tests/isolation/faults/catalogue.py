"""Reads faults.yaml: faults of one line, each of which would give one brand access to another's objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PACKAGE = ROOT / "platform/onbrand"
AREAS = ("rows", "storage", "tickets", "api", "engine")
SOME = {"rows": 7, "storage": 3, "tickets": 2, "api": 3, "engine": 2}
"""The number of faults of each area in `make test`; `make prove-wall` tries all."""


class BadCatalogue(Exception):
    """An entry of faults.yaml that cannot be applied; the message names it."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        area: one of AREAS, for the count.
        file: below platform/onbrand.
        says: a text that the file contains exactly once.
        becomes: the text that replaces it.
        why: the access that the fault would give.
        tests: the tests that should notice, as arguments of pytest.
        own_server: the fault changes roles, which all databases of a server share.
    """

    id: str
    area: str
    file: str
    says: str
    becomes: str
    why: str
    tests: tuple[str, ...]
    own_server: bool = False

    @property
    def path(self) -> Path:
        return PACKAGE / self.file

    @property
    def is_sql(self) -> bool:
        return self.path.suffix == ".sql"

    def broken_text(self) -> str:
        """The file with the fault. Raises BadCatalogue unless it contains `says` exactly once."""
        text = self.path.read_text() if self.path.exists() else ""
        if text.count(self.says) != 1:
            raise BadCatalogue(f"{self.id}: {self.file} has its text {text.count(self.says)} times, not once")
        return text.replace(self.says, self.becomes)


def read_catalogue(path: Path = HERE / "faults.yaml") -> list[Fault]:
    """Every fault, in the order of the file. Raises BadCatalogue."""
    said = yaml.safe_load(path.read_text())
    suites: dict[str, list[str]] = said["suites"]
    faults = [_fault(area, suites, entry) for area in AREAS for entry in said["faults"][area]]
    if len({fault.id for fault in faults}) != len(faults):
        raise BadCatalogue("two faults have the same id")
    return faults


def _fault(area: str, suites: dict[str, list[str]], entry: dict[str, Any]) -> Fault:
    tests = suites[entry["tests"]] if isinstance(entry["tests"], str) else entry["tests"]
    rest = {name: value for name, value in entry.items() if name != "tests"}
    return Fault(area=area, tests=tuple(f"tests/{test}" for test in tests), **rest)


def some(faults: Sequence[Fault]) -> list[Fault]:
    """As many of each area as `SOME` says, evenly spaced and always the same."""
    areas = {area: [fault for fault in faults if fault.area == area] for area in AREAS}
    return [found[n * len(found) // num] for area, num in SOME.items() if (found := areas[area]) for n in range(num)]
