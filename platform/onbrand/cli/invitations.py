"""`onbrand invitation`: create, list and revoke invitations into a brand; accept or decline received ones."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from onbrand.cli.brand_commands import add_end, add_list
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, show, show_rows

app = typer.Typer(name="invitation", help="Invitations into a brand.", no_args_is_help=True)
TokenArgument = Annotated[
    str,
    typer.Argument(help="The token that you were given, or an id of 'received'; '-' reads one line of stdin."),
]
_COLUMNS = ("id", "email", "role", "status", "expires_at")

add_list(app, "invitations", _COLUMNS, "The brand's invitations, without their tokens (admins only).")
add_end(
    app,
    "invitations",
    "revoke",
    "INVITATION_ID",
    "End an invitation that was not accepted (admins only).",
    noun="invitation ",
)


@app.command()
def create(
    email: Annotated[str, typer.Argument(help="Who may accept it: the account with this address.")],
    role: Annotated[str, typer.Option(help="member or admin.")] = "member",
    days: Annotated[int | None, typer.Option(min=1, max=30, help="How long it can be accepted.")] = None,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Invite an address (admins only). The token is shown only once: hand it over."""
    client = connect()
    made = client.invitations.create(chosen_brand(client, brand), email, role, days=days)
    lost = f"The answer that held the token was lost: run 'onbrand invitation revoke {made.id}' and invite again."
    show(made, made.token or lost, as_json)


@app.command()
def received(as_json: AsJson = False) -> None:
    """Open invitations to your address, if it is verified."""
    show_rows(connect().invitations.received(), ("id", "brand_id", "role", "expires_at"), as_json)


@app.command()
def accept(token: TokenArgument, as_json: AsJson = False) -> None:
    """Become a member of the brand that invites your address."""
    brand = connect().invitations.accept(_said(token))
    show(brand, f"You are now {brand.role} of {brand.id}.", as_json)


@app.command()
def decline(token: TokenArgument, as_json: AsJson = False) -> None:
    """End an invitation to your address."""
    connect().invitations.decline(_said(token))
    show({"declined": True}, "Declined the invitation.", as_json)


def _said(token: str) -> str:
    return sys.stdin.readline().strip() if token == "-" else token
