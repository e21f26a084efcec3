"""`onbrand brand`: brands, their members, and (for operators) their limits on engines and trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from onbrand.cli.brand_commands import add_list
from onbrand.cli.exits import NOT_FOUND, USAGE, Refused
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, show, show_rows
from onbrand.cli.owner import DataDirOption, owner_of

if TYPE_CHECKING:
    from onbrand.client import Onbrand

MemberArgument = Annotated[str, typer.Argument(metavar="MEMBER", help="Their address or user id.")]

app = typer.Typer(name="brand", help="Brands and their members.", no_args_is_help=True)
add_list(app, "members", ("user_id", "email", "role"), "List a brand's members.", name="members")


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


@app.command("add-member")
def add_member(
    email: Annotated[str, typer.Argument(help="Who may accept: the account with this address.")],
    role: Annotated[str, typer.Option(help="member or admin.")] = "member",
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Invite an address into a brand (admins only). The token is shown only once: hand it over."""
    client = connect()
    made = client.members.add(chosen_brand(client, brand), email, role)
    how = f"They accept with: onbrand invitation accept {made.token}"
    lost = f"The answer that held the token was lost: run 'onbrand invitation revoke {made.id}' and invite again."
    show(made, f"{email} is invited to {made.brand_id} as {role}. {how if made.token else lost}", as_json)


@app.command("set-role")
def set_role(
    member: MemberArgument,
    role: Annotated[str, typer.Argument(help="member or admin.")],
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Change a member's role (admins only). A brand keeps at least one admin."""
    client = connect()
    brand_id = chosen_brand(client, brand)
    changed = client.members.set_role(brand_id, _user_id(client, brand_id, member), role)
    show(changed, f"{member} is now {changed.role} of {brand_id}.", as_json)


@app.command("remove-member")
def remove_member(member: MemberArgument, brand: BrandOption = None, as_json: AsJson = False) -> None:
    """Remove a member at once (admins only, except for yourself). The last admin cannot be removed."""
    client = connect()
    brand_id = chosen_brand(client, brand)
    user_id = _user_id(client, brand_id, member)
    client.members.remove(brand_id, user_id)
    show({"user_id": user_id, "removed": True}, f"Removed {member} from {brand_id}.", as_json)


@app.command()
def leave(brand: BrandOption = None, as_json: AsJson = False) -> None:
    """Leave a brand at once; its last admin cannot."""
    client = connect()
    brand_id = chosen_brand(client, brand)
    client.members.leave(brand_id)
    show({"brand_id": brand_id, "left": True}, f"You have left {brand_id}.", as_json)


@app.command()
def limits(
    brand_id: Annotated[str, typer.Argument(metavar="BRAND", help="The brand's id.")],
    weight: Annotated[float | None, typer.Option(help="Its share against other brands that wait, 0.1 to 10.")] = None,
    max_waiting: Annotated[str | None, typer.Option(help="Pictures that may wait; 'none': the platform's.")] = None,
    slot_quota: Annotated[str | None, typer.Option(help="Its adapters on a GPU at once; 'none': no quota.")] = None,
    max_running: Annotated[
        str | None, typer.Option(help="Its trainings that run at once; 'none': the platform's.")
    ] = None,
    max_open: Annotated[
        str | None, typer.Option(help="Its trainings that run or wait; 'none': the platform's.")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: AsJson = False,
) -> None:
    """Operators: show or set a brand's limits on engines and trainers, directly in the database."""
    from onbrand.db.limits import set_limits

    said = {
        "weight": weight,
        "max_waiting_pictures": max_waiting,
        "slot_quota": slot_quota,
        "max_running_trainings": max_running,
        "max_open_trainings": max_open,
    }
    changes = {name: _number(name, value) for name, value in said.items() if value is not None}
    now = set_limits(owner_of(data_dir)[1], brand_id, changes)
    shown = ", ".join(f"{name} {'-' if value is None else value}" for name, value in now.items())
    show({"brand_id": brand_id, **now}, f"{brand_id}: {shown}", as_json)


def _number(name: str, value: Any) -> float | int | None:
    """An option's value as a number; None for 'none'. Raises Refused."""
    if not isinstance(value, str):
        return float(value)
    if value == "none":
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise Refused(f"{name} must be a whole number, or 'none'", USAGE, "usage")
    return int(value)


def _user_id(client: Onbrand, brand_id: str, member: str) -> str:
    """The user id of a member given by address; an id is returned unchanged. Raises Refused."""
    if "@" not in member:
        return member
    for each in client.members.list(brand_id):
        if each.email == member.lower():
            return each.user_id
    raise Refused(f"{member} is no member of {brand_id}", NOT_FOUND, "not_found")
