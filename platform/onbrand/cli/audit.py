"""`onbrand audit`: lists and verifies a brand's audit record.

`verify` stores the last line's number and hash in `~/.config/onbrand/audit-heads.json`, outside the platform. The next
run then detects a record that lost lines at its end or was rewritten as a whole.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onbrand.cli.exits import FAILED, USAGE, Refused
from onbrand.cli.login import BrandOption, chosen_brand, connect, credentials_path
from onbrand.cli.output import AsJson, show, show_rows
from onbrand.cli.owner import owner_of
from onbrand.folders import write_private

if TYPE_CHECKING:
    from onbrand.client import Head, Verdict

app = typer.Typer(name="audit", help="The record of who did what.", no_args_is_help=True)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="How many lines, newest first.")] = 50,
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """The brand's record, newest first (admins only)."""
    client = connect()
    lines = islice(client.audit_events.list(chosen_brand(client, brand)), limit)
    show_rows(lines, ("seq", "at", "actor", "user_id", "action", "detail"), as_json)


@app.command()
def verify(
    brand: BrandOption = None,
    head: Annotated[
        str | None, typer.Option(help="SEQ:HASH of a line that must be in it, instead of the one kept here.")
    ] = None,
    database: Annotated[
        bool, typer.Option("--database", help="Operators: read the database itself, all brands if none is named.")
    ] = False,
    data_dir: Annotated[Path | None, typer.Option(help="With --database: the platform's (ONBRAND_DATA_DIR).")] = None,
    as_json: AsJson = False,
) -> None:
    """Verify the record's hash chain, and that it still contains the last line seen before (admins only)."""
    if head is not None and database and brand is None:
        raise Refused("--head is of one brand; name it with --brand", USAGE, "usage")
    place, found = _from_database(brand, head, data_dir) if database else _over_http(brand, head)
    heads = {f"{place}#{each.brand_id}": str(each.head) for each in found if each.holds and each.head is not None}
    write_private(heads_path(), json.dumps(_kept_heads() | heads, indent=1) + "\n")
    if broken := [each for each in found if not each.holds]:
        said = "; ".join(f"{each.brand_id}: {each.fault}" for each in broken)
        raise Refused(f"the record does not hold: {said}", FAILED, "record_broken")
    _show(found, database and brand is None, as_json)


def _over_http(brand: str | None, head: str | None) -> tuple[str, list[Verdict]]:
    client = connect()
    brand_id = chosen_brand(client, brand)
    return client.base_url, [client.audit_events.verify(brand_id, _anchor(client.base_url, brand_id, head))]


def _from_database(brand: str | None, head: str | None, data_dir: Path | None) -> tuple[str, list[Verdict]]:
    from onbrand.client import AuditEvent
    from onbrand.client.audit_chain import check_chain
    from onbrand.db.audit import Record

    place, owner_url = owner_of(data_dir)
    found = []
    with Record(owner_url) as record:
        known = {name.split("#", 1)[1] for name in _kept_heads() if name.startswith(f"{place}#")}
        for brand_id in [brand] if brand else sorted({*record.brand_ids(), *known}):
            lines = (AuditEvent.model_validate(line) for line in record.lines(brand_id))
            found.append(check_chain(brand_id, lines, _anchor(place, brand_id, head)))
    return place, found


def _show(found: list[Verdict], is_list: bool, as_json: bool) -> None:
    documents = [
        {
            "brand_id": each.brand_id,
            "num_events": each.num_events,
            "head": str(each.head) if each.head else None,
            "holds": each.holds,
        }
        for each in found
    ]
    text = "\n".join(f"{each.brand_id}: {each.num_events} lines hold; the last is {each.head}" for each in found)
    show({"object": "list", "data": documents} if is_list else documents[0], text or "No brand has a record.", as_json)


def _anchor(place: str, brand_id: str, given: str | None) -> Head | None:
    from onbrand.client import Head

    anchor = given or _kept_heads().get(f"{place}#{brand_id}")
    return Head.parse(anchor) if anchor else None


def heads_path() -> Path:
    """The file with the last seen line of each record."""
    return credentials_path().with_name("audit-heads.json")


def _kept_heads() -> dict[str, str]:
    try:
        kept = json.loads(heads_path().read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise Refused(f"{heads_path()} is not readable; repair it, or give --head", FAILED, "file") from None
    return {str(name): str(head) for name, head in kept.items()}
