"""Commands that are alike for all kinds of a brand's objects: to list them, and to save or end one of them.

Annotations are evaluated here (no `from __future__ import annotations`): typer reads those that name local variables.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, show, show_rows

_DONE = {"delete": "deleted", "revoke": "revoked", "cancel": "canceled"}


def add_list(app: typer.Typer, resource: str, columns: Sequence[str], help: str, name: str = "list") -> None:
    """Add the command `name`, which lists the objects of the client's `resource` as rows of `columns`."""

    @app.command(name, help=help)
    def list_(brand: BrandOption = None, as_json: AsJson = False) -> None:
        client = connect()
        show_rows(getattr(client, resource).list(chosen_brand(client, brand)), columns, as_json)


def add_end(app: typer.Typer, resource: str, verb: str, argument: str, help: str, noun: str = "") -> None:
    """Add the command `verb`, which calls that method of the client's `resource` with an object's id.

    Args:
        argument: how the help names the id, e.g. ``IMAGE_ID``.
        noun: precedes the id in the answer, with a space after it.
    """

    @app.command(verb, help=help)
    def end(
        id: Annotated[str, typer.Argument(metavar=argument)], brand: BrandOption = None, as_json: AsJson = False
    ) -> None:
        client = connect()
        getattr(getattr(client, resource), verb)(chosen_brand(client, brand), id)
        show({"id": id, _DONE[verb]: True}, f"{_DONE[verb].capitalize()} {noun}{id}.", as_json)


def add_download(app: typer.Typer, resource: str, argument: str, noun: str) -> None:
    """Add the command `download`, which saves the file of one object, e.g. a ``picture``."""
    out_help = f"A file, or a folder that keeps the {noun}'s name."

    @app.command(help=f"Save a {noun}.")
    def download(
        id: Annotated[str, typer.Argument(metavar=argument, help=f"The {noun}'s id.")],
        out: Annotated[Path, typer.Option(help=out_help)] = Path("."),
        brand: BrandOption = None,
        as_json: AsJson = False,
    ) -> None:
        client = connect()
        path = getattr(client, resource).get(chosen_brand(client, brand), id).download(out)
        show({"id": id, "path": str(path)}, f"Saved {path}.", as_json)
