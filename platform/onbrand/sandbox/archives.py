"""Reads zip archives of images and captions; the directory is checked against the limits before unpacking.

A text file is the caption of the image with the same stem: `logo.png`, `logo.txt`. Runs in the checking child.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from onbrand.errors import InvalidInput, OnbrandError, TooLarge, UnsupportedMedia
from onbrand.filenames import described, is_caption, is_litter, is_picture, plain
from onbrand.sandbox.results import Packed, is_zip
from onbrand.sandbox.zip_directory import DEFLATED, STORED, BrokenArchive, Entry, read_directory, unpacked
from onbrand.visible import hidden_in, printed, text_of

if TYPE_CHECKING:
    from onbrand.config import Limits

_BEGIN, _END_MAGIC = b"PK\x03\x04", b"PK\x05\x06"
_END = struct.Struct("<4s4H2IH")
_COMMENT_BYTES_MAX = 2**16 - 1
_ENTRY_BYTES = 46
_HEAD_BYTES = 30
_DIRECTORY_BYTES_MAX = 2**20
_FILES_PER_PICTURE = 6
"""An image, its caption, macOS's extra file for each, and folders."""
_RATIO_MAX = 200
_SMALL = 2**16
_NAME_CHARS_MAX = 200
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_DRIVE = re.compile("[A-Za-z]:")
"""A drive at the beginning of a path. Elsewhere a colon is a slash of macOS's Finder, or part of a time of day."""


def unpack(data: bytes, limits: Limits, name: str) -> Iterator[Packed]:
    """The images of an archive, one after another.

    Args:
        name: the archive's name, safe to show.

    Raises:
        TooLarge: more bytes or files than the limits, packed or unpacked.
        UnsupportedMedia: damaged, encrypted, or not only images and their captions.
        InvalidInput: a name that leads elsewhere, appears twice, or belongs to no image.
    """
    try:
        at, size, count = _bounded_directory(data, limits, name)
        entries = read_directory(data, at, size, count)
        _must_not_overlap(entries, at, name)
        kept = [entry for entry in entries if not _is_left_out(entry, name)]
        for image, text in _sorted_out(kept, limits, name):
            caption = None if text is None else _caption(data, text, limits, name)
            yield Packed(image.path, _read(data, image, name), caption)
    except BrokenArchive:
        _refuse(name, "it is damaged, cut short, or packed in a way that is not accepted")


def _refuse(name: str, why: str, kind: type[OnbrandError] = UnsupportedMedia) -> NoReturn:
    raise kind(f"the archive {name} is refused: {why}", param="files")


def _bounded_directory(data: bytes, limits: Limits, name: str) -> tuple[int, int, int]:
    """Offset, size and number of entries of the directory, checked against the limits."""
    if len(data) > limits.zip_bytes:
        _refuse(name, f"it has {len(data)} bytes; the limit is {limits.zip_bytes}", TooLarge)
    if not data.startswith(_BEGIN):
        _refuse(name, "it does not begin with a file")
    end = _end_of(data, name)
    _, disk, first_disk, here, total, size, begin, _ = _END.unpack_from(data, end)
    if 0xFFFF in (disk, first_disk, here, total) or 0xFFFFFFFF in (size, begin):
        _refuse(name, "it is a zip64 archive; make one of fewer files")
    if disk or first_disk or here != total or begin + size != end:
        _refuse(name, "its directory does not fit its bytes")
    if total > limits.zip_files * _FILES_PER_PICTURE or size > _DIRECTORY_BYTES_MAX or size < total * _ENTRY_BYTES:
        _refuse(name, f"it holds {total} files; at most {limits.zip_files} pictures are accepted", TooLarge)
    return begin, size, total


def _end_of(data: bytes, name: str) -> int:
    """Offset of the end record, which a comment may follow. Two are refused: readers would see different archives."""
    tail_at = max(0, len(data) - _END.size - _COMMENT_BYTES_MAX)
    found, at = [], data.find(_END_MAGIC, tail_at)
    while at >= 0:
        if at + _END.size <= len(data) and at + _END.size + _END.unpack_from(data, at)[-1] == len(data):
            found.append(at)
        at = data.find(_END_MAGIC, at + 1)
    if not found:
        _refuse(name, "it is cut short, or something follows its directory")
    if len(found) > 1:
        _refuse(name, "its comment holds the end of another archive, so something follows its directory")
    return found[0]


def _is_left_out(entry: Entry, name: str) -> bool:
    """Whether an entry is skipped unread: folders, and files that operating systems add to every archive."""
    if is_litter(entry.path.removesuffix("/")):
        return True
    if entry.path != "./":
        _must_be_plain_name(entry, name)
    _must_be_a_file(entry, name)
    return entry.is_folder


def _must_be_plain_name(entry: Entry, name: str) -> None:
    path = entry.path
    if not 1 <= len(path) <= _NAME_CHARS_MAX:
        _refuse(name, f"a name in it has more than {_NAME_CHARS_MAX} characters, or none", InvalidInput)
    if found := hidden_in(path):
        _refuse(name, f"'{printed(path)}' holds characters that cannot be seen ({found})", InvalidInput)
    if _DRIVE.match(path) or any(part in ("", ".", "..") for part in path.removesuffix("/").split("/")):
        _refuse(name, f"'{path}' leads out of the archive", InvalidInput)


def _must_be_a_file(entry: Entry, name: str) -> None:
    """Refuse links and devices (by the upper half of the attributes, as Unix writes it) and encrypted files."""
    kind = entry.attributes >> 28
    if kind not in (0, 0o10, 0o04):
        _refuse(name, f"'{entry.path}' is a link or a device, not a file")
    if entry.flags & _ENCRYPTED:
        _refuse(name, f"'{entry.path}' is encrypted")
    if entry.method not in (STORED, DEFLATED):
        _refuse(name, f"'{entry.path}' is packed in a way that is not accepted; use deflate")
    if entry.is_folder and entry.num_bytes:
        _refuse(name, f"'{entry.path}' is a folder with content")


def _must_not_overlap(entries: list[Entry], directory_at: int, name: str) -> None:
    """Refuse overlapping files: zip bombs share bytes to unpack to millions of times their size."""
    at = 0
    for entry in sorted(entries, key=lambda entry: entry.at):
        if entry.at < at:
            _refuse(name, "files in it overlap")
        at = entry.at + _HEAD_BYTES + len(entry.raw) + entry.num_packed
    if at > directory_at:
        _refuse(name, "files in it overlap")


def _sorted_out(entries: list[Entry], limits: Limits, name: str) -> list[tuple[Entry, Entry | None]]:
    """Images in the archive's order, each with its caption file or None."""
    _must_unpack_to_little(entries, limits, name)
    seen: set[str] = set()
    for entry in entries:
        if plain(entry.key) in seen:
            _refuse(name, f"'{entry.path}' appears twice", InvalidInput)
        seen.add(plain(entry.key))
        if not is_picture(entry.path) and not is_caption(entry.path):
            _refuse(name, f"'{entry.path}' is neither a picture (PNG, JPEG, WEBP) nor a caption (txt)")
    texts = [index for index, entry in enumerate(entries) if is_caption(entry.path)]
    found = described([entry.key for entry in entries], texts)
    images = [index for index in range(len(entries)) if index not in texts]
    if not images:
        _refuse(name, "it holds no picture", InvalidInput)
    if len(images) > limits.zip_files:
        _refuse(name, f"it holds {len(images)} pictures; the limit is {limits.zip_files}", TooLarge)
    for index in [*found.nobodys, *found.doubtful]:
        _refuse(name, f"'{entries[index].path}' must describe exactly one picture of the same name", InvalidInput)
    texts_of = {image: entries[text] for image, text in found.captions.items()}
    return [(entries[index], texts_of.get(index)) for index in images]


def _must_unpack_to_little(entries: list[Entry], limits: Limits, name: str) -> None:
    for entry in entries:
        if entry.num_bytes > limits.upload_bytes:
            _refuse(name, f"'{entry.path}' unpacks to more than {limits.upload_bytes} bytes", TooLarge)
        if entry.num_bytes > max(_SMALL, entry.num_packed * _RATIO_MAX):
            _refuse(name, f"'{entry.path}' unpacks to more than {_RATIO_MAX} times its size", TooLarge)
    if sum(entry.num_bytes for entry in entries) > limits.unpacked_bytes:
        _refuse(name, f"it unpacks to more than {limits.unpacked_bytes} bytes", TooLarge)


def _read(data: bytes, entry: Entry, name: str) -> bytes:
    try:
        found = unpacked(data, entry)
    except BrokenArchive:
        _refuse(name, f"'{entry.path}' is damaged, or has not the size that the directory says")
    if is_zip(found):
        _refuse(name, f"'{entry.path}' is an archive in an archive")
    return found


def _caption(data: bytes, entry: Entry, limits: Limits, name: str) -> str:
    if entry.num_bytes > 4 * limits.caption_chars + 16:
        _refuse(name, f"'{entry.path}' has more than {limits.caption_chars} characters", TooLarge)
    try:
        text = text_of(_read(data, entry, name))
    except ValueError as problem:
        _refuse(name, f"'{entry.path}' {problem}", InvalidInput)
    if found := hidden_in(text, lines=True):
        _refuse(name, f"'{entry.path}' holds characters that cannot be seen ({found})", InvalidInput)
    if not 1 <= len(text) <= limits.caption_chars:
        _refuse(
            name, f"the caption in '{entry.path}' has {len(text)} characters; 1 to {limits.caption_chars}", InvalidInput
        )
    return text
