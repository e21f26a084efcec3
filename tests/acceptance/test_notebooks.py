"""The notebooks run unchanged with a running platform, and use the client only."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tools.harness.platform_process import REPOSITORY, Running


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_quickstart_runs_to_its_end(platform: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONBRAND_URL", platform.url)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "platform"))
    monkeypatch.delenv("ONBRAND_TOKEN", raising=False)
    notebook = nbformat.read(REPOSITORY / "notebooks" / "quickstart.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert (tmp_path / "billboard.png").is_file()
    assert (tmp_path / "training.png").is_file()


def test_the_quickstart_imports_nothing_of_onbrand_but_the_client() -> None:
    text = (REPOSITORY / "notebooks" / "quickstart.ipynb").read_text()
    assert "onbrand.client" in text
    assert text.count("onbrand.") == text.count("onbrand.client")
