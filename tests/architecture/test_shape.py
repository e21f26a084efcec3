"""The figures of `.ci/code-shape`: sizes, docstrings, import circles, branches on families, sentences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shape() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/code-shape", "--json"], capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "name", ["long_functions", "long_files", "undocumented", "circles", "family_branches", "clauses"]
)
def test_there_is_none(shape: dict[str, Any], name: str) -> None:
    assert shape[name] == []
