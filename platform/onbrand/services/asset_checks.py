"""Checks of training pictures before they are stored: archives, captions, fields, each picture in a child process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from onbrand.config import Limits
from onbrand.errors import InvalidInput, TooLarge, UnsupportedMedia
from onbrand.filenames import described, is_caption, is_litter, own_name
from onbrand.sandbox.checker import Checker
from onbrand.sandbox.incoming_files import Content, bytes_of, is_archive, size_of
from onbrand.sandbox.results import CleanImage, shown
from onbrand.visible import must_be_visible, text_of

ObjectKind = Literal["logo", "product", "person", "packaging", "other"]
FILES_PER_PICTURE = 4
"""Maximum files of a form per picture: the picture, its caption, and macOS's companion file of each."""
_METADATA_CHARS = 10_000


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded file before its check.

    Args:
        data: its bytes, or a file that is read later.
        caption: None becomes ``photo of [brand] logo`` (by its object).
    """

    filename: str
    data: Content = field(repr=False)
    caption: str | None = field(default=None, repr=False)
    object: str = "other"
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Checked:
    """A picture that passed its check: re-encoded, with a valid caption and valid fields."""

    upload: Upload
    image: CleanImage = field(repr=False)
    caption: str = field(repr=False)


async def check(checker: Checker, files: list[Upload], limits: Limits) -> list[Checked]:
    """Check and re-encode every file in a child process; a zip archive becomes its pictures. Needs no transaction.

    Raises:
        UnsupportedMedia, TooLarge, InvalidInput: a file, caption or field is not acceptable; the message names it.
        Unavailable: no child process can be started.
    """
    files = await _described(files, limits)
    _must_be_countable(files, limits)
    for file in files:
        must_be_fine(file, limits)
    checked: list[Checked] = []
    left = 2 * limits.unpacked_bytes
    for file in files:  # one archive at a time: its content stays in memory until it is checked
        pictures = await _unpacked(checker, file)
        _must_be_few(len(checked) + len(pictures), limits)
        captions = [must_be_fine(picture, limits) for picture in pictures]
        for caption in captions:
            checked.append(await _made_anew(checker, pictures.pop(0), caption))
            left -= len(checked[-1].image.bytes)
            if left < 0:
                raise TooLarge("the pictures are too large for one upload; send some of them in another", param="files")
    return checked


async def _made_anew(checker: Checker, picture: Upload, caption: str) -> Checked:
    image = await checker.run(checker.image, picture.data, picture.filename)
    must_be_filename(picture.filename, "files")
    return Checked(replace(picture, data=b""), image, caption)


def _must_be_few(num_pictures: int, limits: Limits) -> None:
    if num_pictures > (most := max(limits.upload_files, limits.zip_files)):
        raise TooLarge(f"{num_pictures} pictures in one upload; the limit is {most}", param="files")


async def _described(files: list[Upload], limits: Limits) -> list[Upload]:
    """The pictures and archives among the files; the text files become their captions, as in an archive.

    Raises:
        InvalidInput: only system files, or a text file that is not a valid caption.
        UnsupportedMedia: a text file that is not the caption of exactly one picture.
    """
    kept = [file for file in files if not is_litter(file.filename.replace("\\", "/"))]
    if files and not kept:
        raise InvalidInput(f"{shown(files[0].filename)} is no picture: a system keeps it beside them", param="files")
    names = [file.filename for file in kept]
    texts = [index for index, file in enumerate(kept) if is_caption(file.filename) and not is_archive(file.data)]
    found = described(names, texts)
    for index in [*found.nobodys, *found.doubtful]:
        raise UnsupportedMedia(
            f"{shown(names[index])} is neither a picture nor the caption of exactly one picture of its name",
            param="files",
        )
    captions = {picture: await _caption_in(kept[text], limits) for picture, text in found.captions.items()}
    return [
        replace(file, caption=captions.get(index, file.caption))
        for index, file in enumerate(kept)
        if index not in texts
    ]


async def _caption_in(file: Upload, limits: Limits) -> str:
    """The caption in a text file. Raises InvalidInput, TooLarge."""
    if size_of(file.data) > 4 * limits.caption_chars + 16:
        raise TooLarge(f"{shown(file.filename)} has more than {limits.caption_chars} characters", param="files")
    try:
        text = text_of(await bytes_of(file.data))
    except ValueError as problem:
        raise InvalidInput(f"{shown(file.filename)} {problem}", param="files") from None
    return _must_be_caption(text, limits, f"the caption in {shown(file.filename)}", "files")


async def _unpacked(checker: Checker, file: Upload) -> list[Upload]:
    """The file itself, or an archive's pictures; the file's caption applies to those without their own."""
    if not is_archive(file.data):
        return [file]
    packed = await checker.run(checker.unpack, file.data, file.filename)
    return [
        replace(
            file, filename=one.filename, data=one.data, caption=file.caption if one.caption is None else one.caption
        )
        for one in packed
    ]


def _must_be_countable(files: list[Upload], limits: Limits) -> None:
    if not files:
        raise InvalidInput("send at least one picture", param="files")
    if len(files) > limits.upload_files:
        raise TooLarge(f"{len(files)} files in one upload; the limit is {limits.upload_files}", param="files")


def must_be_fine(file: Upload, limits: Limits) -> str:
    """Check a file's fields and return its caption. Raises InvalidInput."""
    if file.object not in get_args(ObjectKind):
        raise InvalidInput(f"object must be one of {', '.join(get_args(ObjectKind))}", param="object")
    try:
        size = len(json.dumps(dict(file.metadata), allow_nan=False))
    except (TypeError, ValueError):
        raise InvalidInput("metadata must be a JSON object", param="metadata") from None
    if size > _METADATA_CHARS:
        raise InvalidInput(f"metadata has {size} characters; the limit is {_METADATA_CHARS}", param="metadata")
    what = "" if file.object == "other" else f" {file.object}"
    if file.caption is None:
        return _must_be_caption(f"photo of [brand]{what}", limits)
    return _must_be_caption(file.caption, limits, f"the caption of {shown(file.filename)}")


def _must_be_caption(caption: str, limits: Limits, what: str = "a caption", param: str = "captions") -> str:
    caption = caption.replace("\r\n", "\n").replace("\r", "\n").strip()
    if not 1 <= len(caption) <= limits.caption_chars:
        raise InvalidInput(f"{what} must have 1 to {limits.caption_chars} characters; got {len(caption)}", param=param)
    must_be_visible(caption, what, param, lines=True)
    return caption


def must_be_filename(filename: str, param: str) -> None:
    """Raise InvalidInput for a name with invisible characters."""
    must_be_visible(own_name(filename), shown(filename), param)
