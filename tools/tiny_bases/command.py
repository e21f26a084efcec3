"""`python -m tools.tiny_bases`: train and score the tiny base models that ship with Onbrand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from onbrand.cli.demo import must_be_family
from onbrand.cli.output import AsJson, show

app = typer.Typer(
    name="python -m tools.tiny_bases", help="The tiny base models: train and score them.", no_args_is_help=True
)
Family = Annotated[str, typer.Argument(help="sd15, sdxl or flux.")]


@app.command()
def train(
    family: Family,
    out: Annotated[Path, typer.Option(help="The folder to write the pipeline to.")],
    work: Annotated[
        Path | None, typer.Option(help="Keeps what is done, so that a second call goes on; OUT-work.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the denoiser; as for the shipped one.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the pictures and noise that it is trained on.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a tiny base from scratch on pictures drawn here."""
    known = must_be_family(family)
    from tools.tiny_bases.train import train as train_tiny

    kept = work or out.with_name(f"{out.name}-work")
    train_tiny(known, out, work=kept, steps=steps, seed=seed, progress=lambda line: print(line, file=sys.stderr))
    show({"family": family, "folder": str(out)}, f"Trained {family}: {out}.", as_json)


@app.command()
def score(
    family: Family,
    folder: Annotated[Path | None, typer.Option(help="Another folder than the shipped one.")] = None,
    num: Annotated[int, typer.Option(min=1, max=10_000, help="Prompts of each kind.")] = 100,
    seed: Annotated[int, typer.Option(help="Chooses prompts and noise.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Score how often colour, shape and background are right, on seen and held-out combinations."""
    must_be_family(family)
    from tools.tiny_bases.score import score as score_tiny

    result = score_tiny(family, folder, n=num, seed=seed)
    show(result, json.dumps(result, indent=2), as_json)
