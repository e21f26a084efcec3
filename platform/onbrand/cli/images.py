"""`onbrand image`: list, download and delete generated pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onbrand.cli.brand_commands import add_end, add_list
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, show

app = typer.Typer(name="image", help="Generated pictures.", no_args_is_help=True)
_COLUMNS = ("id", "object_name", "width", "height", "seed", "created_at")

add_list(app, "images", _COLUMNS, "The brand's generated pictures.")
add_end(app, "images", "delete", "IMAGE_ID", "Delete an own picture.")


@app.command()
def download(
    image_id: Annotated[str, typer.Argument(help="The picture's id.")],
    out: Annotated[Path, typer.Option(help="A file, or a folder that keeps the picture's name.")] = Path("."),
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Save a picture."""
    client = connect()
    path = client.images.get(chosen_brand(client, brand), image_id).download(out)
    show({"id": image_id, "path": str(path)}, f"Saved {path}.", as_json)
