"""Reads files to send (paths, bytes or open files) into parts of a request, and saves downloads."""

from __future__ import annotations

import mimetypes
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from onbrand.client.errors import InvalidArgument
from onbrand.client.sendable import must_be_name

File = str | os.PathLike[str] | tuple[str, bytes] | IO[bytes]
Captions = str | Sequence[str | None] | Mapping[str, str] | None
Part = tuple[str, bytes, str]


def as_part(file: File) -> Part:
    """(file name, bytes, content type) of a path, a (name, bytes) pair or an open binary file."""
    name, data = _name_and_data(file)
    must_be_name(name)
    return name, data, mimetypes.guess_type(name)[0] or "application/octet-stream"


def _name_and_data(file: File) -> tuple[str, bytes]:
    if isinstance(file, tuple):
        return file
    if isinstance(file, str | os.PathLike):
        return must_be_name(Path(file).name), _read(Path(file))
    name = getattr(file, "name", "image")
    return Path(str(name)).name, file.read()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise InvalidArgument(f"{path} cannot be read: {problem.strerror}") from None


def as_captions(captions: Captions, names: Sequence[str]) -> list[str | None]:
    """One caption (or None) per file, from one caption for all, a list in order, or a mapping by file name."""
    if captions is None or isinstance(captions, str):
        return [captions] * len(names)
    if isinstance(captions, Mapping):
        said = {_composed(name): caption for name, caption in captions.items()}
        if unknown := sorted(set(said) - {_composed(name) for name in names}):
            raise InvalidArgument(f"captions name files that are not sent: {', '.join(unknown)}")
        return [said.get(_composed(name)) for name in names]
    if len(captions) != len(names):
        raise InvalidArgument(f"{len(captions)} captions for {len(names)} files; send one for each, or one for all")
    return list(captions)


def _composed(name: str) -> str:
    """`name` in Unicode NFC, since macOS decomposes characters in file names."""
    return unicodedata.normalize("NFC", name)


def save_at(path: str | Path, name: str, chunks: Iterable[Any]) -> Path:
    """Write `chunks` to the file `path`, or as `name` into the folder `path`. A broken download leaves no file.

    A string that ends in a slash is a folder, which is created if missing.
    """
    target = _target(path, name)
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _target(path: str | Path, name: str) -> Path:
    is_folder = isinstance(path, str) and path.endswith(("/", os.sep))
    if is_folder:
        _make_folder(Path(path))
    return Path(path) / name if is_folder or Path(path).is_dir() else Path(path)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InvalidArgument(f"{path} cannot be made a folder: {problem.strerror}; choose another") from None
