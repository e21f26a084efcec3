"""The command line's view of a training: a plot, a sheet of samples, the newest numbers, log lines."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from onbrand.cli.exits import Refused
from onbrand.cli.monitor import _text
from onbrand.cli.plots import draw_series, figure_of, sheet_of
from onbrand.cli.train import _notes
from onbrand.client import LogLine, MetricsSeries, TrainingJob

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def series(num: int = 40, judged: bool = True) -> MetricsSeries:
    points = [{"step": n, "at": NOW, "loss": 1 / n, "learning_rate": 1e-4} for n in range(1, num + 1)]
    validations = [{"step": n, "at": NOW, "loss": 0.2 + abs(n - 30) / 100} for n in range(10, num + 1, 10)]
    best = {"step": 30, "at": NOW, "loss": 0.2}
    held = {"validations": validations, "num_validations": len(validations), "best": best} if judged else {}
    return MetricsSeries.model_validate({"data": points, "num_points": num, **held})


def test_a_plot_has_both_losses_and_marks_the_best_step() -> None:
    figure = figure_of(series(), "first: sd15, completed")
    losses, rates = figure.axes
    trained, judged, best = losses.lines
    assert list(trained.get_xdata()) == list(range(1, 41))
    assert list(judged.get_xdata()) == [10, 20, 30, 40]
    assert (list(best.get_xdata()), list(best.get_ydata())) == ([30], [0.2])
    assert "best: step 30, 0.2000" in [text.get_text() for text in losses.get_legend().get_texts()]
    assert list(rates.lines[0].get_ydata()) == [1e-4] * 40


def test_a_plot_is_written_as_the_name_says(tmp_path: Path) -> None:
    path = draw_series(series(judged=False), "first", tmp_path / "course.png")
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (1080, 660))
    with pytest.raises(Refused, match="must end in one of"):
        draw_series(series(), "first", tmp_path / "course.odd")
    with pytest.raises(Refused, match="no numbers yet"):
        draw_series(MetricsSeries(data=(), num_points=0), "first", tmp_path / "none.png")
    assert [each.name for each in tmp_path.iterdir()] == ["course.png"]


def test_a_sheet_shows_each_prompts_base_before_what_the_adapter_makes_of_it() -> None:
    def sample(drawn_by: str, step: int, index: int, colour: str) -> tuple[Any, bytes]:
        file = io.BytesIO()
        Image.new("RGB", (64, 64), colour).save(file, "PNG")
        return SimpleNamespace(drawn_by=drawn_by, step=step, index=index), file.getvalue()

    sheet = sheet_of(
        [
            sample("base", 0, 0, "red"),
            sample("base", 0, 1, "blue"),
            sample("adapter", 100, 0, "lime"),
            sample("adapter", 100, 1, "yellow"),
        ]
    )
    middles = [[sheet.getpixel((8 + 96 + 200 * column, 28 + 96 + 200 * row)) for column in (0, 1)] for row in (0, 1)]
    assert middles == [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 0)]]


def job(status: str, **told: Any) -> TrainingJob:
    known = {"id": "1", "brand_id": "acme", "name": "n", "model_type": "sd15", "status": status}
    return TrainingJob.model_validate(known | told)


def test_the_newest_numbers_are_one_line() -> None:
    told = {"step": 120, "steps": 200, "loss": 0.25, "samples_per_s": 31.26}
    judged = {"validation_loss": 0.2, "best_validation_loss": 0.19, "best_step": 100}
    assert _notes(job("pending")) == ""
    assert _notes(job("training", metrics=told, eta_seconds=61.4)) == (
        "step 120 of 200, loss 0.2500, 31.3 pictures/s, ETA 0:01:01"
    )
    assert _notes(job("completed", metrics=told | judged)) == (
        "step 120 of 200, loss 0.2500, held-out 0.2000, best 0.1900 at 100"
    )


def test_a_line_says_when_and_how_bad() -> None:
    line = LogLine(seq=1, at=NOW, level="warning", code="copied", message="a sample is a copy")
    assert _text(line) == "2026-01-02 03:04:05  warning: a sample is a copy"
