"""`onbrand demo` as a whole. Minutes long: `pytest -m demo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.running import Running, onbrand, pixels

pytestmark = [pytest.mark.demo, pytest.mark.timeout(900)]


def test_the_demo_shows_two_brands_and_the_wall_between_them(tmp_path: Path) -> None:
    out, marked = tmp_path / "demo-output", Running(tmp_path)
    done = onbrand(
        "demo",
        "--out",
        out,
        "--json",
        config=tmp_path,
        timeout=840,
        ONBRAND_TEST_MARK=marked.mark,
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert [brand["job"]["status"] for brand in report["brands"]] == ["completed", "completed"]
    assert all(brand["fit"]["adapter"] <= 0.3 * brand["fit"]["base"] for brand in report["brands"])
    assert report["denied"]["tried"] == report["denied"]["refused"] >= 8
    assert all(Path(picture).is_file() for brand in report["brands"] for picture in brand["images"])
    assert min(pixels(out / "contact-sheet.png").shape[:2]) > 500
    assert marked.processes() == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("onbrand-demo")) == []
