"""`onbrand image`: list, download and delete generated pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, show, show_rows

app = typer.Typer(name="image", help="Generated pictures.", no_args_is_help=True)
ImageId = Annotated[str, typer.Argument(help="The picture's id.")]


@app.command("list")
def list_(brand: BrandOption = None, as_json: AsJson = False) -> None:
    """The brand's generated pictures."""
    client = connect()
    columns = ("id", "object_name", "width", "height", "seed", "created_at")
    show_rows(client.images.list(chosen_brand(client, brand)), columns, as_json)


@app.command()
def download(
    image_id: ImageId,
    out: Annotated[Path, typer.Option(help="A file, or a folder that keeps the picture's name.")] = Path("."),
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Save a picture."""
    client = connect()
    path = client.images.get(chosen_brand(client, brand), image_id).download(out)
    show({"id": image_id, "path": str(path)}, f"Saved {path}.", as_json)


@app.command()
def delete(image_id: ImageId, brand: BrandOption = None, as_json: AsJson = False) -> None:
    """Delete an own picture."""
    client = connect()
    client.images.delete(chosen_brand(client, brand), image_id)
    show({"id": image_id, "deleted": True}, f"Deleted {image_id}.", as_json)
