"""How many checks of the matrix were made: one persona, one row, one answer each. Printed at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest


@dataclass
class Tally:
    """Checks by the way they were made (`http`, `sql`), and how many of them came out otherwise."""

    num_checks: dict[str, int] = field(default_factory=dict)
    num_mismatches: int = 0

    def compare(self, way: str, found: Mapping[str, object], wanted: Mapping[str, object]) -> None:
        """Count every answer, then fail with all that differ."""
        assert found.keys() == wanted.keys()
        wrong = {name: f"{found[name]}, not {wanted[name]}" for name in wanted if found[name] != wanted[name]}
        self.num_checks[way] = self.num_checks.get(way, 0) + len(wanted)
        self.num_mismatches += len(wrong)
        assert not wrong, wrong

    def __str__(self) -> str:
        ways = ", ".join(f"{num} {way}" for way, num in sorted(self.num_checks.items()))
        return f"the matrix: {sum(self.num_checks.values())} checks ({ways}), {self.num_mismatches} mismatches"


TALLY = pytest.StashKey[Tally]()
