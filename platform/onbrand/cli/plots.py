"""Plots of a training: training and held-out loss by step, with the best step marked; and a sheet of its samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onbrand.cli.exits import CONFLICT, Refused

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from onbrand.client import MetricsSeries

_TRAINED, _JUDGED, _BEST = "#8a8f98", "#1f5fd0", "#d0471f"


def draw_series(series: MetricsSeries, title: str, path: Path) -> Path:
    """Write the plot to `path`; its extension gives the format. Raises Refused for another one, and without metrics."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if not series.data:
        raise Refused("the job has told no numbers yet; look again when it trains", CONFLICT, "no_metrics")
    figure = figure_of(series, title)
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in kinds:
        raise Refused(f"--out must end in one of {', '.join(sorted(kinds))}, e.g. training.png")
    figure.savefig(path, dpi=120)
    return path


def figure_of(series: MetricsSeries, title: str) -> Figure:
    """A figure with both losses above the learning rate. Opens no window and does not use pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    _draw_losses(losses, series)
    rates.plot(*_line(series, "learning_rate"), color=_TRAINED, lw=1.5)
    rates.set(ylabel="learning rate", xlabel="step")
    rates.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    figure.suptitle(title)
    return figure


def _draw_losses(axes: Axes, series: MetricsSeries) -> None:
    axes.plot(*_line(series, "loss"), color=_TRAINED, lw=1.5, label="training loss (mean of 20 steps)")
    judged = series.validations
    if judged:
        at = [judgement.step for judgement in judged]
        axes.plot(at, [judgement.loss for judgement in judged], "o-", color=_JUDGED, label="loss on held-out pictures")
    if series.best is not None:
        step, loss = series.best.step, series.best.loss
        label = f"best: step {step}, {loss:.4f}"
        axes.plot([step], [loss], "*", ms=14, color=_BEST, label=label, zorder=3)
    axes.set(ylabel="loss")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _line(series: MetricsSeries, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, without the points that lack it."""
    told = {point.step: getattr(point, name) for point in series.data}
    known = {step: float(value) for step, value in told.items() if value is not None}
    return list(known), list(known.values())


def sheet_of(samples: list[tuple[Any, bytes]]) -> Any:
    """A Pillow image of all samples: a row per prompt, with the base's picture first, then the adapter's by step."""
    import io

    from PIL import Image, ImageDraw, ImageFont, ImageOps

    side, gap, head = 192, 8, 28
    columns = list(dict.fromkeys((sample.drawn_by, sample.step) for sample, _ in samples))
    rows = sorted({sample.index for sample, _ in samples})
    sheet = Image.new("RGB", (gap + len(columns) * (side + gap), head + len(rows) * (side + gap)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, (drawn_by, step) in enumerate(columns):
        pen.text((gap + column * (side + gap), 6), "base" if drawn_by == "base" else f"step {step}", "black", font)
    for sample, data in samples:
        column, row = columns.index((sample.drawn_by, sample.step)), rows.index(sample.index)
        with Image.open(io.BytesIO(data)) as picture:
            fitted = ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
        sheet.paste(fitted, (gap + column * (side + gap), head + row * (side + gap)))
    return sheet
