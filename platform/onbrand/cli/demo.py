"""`onbrand demo`: the five steps for two brands, on a temporary platform."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onbrand.cli.exits import USAGE, Refused
from onbrand.cli.output import AsJson, show

if TYPE_CHECKING:
    from onbrand.config import FamilyName


def demo(
    model_type: Annotated[str, typer.Option(help="sd15, sdxl or flux.")] = "sd15",
    images: Annotated[list[Path] | None, typer.Option(help="A folder of pictures of your own; repeatable.")] = None,
    brand: Annotated[list[str] | None, typer.Option(help="The brand's name for each --images, in order.")] = None,
    out: Annotated[Path, typer.Option(help="Where the contact sheet and the report go.")] = Path("demo-output"),
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the base's recommendation.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload, train, publish and generate for two brands, and attempt access from each brand to the other.

    Uses free ports and a temporary data directory, ends by itself and leaves only the output folder.
    ONBRAND_STORAGE_URL, ONBRAND_S3_ENDPOINT and the keys choose another object store.
    """
    kits = list(zip(brand or [], images or [], strict=False))
    if len(brand or []) != len(images or []):
        raise Refused("give one --brand for each --images", USAGE, "usage")
    from onbrand.cli.up import listen_for_end
    from onbrand.demo import run_demo, shortcomings

    listen_for_end()
    report = run_demo(must_be_family(model_type), kits, out, steps=steps, quiet=as_json)
    show(report, f"See {out / 'contact-sheet.png'} and {out / 'report.json'}.", as_json)
    if problems := shortcomings(report):
        raise Refused(f"the demo did not show what it must: {'; '.join(problems)}", 1, "demo_failed")


def must_be_family(family: str) -> FamilyName:
    """Return `family` if it is one of Onbrand's. Raises Refused."""
    from onbrand.config import FAMILIES

    for known in FAMILIES:
        if family == known:
            return known
    raise Refused(f"there is no family '{family}'; choose one of {', '.join(FAMILIES)}", code="invalid_input")
