"""`onbrand image`: list, download and delete generated pictures."""

from __future__ import annotations

import typer

from onbrand.cli.brand_commands import add_download, add_end, add_list

app = typer.Typer(name="image", help="Generated pictures.", no_args_is_help=True)
_COLUMNS = ("id", "object_name", "width", "height", "seed", "created_at")

add_list(app, "images", _COLUMNS, "The brand's generated pictures.")
add_download(app, "images", "IMAGE_ID", "picture")
add_end(app, "images", "delete", "IMAGE_ID", "Delete an own picture.")
