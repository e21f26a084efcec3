"""`onbrand demo` as a whole. It takes minutes: `pytest -m demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import place_for_a_platform
from tests.s3.ceph import CephS3
from tools.harness.platform_process import Running, onbrand, pixels

pytestmark = [pytest.mark.demo, pytest.mark.timeout(900)]


def demo(folder: Path, *options: str, **env: str) -> dict[str, Any]:
    """Run the demo; returns its report. It must exit with 0 and leave no process and no folder."""
    marked = Running(folder)
    with place_for_a_platform() as scratch:
        done = onbrand(
            *("demo", "--out", folder / "demo-output", "--json", *options),
            config=folder,
            timeout=840,
            ONBRAND_TEST_MARK=marked.mark,
            TMPDIR=str(scratch),
            **env,
        )
        assert done.returncode == 0, done.stderr
        assert list(scratch.iterdir()) == []
    assert marked.processes() == []
    return dict(json.loads(done.stdout))


def must_show_two_brands_and_a_wall(report: dict[str, Any]) -> None:
    assert [brand["job"]["status"] for brand in report["brands"]] == ["completed", "completed"]
    assert all(brand["fit"]["adapter"] <= 0.3 * brand["fit"]["base"] for brand in report["brands"])
    assert report["denied"]["tried"] == report["denied"]["refused"] >= 8
    assert all(Path(picture).is_file() for brand in report["brands"] for picture in brand["images"])


@pytest.mark.parametrize("model_type", ["sd15", "sdxl", "flux"])
def test_the_demo_shows_two_brands_and_the_wall_between_them(tmp_path: Path, model_type: str) -> None:
    report = demo(tmp_path, "--model-type", model_type)
    must_show_two_brands_and_a_wall(report)
    assert report == json.loads((tmp_path / "demo-output" / "report.json").read_text())
    assert min(pixels(tmp_path / "demo-output" / "contact-sheet.png").shape[:2]) > 500


def test_the_demo_shows_the_same_on_s3(tmp_path: Path, s3_server: CephS3) -> None:
    access_key, secret_key = s3_server.admin
    report = demo(
        tmp_path,
        ONBRAND_STORAGE_URL="s3://onbrand-demo-",
        ONBRAND_S3_ENDPOINT=s3_server.endpoint,
        ONBRAND_S3_ACCESS_KEY=access_key,
        ONBRAND_S3_SECRET_KEY=secret_key,
    )
    must_show_two_brands_and_a_wall(report)
