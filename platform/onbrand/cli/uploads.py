"""`onbrand upload`: sends files directly to the platform's store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onbrand.cli.assets import expand, with_sidecars
from onbrand.cli.brand_commands import add_end, add_list
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, progress_bar, show

app = typer.Typer(
    name="upload", help="Files that go straight to the store: pictures, zips of them, documents.", no_args_is_help=True
)
add_list(
    app, "uploads", ("id", "kind", "filename", "bytes", "status", "created_at"), "The brand's uploads of the last day."
)
add_end(app, "uploads", "cancel", "UPLOAD_ID", "Cancel an own upload that is not completed.")


@app.command()
def send(
    files: Annotated[
        list[Path], typer.Argument(help="Pictures, folders of them, zips (with .txt captions inside), PDF, markdown.")
    ],
    caption: Annotated[str | None, typer.Option(help="For pictures; '[brand]' is the brand's word.")] = None,
    object: Annotated[str | None, typer.Option(help="logo, product, person, packaging or other.")] = None,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Send files one by one; if one is refused, those sent before it stay."""
    client = connect()
    brand_id = chosen_brand(client, brand)
    paths = expand(files)
    captions = with_sidecars(paths, None if caption is None else [caption])
    done = []
    with progress_bar("sending", as_json) as step:
        for number, (path, text) in enumerate(zip(paths, captions, strict=True)):
            step(100 * number / len(paths), path.name)
            done.append(client.uploads.upload(brand_id, path, text, object=object))
        step(100, "sent")
    made = sum(len(upload.asset_ids) + len(upload.document_ids) for upload in done)
    document = {"object": "list", "data": [upload.model_dump(mode="json", exclude={"send"}) for upload in done]}
    show(document, f"Sent {len(done)} files, which became {made} pictures and documents.", as_json)
