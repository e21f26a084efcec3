"""`onbrand asset`: a brand's training pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from onbrand.cli.brand_commands import add_end, add_list
from onbrand.cli.exits import Refused
from onbrand.cli.login import BrandOption, chosen_brand, connect
from onbrand.cli.output import AsJson, progress_bar, show
from onbrand.filenames import described, is_caption, is_litter, is_picture
from onbrand.visible import hidden_in, printed, text_of

app = typer.Typer(name="asset", help="Training pictures.", no_args_is_help=True)
add_list(app, "assets", ("id", "name", "object", "width", "height", "caption"), "The brand's training pictures.")
add_end(app, "assets", "delete", "ASSET_ID", "Delete a training picture (admins only).")


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
    """Upload pictures: all, or none if one is refused. A text file next to a picture, `logo.txt`, is its caption."""
    client = connect()
    pictures = expand(files)
    captions = with_sidecars(pictures, caption)
    brand_id, title = chosen_brand(client, brand), f"Uploading {len(pictures)} pictures"
    with progress_bar(title, as_json) as move:
        assets = client.assets.upload(brand_id, pictures, captions, object=object)
        move(100, title)
    document = {"object": "list", "data": [asset.model_dump(mode="json") for asset in assets]}
    show(document, f"Uploaded {len(assets)} pictures.", as_json)


def expand(files: list[Path]) -> list[Path]:
    """The given files, and the pictures in the given folders (recursive, sorted by path).

    Skips system files such as `.DS_Store`, and captions (`with_sidecars` reads them). Of a folder, all other files that
    are no pictures are skipped and listed on stderr.

    Raises Refused.
    """
    found: list[Path] = []
    for file in files:
        if file.is_dir():
            found += _pictures_in(file)
        elif not file.is_file():
            raise Refused(f"{file} is not a file; check the path", code="no_such_file")
        elif not is_litter(file.name) or len(files) == 1:
            found.append(file)
    if not found:
        raise Refused(f"{files[0]} is no picture: a system keeps it beside them", code="no_pictures")
    texts = [index for index, path in enumerate(found) if is_caption(path.name)]
    nobodys = described([str(path) for path in found], texts).nobodys
    if nobodys:
        raise Refused(f"{found[nobodys[0]]} is neither a picture nor the caption of one", code="bad_caption")
    return [path for index, path in enumerate(found) if index not in texts]


def _pictures_in(folder: Path) -> list[Path]:
    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = [path for path in inside if not is_litter(path.relative_to(folder).as_posix())]
    pictures = [path for path in kept if is_picture(path.name)]
    if not pictures:
        raise Refused(f"{folder} holds no picture; PNG, JPEG and WEBP files are taken", code="no_pictures")
    if others := [str(path.relative_to(folder)) for path in kept if not is_picture(path.name)]:
        told = [name for name in others if not is_caption(name)]
        if told:
            print(f"onbrand: of {folder} left out, as no pictures: {printed(', '.join(told))}", file=sys.stderr)
    return pictures


def with_sidecars(pictures: list[Path], said: list[str] | None) -> list[str | None]:
    """A caption (or None) for each picture: from its text file, else from the command line. Raises Refused."""
    given: list[str | None] = [*said] if said else [None]
    if len(given) == 1:
        given = given * len(pictures)
    if len(given) != len(pictures):
        raise Refused(f"{len(given)} captions for {len(pictures)} pictures; give one for each, or one for all")
    texts = _texts_beside(pictures)
    return [_said_in(texts[path]) if path in texts else text for path, text in zip(pictures, given, strict=True)]


def _texts_beside(pictures: list[Path]) -> dict[Path, Path]:
    """The text file of each picture that has one, such as `logo.txt` for `logo.png`. Raises Refused if ambiguous."""
    named = [path for path in pictures if is_picture(path.name)]
    beside = [text for folder in sorted({path.parent for path in named}) for text in sorted(folder.iterdir())]
    paths = [*named, *(text for text in beside if is_caption(text.name) and not is_litter(text.name))]
    found = described([str(path) for path in paths], range(len(named), len(paths)))
    if found.doubtful:
        raise Refused(f"{paths[found.doubtful[0]]} must describe exactly one picture of its name", code="bad_caption")
    return {paths[picture]: paths[text] for picture, text in found.captions.items()}


def _said_in(file: Path) -> str:
    try:
        text = text_of(file.read_bytes())
    except ValueError as problem:
        raise Refused(f"{file} {problem}; save it anew", code="bad_caption") from None
    if found := hidden_in(text, lines=True):
        raise Refused(f"{file} holds characters that cannot be seen ({found}); leave them out", code="bad_caption")
    if not text:
        raise Refused(f"{file} is empty; write a caption, or remove it", code="bad_caption")
    return text
