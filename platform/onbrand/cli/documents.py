"""`onbrand document`: a brand's documents (guidelines, voice and tone)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onbrand.cli.brand_commands import add_download, add_end, add_list
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, show, show_rows

app = typer.Typer(name="document", help="Documents of a brand: PDF or Markdown, with versions.", no_args_is_help=True)
DocumentId = Annotated[str, typer.Argument(help="The id of one of its versions.")]
_COLUMNS = ("id", "name", "version", "title", "num_pages", "bytes", "created_at")

add_list(app, "documents", _COLUMNS, "The brand's documents, each as its newest version.")
add_download(app, "documents", "DOCUMENT_ID", "document")
add_end(app, "documents", "delete", "DOCUMENT_ID", "Delete one version of a document (admins only).")


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(help="A .pdf or a .md.")],
    title: Annotated[str | None, typer.Option(help="What people call it; the file's name if left out.")] = None,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Upload a document: the first version of its title, or the next."""
    client = connect()
    made = client.documents.upload(chosen_brand(client, brand), file, title)
    show(made, f"Uploaded {made.name}, version {made.version} ({made.id}).", as_json)


@app.command()
def versions(document_id: DocumentId, brand: BrandOption = None, as_json: AsJson = False) -> None:
    """All versions of a document, newest first."""
    client = connect()
    show_rows(client.documents.versions(chosen_brand(client, brand), document_id), _COLUMNS, as_json)
