"""`onbrand user`: operators verify or release an account's email address, directly in the database."""

from __future__ import annotations

from typing import Annotated

import typer

from onbrand.cli.output import AsJson, show
from onbrand.cli.owner import DataDirOption, owner_of

EmailArgument = Annotated[str, typer.Argument(help="The address of an account.")]

app = typer.Typer(name="user", help="Operators: whose an account's address is.", no_args_is_help=True)


@app.command()
def verify(email: EmailArgument, data_dir: DataDirOption = None, as_json: AsJson = False) -> None:
    """Operators: mark an account's address as verified; it can then accept invitations without a token."""
    from onbrand.db.accounts import verify_address

    user_id = verify_address(owner_of(data_dir)[1], email)
    show({"user_id": user_id, "email": email, "email_verified": True}, f"{email} is verified.", as_json)


@app.command()
def release(email: EmailArgument, data_dir: DataDirOption = None, as_json: AsJson = False) -> None:
    """Operators: take an unverified address from an account, so that its owner can sign up with it."""
    from onbrand.db.accounts import release_address

    user_id = release_address(owner_of(data_dir)[1], email)
    said = f"{email} is free again; account {user_id} has no address and no log-in by password any more."
    show({"user_id": user_id, "email": email, "released": True}, said, as_json)
