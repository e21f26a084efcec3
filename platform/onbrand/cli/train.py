"""`onbrand train`: create a training job and follow it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onbrand.cli import monitor
from onbrand.cli.exits import REFUSED
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, progress_bar, show

if TYPE_CHECKING:
    from onbrand.client import DataCheck, TrainingJob


_WAITS = {
    "brand": "for another job of the brand to end",
    "platform": "for a job of the platform to end",
    "resources": "for machines that are free and large enough",
    "operator": "until the platform's operators start jobs again",
}
app = typer.Typer(name="train", help="Fine-tune an adapter, and plot how it went.")


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    model_type: Annotated[str, typer.Option(help="flux, sdxl or sd15.")] = "sd15",
    asset: Annotated[list[str] | None, typer.Option(help="An asset's id, repeatable; 'all' (the default).")] = None,
    name: Annotated[str | None, typer.Option(help="What to call the job; 'sd15 adapter'.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Pixels of a side.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures in a step.")] = None,
    targets: Annotated[str | None, typer.Option(help="attention, strong or all.")] = None,
    trigger_word: Annotated[str | None, typer.Option(help="What '[brand]' stands for; the brand's id.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same adapter.")] = None,
    sample_prompt: Annotated[list[str] | None, typer.Option(help="Drawn while it trains; repeatable.")] = None,
    workers: Annotated[int | None, typer.Option(help="Ray Train workers.")] = None,
    continue_from: Annotated[
        str | None, typer.Option("--continue", help="A model of the brand to begin with, e.g. sd15-lora-v1.")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other field of the configuration, FIELD=VALUE; e.g. optimizer=prodigy."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Only look at pictures and captions; train nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")] = True,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune an adapter on the brand's pictures. Options default to the base model's recommendations."""
    if context.invoked_subcommand is not None:
        return
    options = {
        "steps": steps,
        "learning_rate": learning_rate,
        "rank": rank,
        "resolution": resolution,
        "batch_size": batch_size,
        "targets": targets,
        "trigger_word": trigger_word,
        "seed": seed,
        "sample_prompts": sample_prompt or None,
        "num_workers": workers,
        "continue_from": continue_from,
        **dict(map(_field, field or ())),
    }
    client = connect()
    chosen: dict[str, Any] = {
        "assets": None if not asset or asset == ["all"] else asset,
        "config": {field: wish for field, wish in options.items() if wish is not None},
    }
    if check:
        show_check(client.check_training_data(chosen_brand(client, brand), model_type, **chosen), as_json)
        return
    job = client.create_training_job(
        chosen_brand(client, brand), model_type, name=name or f"{model_type} adapter", **chosen
    )
    show_job(follow(job, as_json) if wait else job, as_json)


def _field(text: str) -> tuple[str, Any]:
    """Parse FIELD=VALUE; the value is parsed as JSON if it is valid JSON, else it is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"'{text}' is not FIELD=VALUE", param_hint="--set")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def show_check(checked: DataCheck, as_json: bool) -> None:
    """Print the data check's findings. Exits with 5 (input refused) if a job would be refused."""
    lines = [f"{finding.level}: {finding.message}; {finding.remedy} [{finding.code}]" for finding in checked.findings]
    lines.append(
        f"{checked.num_images} pictures, trained at {checked.resolution} with the trigger word "
        f"'{checked.trigger_word}': {checked.num_errors} errors, {checked.num_warnings} warnings"
    )
    show(checked, "\n".join(lines), as_json)
    if not checked.ok:
        raise typer.Exit(REFUSED)


def follow(job: TrainingJob, as_json: bool) -> TrainingJob:
    """Wait for the job with a progress bar. Raises JobFailed."""
    with progress_bar(f"Training {job.model_type}", as_json) as move:
        return job.wait(lambda now: move(now.progress, f"{now.status} {now.model_type}", _notes(now)), every_look=True)


def show_job(job: Any, as_json: bool) -> None:
    """Print a training job."""
    lines = [f"Job {job.id}: {job.status}, {job.progress} %"]
    if job.model_url:
        lines.append(f"Model: {job.model_url}")
    if notes := _notes(job):
        lines.append(notes)
    copied = (job.metrics or {}).get("memorisation") or {}
    if "warning" in copied:
        lines.append(f"Warning: {copied['warning']}")
    if job.error:
        lines.append(f"Reason: {job.error.get('message')}")
    if job.status == "pending":
        ahead = f"; {job.num_ahead} of the brand's jobs are before it" if job.num_ahead else ""
        lines.append(f"It waits {_WAITS.get(job.waiting_for or '', 'for its turn')}{ahead}.")
        lines.append(f"Follow it with 'onbrand job get {job.id}'.")
    show(job, "\n".join(lines), as_json)


def _notes(job: TrainingJob) -> str:
    """The newest metrics in one line: step, loss, held-out loss, speed, time left."""
    told = job.metrics or {}
    parts = [
        _part(told, "step {step} of {steps}"),
        _part(told, "loss {loss:.4f}"),
        _part(told, "held-out {validation_loss:.4f}, best {best_validation_loss:.4f} at {best_step}"),
        _part(told, "{samples_per_s:.1f} pictures/s") if job.status == "training" else "",
        "" if job.eta_seconds is None else f"ETA {timedelta(seconds=round(job.eta_seconds))}",
    ]
    return ", ".join(part for part in parts if part)


def _part(told: dict[str, Any], words: str) -> str:
    """`words` formatted with the metrics; empty if one is missing."""
    try:
        return words.format(**told)
    except (KeyError, ValueError):
        return ""


app.command("plot")(monitor.plot)
