"""`onbrand model`: published adapters."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onbrand.cli.brand_commands import add_end, add_list
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, show
from onbrand.cli.train import follow, show_job

if TYPE_CHECKING:
    from onbrand.client import TrainingJob

app = typer.Typer(name="model", help="Published adapters.", no_args_is_help=True)
add_list(app, "models", ("id", "name", "rank", "trigger_word", "bytes", "created_at"), "The brand's models.")
add_end(app, "models", "delete", "MODEL", "Delete a model (admins only).")


class TextEncoder(Enum):
    """How to treat text encoder layers of an imported file."""

    refuse = "refuse"
    drop = "drop"


class Format(Enum):
    """Formats of a downloaded adapter."""

    diffusers = "diffusers"
    kohya = "kohya"


ModelName = Annotated[str, typer.Argument(help="A name (flux-lora-v2) or an id.")]


@app.command()
def get(model: ModelName, brand: BrandOption = None, as_json: AsJson = False) -> None:
    """One model."""
    client = connect()
    found = client.models.get(chosen_brand(client, brand), model)
    show(found, f"{found.name} ({found.id}), rank {found.rank}, sha256 {found.sha256}", as_json)


@app.command()
def download(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="A file, or a folder that keeps the model's name.")] = Path("."),
    format: Annotated[
        Format, typer.Option(help="diffusers, or kohya for other programs; the same adapter.")
    ] = Format.diffusers,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Save the safetensors file (the platform records the download)."""
    client = connect()
    found = client.models.get(chosen_brand(client, brand), model)
    path = found.download(out, format.value)
    show({"id": found.id, "name": found.name, "path": str(path)}, f"Saved {path}.", as_json)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A LoRA file of any trainer (safetensors).")],
    model_type: Annotated[str, typer.Option(help="flux, sdxl or sd15: the base that it was made for.")] = "sd15",
    trigger_word: Annotated[str | None, typer.Option(help="What '[brand]' stands for; the brand's id.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call the job.")] = None,
    text_encoder: Annotated[
        TextEncoder, typer.Option(help="drop: import without its layers of text encoders, which are not served.")
    ] = TextEncoder.refuse,
    lora_alpha: Annotated[float | None, typer.Option(help="As PEFT's adapter_config.json has it.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")] = True,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Import another trainer's file as the brand's next model, after checking and testing it."""
    client = connect()
    wish = None if text_encoder is TextEncoder.refuse else text_encoder.value
    job = client.models.import_file(
        chosen_brand(client, brand),
        model_type,
        file,
        trigger_word=trigger_word,
        name=name,
        text_encoder=wish,
        lora_alpha=lora_alpha,
    )
    _tell_dropped(job, as_json)
    show_job(follow(job, as_json) if wait else job, as_json)


def _tell_dropped(job: TrainingJob, as_json: bool) -> None:
    dropped = job.training_config.get("import", {}).get("dropped")
    if dropped and not as_json:
        share = f"{100 * dropped['norm_share']:.1f} % of its weights' norm"
        typer.echo(f"Left out: {dropped['layers']} layers of text encoders, {share}.", err=True)
