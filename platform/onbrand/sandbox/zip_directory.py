"""Reads a zip archive's directory and files (APPNOTE.TXT 6.3.10), independent of the Python version.

Python's own reader decodes names differently from version to version, and fails on fields that do not matter here.
Runs in the checking child.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, replace

from onbrand.sandbox.zip_names import Reading, read_names
from onbrand.visible import composed

STORED, DEFLATED = 0, 8
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")
_IN_UTF8 = 0x800
_UNICODE_PATH, _ZIP64 = 0x7075, 0x0001
_LARGE = 0xFFFFFFFF
_LEADING_DOTS = re.compile(r"^(?:\./)+(?=.)", re.DOTALL)


class BrokenArchive(Exception):
    """The archive is damaged, cut short or inconsistent."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the directory.

    Args:
        raw: the name as bytes.
        path: the name, composed, with slashes; U+FFFD for unknown letters.
        key: the name for comparisons; equals `path` if all its letters are known.
        attributes: of the system that packed the file; Unix keeps the file's type in the upper half.
        num_packed, num_bytes: size before and after unpacking.
        at: offset of the local header.
    """

    raw: bytes
    path: str
    key: str
    flags: int
    method: int
    checksum: int
    num_packed: int
    num_bytes: int
    attributes: int
    at: int

    @property
    def is_folder(self) -> bool:
        return self.path.endswith("/")


def read_directory(data: bytes, at: int, num_bytes: int, count: int) -> list[Entry]:
    """All entries in order. Raises BrokenArchive."""
    end, entries, extras = at + num_bytes, [], []
    for _ in range(count):
        if at + _ENTRY.size > end:
            raise BrokenArchive
        fields = _ENTRY.unpack_from(data, at)
        name_at = at + _ENTRY.size
        extra_at = name_at + fields[12]
        at = extra_at + fields[13] + fields[14]
        if fields[0] != b"PK\x01\x02" or at > end:
            raise BrokenArchive
        extra = _parts(data[extra_at : extra_at + fields[13]])
        entry = Entry(
            raw=data[name_at:extra_at],
            path="",
            key="",
            flags=fields[5],
            method=fields[6],
            checksum=fields[9],
            num_packed=fields[10],
            num_bytes=fields[11],
            attributes=fields[17],
            at=fields[18],
        )
        entries.append(_with_large_numbers(entry, extra.get(_ZIP64, b"")))
        extras.append(extra.get(_UNICODE_PATH, b""))
    if at != end:
        raise BrokenArchive
    return _named(entries, extras)


def _parts(extra: bytes) -> dict[int, bytes]:
    """Parts of an extra field by number. Parts that do not fit are skipped, because aligning programs write some."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        number, length = struct.unpack_from("<HH", extra, at)
        if at + 4 + length <= len(extra):
            found.setdefault(number, extra[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def _with_large_numbers(entry: Entry, part: bytes) -> Entry:
    """Take sizes and offset from the zip64 part (4.5.3), which streaming programs also write for small files."""
    numbers, at = [], 0
    for number in (entry.num_bytes, entry.num_packed, entry.at):
        if number == _LARGE and at + 8 <= len(part):
            number = int.from_bytes(part[at : at + 8], "little")  # noqa: PLW2901
            at += 8
        numbers.append(number)
    return replace(entry, num_bytes=numbers[0], num_packed=numbers[1], at=numbers[2])


# names


def _named(entries: list[Entry], extras: list[bytes]) -> list[Entry]:
    """Decode names: by the UTF-8 flag, by Info-ZIP's part, as UTF-8, and the rest together by `zip_names`."""
    names = [_declared_name(entry, extra) for entry, extra in zip(entries, extras, strict=True)]
    left = [entry.raw for entry, name in zip(entries, names, strict=True) if name is None]
    readings = iter(read_names(left))
    return [
        _with_name(entry, next(readings) if name is None else Reading(name, True))
        for entry, name in zip(entries, names, strict=True)
    ]


def _with_name(entry: Entry, reading: Reading) -> Entry:
    path = _LEADING_DOTS.sub("", composed(reading.text).replace("\\", "/"))
    return replace(entry, path=path, key=path if reading.is_known else _key_of_bytes(entry.raw))


def _key_of_bytes(raw: bytes) -> str:
    """The key of a name with unknown letters: its bytes in hex, and its extension as text; its case does not count."""
    stem, dot, extension = raw.rpartition(b".")
    return f"\0{stem.hex()}.{extension.decode('latin-1')}" if dot else f"\0{raw.hex()}"


def _declared_name(entry: Entry, extra: bytes) -> str | None:
    """The name if its encoding is known, else None. Raises BrokenArchive if it is flagged as UTF-8 but is not."""
    try:
        if not entry.flags & _IN_UTF8 and (name := _unicode_path(entry.raw, extra)):
            return name
        return entry.raw.decode("utf-8")  # also without the flag, as macOS's Finder and zip on Linux write it
    except UnicodeDecodeError:
        if entry.flags & _IN_UTF8:
            raise BrokenArchive from None
        return None


def _unicode_path(raw: bytes, extra: bytes) -> str | None:
    """Info-ZIP's Unicode Path (4.6.9); None unless its checksum matches the entry's name."""
    if len(extra) < 5 or extra[0] != 1 or int.from_bytes(extra[1:5], "little") != zlib.crc32(raw):
        return None
    try:
        return extra[5:].decode("utf-8")
    except UnicodeDecodeError:
        return None


# bytes


def unpacked(data: bytes, entry: Entry) -> bytes:
    """A file's bytes. Raises BrokenArchive if they are damaged or differ from the directory's size or checksum."""
    begin = _begin_of(data, entry)
    packed = memoryview(data)[begin : begin + entry.num_packed]
    if len(packed) != entry.num_packed:
        raise BrokenArchive
    found = bytes(packed) if entry.method == STORED else _inflated(packed, entry.num_bytes)
    if len(found) != entry.num_bytes or zlib.crc32(found) != entry.checksum:
        raise BrokenArchive
    return found


def _begin_of(data: bytes, entry: Entry) -> int:
    """Offset of a file's packed bytes. Raises BrokenArchive if its local header has another name than the directory."""
    if entry.at + _LOCAL.size > len(data):
        raise BrokenArchive
    head = _LOCAL.unpack_from(data, entry.at)
    name_at = entry.at + _LOCAL.size
    if head[0] != b"PK\x03\x04" or data[name_at : name_at + head[-2]] != entry.raw:
        raise BrokenArchive
    return name_at + head[-2] + head[-1]


def _inflated(packed: memoryview, num_bytes: int) -> bytes:
    reader = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = reader.decompress(packed, num_bytes + 1)
    except zlib.error:
        raise BrokenArchive from None
    if not reader.eof:
        raise BrokenArchive
    return found
