"""`onbrand key`: API keys of a brand, for programs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from onbrand.cli.brand_commands import add_end, add_list
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, show

app = typer.Typer(name="key", help="API keys of a brand, for programs.", no_args_is_help=True)
_COLUMNS = ("id", "name", "prefix", "scopes", "expires_at", "last_used_at", "revoked_at")

add_list(app, "keys", _COLUMNS, "The brand's keys, without their secrets.")
add_end(app, "keys", "revoke", "KEY_ID", "Revoke a key at once and permanently (admins only).", noun="key ")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[list[str], typer.Option(help="read, upload, train, generate or manage; repeatable.")],
    days: Annotated[int | None, typer.Option(min=1, max=3650, help="How long it lasts; for ever when missing.")] = None,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Create a key that acts for you in one brand (admins only). It is shown only once."""
    client = connect()
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    made = client.keys.create(chosen_brand(client, brand), name, scope, expires_at=expires_at)
    lost = f"The answer that held the key was lost: run 'onbrand key revoke {made.id}' and make another."
    show(made, made.key or lost, as_json)
