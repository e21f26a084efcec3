"""`onbrand asset`: the pictures a brand is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onbrand.cli.exits import Refused
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, progress_bar, show, show_rows

app = typer.Typer(name="asset", help="Training pictures.", no_args_is_help=True)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@app.command()
def upload(
    files: Annotated[list[Path], typer.Argument(help="Pictures (PNG, JPEG, WEBP), folders or zips of them.")],
    caption: Annotated[
        list[str] | None, typer.Option(help="One for all, or one for each in order; '[brand]' is the brand's word.")
    ] = None,
    object: Annotated[str, typer.Option(help="logo, product, person, packaging or other.")] = "other",
    brand: BrandOption = None,
    as_json: AsJson = False,
) -> None:
    """Upload pictures: all, or none if one is refused. A text file beside a picture, `logo.txt`, is its caption."""
    client = connect()
    pictures = expand(files)
    captions = with_sidecars(pictures, caption)
    brand_id, title = chosen_brand(client, brand), f"Uploading {len(pictures)} pictures"
    with progress_bar(title, as_json) as move:
        assets = client.assets.upload(brand_id, pictures, captions, object=object)
        move(100, title)
    document = {"object": "list", "data": [asset.model_dump(mode="json") for asset in assets]}
    show(document, f"Uploaded {len(assets)} pictures.", as_json)


@app.command("list")
def list_(brand: BrandOption = None, as_json: AsJson = False) -> None:
    """The brand's training pictures."""
    client = connect()
    columns = ("id", "name", "object", "width", "height", "caption")
    show_rows(client.assets.list(chosen_brand(client, brand)), columns, as_json)


@app.command()
def delete(asset_id: str, brand: BrandOption = None, as_json: AsJson = False) -> None:
    """Delete a training picture (admins only)."""
    client = connect()
    client.assets.delete(chosen_brand(client, brand), asset_id)
    show({"id": asset_id, "deleted": True}, f"Deleted {asset_id}.", as_json)


def expand(files: list[Path]) -> list[Path]:
    """The files themselves, and the pictures of folders in order of their names. Raises Refused."""
    found: list[Path] = []
    for file in files:
        inside = sorted(p for p in file.iterdir() if p.suffix.lower() in PICTURES) if file.is_dir() else [file]
        if not inside:
            raise Refused(f"{file} holds no picture; PNG, JPEG and WEBP files are taken", code="no_pictures")
        found += inside
    if missing := [str(file) for file in found if not file.is_file()]:
        raise Refused(f"{missing[0]} is not a file; check the path", code="no_such_file")
    return found


def with_sidecars(pictures: list[Path], said: list[str] | None) -> list[str | None]:
    """A caption for each picture: its text file's, else what was said for all or for it. Raises Refused."""
    given: list[str | None] = [*said] if said else [None]
    if len(given) == 1:
        given = given * len(pictures)
    if len(given) != len(pictures):
        raise Refused(f"{len(given)} captions for {len(pictures)} pictures; give one for each, or one for all")
    return [_sidecar(picture) or text for picture, text in zip(pictures, given, strict=True)]


def _sidecar(picture: Path) -> str | None:
    """What `logo.txt` says of `logo.png`, as in an archive; None where there is none, or nothing in it."""
    beside = picture.with_suffix(".txt")
    if picture.suffix.lower() not in PICTURES or not beside.is_file():
        return None
    try:
        return beside.read_text("utf-8-sig").strip() or None
    except UnicodeDecodeError:
        raise Refused(f"{beside} is not text in UTF-8; save it anew", code="bad_caption") from None
