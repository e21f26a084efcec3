"""`onbrand job metrics, samples, logs` and `onbrand train plot`: metrics, samples and the log of a training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, show, show_rows
from onbrand.cli.plots import draw_series, sheet_of

if TYPE_CHECKING:
    from onbrand.client import LogLine, Sample, TrainingJob

JobId = Annotated[str, typer.Argument(help="The job's id.")]
_POINT = ("step", "loss", "learning_rate", "samples_per_s", "eta_seconds", "at")
_NUM_SHOWN = 20


def metrics(
    job_id: JobId,
    points: Annotated[int, typer.Option(help="At most so many, 2 to 1000, spread evenly.")] = _NUM_SHOWN,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """The metrics of a training: loss, learning rate, speed, time left, and the loss on held-out pictures."""
    series = _job(job_id, brand).metrics_series(points)
    if as_json:
        show(series, "", as_json)
        return
    show_rows(series.data, _POINT, as_json)
    if series.validations:
        show_rows(series.validations, ("step", "loss", "at"), as_json)
    best = series.best
    said = f"best on held-out pictures: {best.loss:.4f} at step {best.step}" if best else "nothing is held out"
    print(f"{len(series.data)} of {series.num_points} points; {said}")


def plot(
    job_id: JobId,
    out: Annotated[Path | None, typer.Option(help="The file; training-ID.png. Its ending says the format.")] = None,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Draw loss and held-out loss over the steps as a picture."""
    job = _job(job_id, brand)
    title = f"{job.name}: {job.model_type}, {job.status}"
    path = draw_series(job.metrics_series(1000), title, out or Path(f"training-{job.id[:8]}.png"))
    show({"id": job.id, "path": str(path)}, f"Saved {path}.", as_json)


def samples(
    job_id: JobId,
    out: Annotated[
        Path | None, typer.Option(help="A folder for all pictures, or a .png to see them on one sheet.")
    ] = None,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """The sample pictures: for each prompt the base's, then the adapter's at each sampled step."""
    found = list(_job(job_id, brand).samples())
    if out is None:
        show_rows(found, ("index", "drawn_by", "step", "seed"), as_json)
        return
    paths = _saved(found, out)
    show({"id": job_id, "paths": [str(path) for path in paths]}, f"Saved {len(found)} samples at {out}.", as_json)


def _saved(found: list[Sample], out: Path) -> list[Path]:
    if out.suffix.lower() == ".png":
        sheet_of([(sample, sample.read()) for sample in found]).save(out)
        return [out]
    out.mkdir(parents=True, exist_ok=True)
    return [sample.download(out) for sample in found]


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """The lines of the run's log."""
    job = _job(job_id, brand)
    if not follow:
        lines = list(job.logs())
        text = "\n".join(map(_text, lines))
        show({"object": "list", "data": [line.model_dump(mode="json") for line in lines]}, text, as_json)
        return
    if as_json:
        raise typer.BadParameter("--follow has no one document to print; leave out --json")
    _follow(job)


def _follow(job: TrainingJob) -> None:
    """Print every log line once, until the job ends; events signal new lines."""
    last = _print_after(job, 0)
    for event in job.events(after=last):
        if event.kind != "progress":
            last = _print_after(job, last)
            sys.stdout.flush()


def _print_after(job: TrainingJob, last: int) -> int:
    for line in job.logs(after=last):
        print(_text(line))
        last = line.seq
    return last


def _text(line: LogLine) -> str:
    level = "" if line.level == "info" else f"{line.level}: "
    return f"{line.at:%Y-%m-%d %H:%M:%S}  {level}{line.message}"


def _job(job_id: str, brand: str | None) -> Any:
    client = connect()
    return client.training_jobs.get(chosen_brand(client, brand), job_id)
