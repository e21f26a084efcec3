"""Zip archives of pictures with their captions: told apart and bounded by their directory before anything is unpacked.

A picture is described by the text file of the same stem: `logo.png`, `logo.txt`. Runs in the checking child.
"""

from __future__ import annotations

import io
import re
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from onbrand.errors import InvalidInput, OnbrandError, TooLarge, UnsupportedMedia
from onbrand.storage.findings import Packed, is_zip

if TYPE_CHECKING:
    from onbrand.config import Limits

_BEGIN = b"PK\x03\x04"
_END = struct.Struct("<4s4H2IH")
_ENTRY_BYTES = 46
_DIRECTORY_BYTES_MAX = 2**20
_RATIO_MAX = 200
_SMALL = 2**16
_PICTURES = ("png", "jpg", "jpeg", "webp")
_NAME_CHARS_MAX = 200
_IN_UTF8 = 0x800
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_SYSTEM_FILES = ("__macosx/",)
_SYSTEM_NAMES = (".ds_store", "thumbs.db", "desktop.ini")
_HIDING = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def unpack(data: bytes, limits: Limits, name: str) -> Iterator[Packed]:
    """The pictures of an archive, one after another.

    Args:
        name: the archive's name, safe to show.

    Raises:
        TooLarge: more bytes or files than the limits, packed or unpacked.
        UnsupportedMedia: damaged, encrypted, or not only pictures and their captions.
        InvalidInput: a name that leads elsewhere, appears twice, or belongs to no picture.
    """
    _must_be_bounded(data, limits, name)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = [entry for entry in archive.infolist() if not _is_left_out(entry, name)]
            _must_not_overlap(archive.infolist(), archive.start_dir, name)
            pictures, captions = _sorted_out(entries, limits, name)
            for stem, entry in pictures:
                text = _caption(archive, captions[stem], limits, name) if stem in captions else None
                yield Packed(entry.filename, _read(archive, entry, limits.upload_bytes, name), text)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, ValueError, OSError):
        _refuse(name, "it is damaged, cut short, or packed in a way that is not accepted")
    except RuntimeError:
        _refuse(name, "it is encrypted")


def _refuse(name: str, why: str, kind: type[OnbrandError] = UnsupportedMedia) -> NoReturn:
    raise kind(f"the archive {name} is refused: {why}", param="files")


def _must_be_bounded(data: bytes, limits: Limits, name: str) -> None:
    """Size, number of files and their directory, by the archive's last 22 bytes: before anything reads further."""
    if len(data) > limits.zip_bytes:
        _refuse(name, f"it has {len(data)} bytes; the limit is {limits.zip_bytes}", TooLarge)
    if not data.startswith(_BEGIN):
        _refuse(name, "it does not begin with a file")
    if len(data) < _END.size or data[-_END.size :][:4] != b"PK\x05\x06":
        _refuse(name, "it is cut short, or something follows its directory")
    _, disk, first_disk, here, total, size, begin, comment = _END.unpack(data[-_END.size :])
    if 0xFFFF in (disk, first_disk, here, total) or 0xFFFFFFFF in (size, begin):
        _refuse(name, "it is a zip64 archive; make one of fewer files")
    if disk or first_disk or here != total or comment or begin + size + _END.size != len(data):
        _refuse(name, "its directory does not fit its bytes")
    if total > limits.zip_files * 3 or size > _DIRECTORY_BYTES_MAX or size < total * _ENTRY_BYTES:
        _refuse(name, f"it holds {total} files; at most {limits.zip_files} pictures are accepted", TooLarge)


def _is_left_out(entry: zipfile.ZipInfo, name: str) -> bool:
    """Folders, and what desktop systems add to every archive. Their names must be plain all the same."""
    _must_be_plain_name(entry, name)
    _must_be_a_file(entry, name)
    path = entry.filename.lower()
    return entry.is_dir() or path.startswith(_SYSTEM_FILES) or path.rsplit("/", 1)[-1] in _SYSTEM_NAMES


def _must_be_plain_name(entry: zipfile.ZipInfo, name: str) -> None:
    said = entry.orig_filename
    parts = said.removesuffix("/").split("/")
    if not 1 <= len(said) <= _NAME_CHARS_MAX or said != entry.filename:
        _refuse(
            name, f"a name in it has more than {_NAME_CHARS_MAX} characters, or none that can be read", InvalidInput
        )
    if not said.isprintable() or _HIDING.search(said):
        _refuse(name, "a name in it holds characters that cannot be seen", InvalidInput)
    if "\\" in said or ":" in said or any(part in ("", ".", "..") for part in parts):
        _refuse(name, f"{said!r} leads out of the archive", InvalidInput)


def _must_be_a_file(entry: zipfile.ZipInfo, name: str) -> None:
    """Neither a link nor a device (the upper half of the attributes, as Unix writes it), nor encrypted."""
    kind = entry.external_attr >> 28
    if kind not in (0, 0o10, 0o04):
        _refuse(name, f"{entry.filename!r} is a link or a device, not a file")
    if entry.flag_bits & _ENCRYPTED:
        _refuse(name, f"{entry.filename!r} is encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        _refuse(name, f"{entry.filename!r} is packed in a way that is not accepted; use deflate")
    if entry.is_dir() and entry.file_size:
        _refuse(name, f"{entry.filename!r} is a folder with content")


def _must_not_overlap(entries: list[zipfile.ZipInfo], directory_at: int, name: str) -> None:
    """Files must lie one after another: archives that unpack to millions of times their size share their bytes."""
    at = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < at:
            _refuse(name, "files in it overlap")
        encoding = "utf-8" if entry.flag_bits & _IN_UTF8 else "cp437"
        at = entry.header_offset + 30 + len(entry.orig_filename.encode(encoding)) + entry.compress_size
    if at > directory_at:
        _refuse(name, "files in it overlap")


def _sorted_out(
    entries: list[zipfile.ZipInfo], limits: Limits, name: str
) -> tuple[list[tuple[str, zipfile.ZipInfo]], dict[str, zipfile.ZipInfo]]:
    """Pictures by stem, in the archive's order, and captions by stem."""
    _must_unpack_to_little(entries, limits, name)
    seen: set[str] = set()
    pictures: list[tuple[str, zipfile.ZipInfo]] = []
    captions: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        plain = unicodedata.normalize("NFKC", entry.filename).casefold()
        if plain in seen:
            _refuse(name, f"{entry.filename!r} appears twice", InvalidInput)
        seen.add(plain)
        stem, _, ext = plain.rpartition(".")
        if ext in _PICTURES:
            pictures.append((stem, entry))
        elif ext == "txt":
            captions[stem] = entry
        else:
            _refuse(name, f"{entry.filename!r} is neither a picture (PNG, JPEG, WEBP) nor a caption (txt)")
    _must_belong(pictures, captions, limits, name)
    return pictures, captions


def _must_unpack_to_little(entries: list[zipfile.ZipInfo], limits: Limits, name: str) -> None:
    for entry in entries:
        if entry.file_size > limits.upload_bytes:
            _refuse(name, f"{entry.filename!r} unpacks to more than {limits.upload_bytes} bytes", TooLarge)
        if entry.file_size > max(_SMALL, entry.compress_size * _RATIO_MAX):
            _refuse(name, f"{entry.filename!r} unpacks to more than {_RATIO_MAX} times its size", TooLarge)
    if sum(entry.file_size for entry in entries) > limits.unpacked_bytes:
        _refuse(name, f"it unpacks to more than {limits.unpacked_bytes} bytes", TooLarge)


def _must_belong(
    pictures: list[tuple[str, zipfile.ZipInfo]], captions: dict[str, zipfile.ZipInfo], limits: Limits, name: str
) -> None:
    stems = [stem for stem, _ in pictures]
    if not stems:
        _refuse(name, "it holds no picture", InvalidInput)
    if len(stems) > limits.zip_files:
        _refuse(name, f"it holds {len(stems)} pictures; the limit is {limits.zip_files}", TooLarge)
    for stem, entry in captions.items():
        if stems.count(stem) != 1:
            _refuse(name, f"{entry.filename!r} must describe exactly one picture of the same name", InvalidInput)


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most: int, name: str) -> bytes:
    """The file's bytes; its checksum is compared when the last one is read."""
    with archive.open(entry) as file:
        data = file.read(most + 1)
        if len(data) != entry.file_size or file.read(1):
            _refuse(name, f"{entry.filename!r} has not the size that the directory says")
    if is_zip(data):
        _refuse(name, f"{entry.filename!r} is an archive in an archive")
    return data


def _caption(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limits: Limits, name: str) -> str:
    if entry.file_size > 4 * limits.caption_chars + 16:
        _refuse(name, f"{entry.filename!r} has more than {limits.caption_chars} characters", TooLarge)
    try:
        text = _read(archive, entry, entry.file_size, name).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        _refuse(name, f"{entry.filename!r} is not text in UTF-8", InvalidInput)
    if any(not char.isprintable() and char not in "\n\t\r" for char in text):
        _refuse(name, f"{entry.filename!r} holds characters that cannot be seen", InvalidInput)
    return text
