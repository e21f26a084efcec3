"""Generated pages match the code, and links between pages point to existing files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_the_table_of_settings_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ".ci/write-settings", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_decisions_say_why_and_what_and_have_a_number_of_their_own() -> None:
    decisions = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
    numbers = [decision.name[:4] for decision in decisions]
    assert len(numbers) == len(set(numbers))
    for decision in decisions:
        text = decision.read_text()
        for part in ("Context", "Decision"):
            assert f"**{part}.**" in text, f"{decision.name} has no {part}"


def test_the_makefile_has_the_verbs_that_the_pages_name() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    verbs = set(re.findall(r"make (\w+)", done.stdout))
    named = {verb for page in PAGES for verb in re.findall(r"`?make ([a-z]+)`", page.read_text())}
    assert {"help", "setup", "demo", "up", "test", "check", "bench"} <= verbs
    assert named <= verbs
