"""Finds the login of the database's owner, for operators' commands that bypass the API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onbrand.cli.exits import USAGE, Refused

DataDirOption = Annotated[Path | None, typer.Option(help="The platform's data directory (ONBRAND_DATA_DIR).")]


def owner_of(data_dir: Path | None) -> tuple[str, str]:
    """The platform's data directory, and the DSN of its database's owner. Raises Refused if the owner is unknown."""
    from onbrand.cli.up import settings_from
    from onbrand.db.embedded import read_urls

    settings = settings_from({"data_dir": data_dir})
    owner_url = settings.database_url or read_urls(settings).owner_url
    if not owner_url:
        raise Refused("this needs the login of the database's owner; set ONBRAND_DATABASE_URL", USAGE, "usage")
    return str(settings.folder), owner_url
