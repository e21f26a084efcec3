"""`onbrand job`: list, follow, cancel, stop, retry and delete training jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from onbrand.cli import monitor
from onbrand.cli.brand_commands import add_end, add_list
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.monitor import JobId
from onbrand.cli.output import AsJson
from onbrand.cli.train import follow, show_job

app = typer.Typer(name="job", help="Training jobs.", no_args_is_help=True)
_COLUMNS = ("id", "name", "model_type", "status", "progress", "created_at")

add_list(app, "training_jobs", _COLUMNS, "The brand's training jobs.")
add_end(app, "training_jobs", "delete", "JOB_ID", "Delete a job that has ended (admins only).")


@app.command()
def get(
    job_id: JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Show one job; with --wait, follow it to its end."""
    client = connect()
    job = client.training_jobs.get(chosen_brand(client, brand), job_id)
    show_job(follow(job, as_json) if wait else job, as_json)


def _add(verb: str, help: str) -> None:
    @app.command(verb, help=help)
    def act(job_id: JobId, brand: BrandOption = None, as_json: AsJson = False) -> None:
        client = connect()
        show_job(getattr(client.training_jobs, verb)(chosen_brand(client, brand), job_id), as_json)


_add("cancel", "Cancel a job.")
_add("stop", "Stop a training job now, and publish its best step so far.")
_add("retry", "Retry a failed or canceled job as a new one, which resumes from the last checkpoint if it fits.")
for _command in (monitor.metrics, monitor.samples, monitor.logs):
    app.command()(_command)
