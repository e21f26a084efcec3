"""`onbrand brand`: brands and who is in them."""

from __future__ import annotations

from typing import Annotated

import typer

from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, show, show_rows

app = typer.Typer(name="brand", help="Brands and their members.", no_args_is_help=True)


@app.command()
def create(
    brand_id: Annotated[str, typer.Argument(help="2 to 63 of a-z, 0-9 and '-'.")],
    name: Annotated[str | None, typer.Option(help="What people call it; the id when missing.")] = None,
    region: Annotated[str | None, typer.Option(help="Its home region; the platform's own when missing.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a brand; you become its admin."""
    brand = connect().brands.create(brand_id, name, region)
    show(brand, f"Created brand {brand.id}.", as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Your brands."""
    show_rows(connect().brands.list(), ("id", "name", "role", "home_region"), as_json)


@app.command()
def members(brand: BrandOption = None, as_json: AsJson = False) -> None:
    """Who is in a brand."""
    client = connect()
    show_rows(client.members.list(chosen_brand(client, brand)), ("user_id", "email", "role"), as_json)


@app.command("add-member")
def add_member(
    email: Annotated[str, typer.Argument(help="Somebody who has signed up.")],
    role: Annotated[str, typer.Option(help="member or admin.")] = "member",
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Let somebody into a brand (admins only)."""
    client = connect()
    member = client.members.add(chosen_brand(client, brand), email, role)
    show(member, f"{email} is now {role} of {member.brand_id or brand or 'the brand'}.", as_json)
