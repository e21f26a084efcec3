"""Hostile zip archives."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from tools.harness.hostile_files.corpus import Hostile
from tools.harness.hostile_files.pictures import picture


def packed(*entries: tuple[str | zipfile.ZipInfo, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive with the given names unchanged."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


def good() -> bytes:
    return packed(("logo.png", picture()), ("logo.txt", b"photo of [brand] logo"))


def raw(entries: list[tuple[bytes, bytes, dict[str, int]]]) -> bytes:
    """An archive written by hand: name, stored data, and false fields."""
    body, directory = b"", b""
    for name, data, lies in entries:
        packed_data = zlib.compress(data)[2:-4] if lies.get("method", 0) == 8 else data
        facts = {
            "flags": 0, "method": 0, "crc": zlib.crc32(data), "csize": len(packed_data), "size": len(data),
            "attributes": 0, "offset": len(body), "extra": 0,
        } | lies  # fmt: skip
        middle = struct.pack(
            "<HHHHIII", facts["flags"], facts["method"], 0, 33, facts["crc"], facts["csize"], facts["size"]
        ) + struct.pack("<HH", len(name), 0)
        local = b"PK\x03\x04\x14\0" + middle + name + packed_data
        directory += (
            b"PK\x01\x02\x14\x03\x14\0"
            + middle
            + struct.pack("<HHHII", 0, 0, 0, facts["attributes"], facts["offset"])
            + name
        )
        body += local if "shared" not in lies else b""
    return _ended(body, directory, len(entries))


def _ended(body: bytes, directory: bytes, count: int) -> bytes:
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), len(body), 0)
    return body + directory + end


def one(name: str, **lies: int) -> bytes:
    return raw([(name.encode(), picture(), lies)])


def link(target: bytes) -> bytes:
    return raw([(b"logo.png", target, {"attributes": 0o120777 << 16})])


def overlapping(count: int) -> bytes:
    """Many files that share the bytes of one, so that they unpack to much more than the archive's size."""
    return raw([(b"a.png", picture(), {})] + [(b"a.png", picture(), {"offset": 0, "shared": 1})] * count)


def quoting() -> bytes:
    """A file that contains another file with its header, so that one content appears twice."""
    inner = picture("JPEG")
    head = raw([(b"b.jpg", inner, {})])[: 30 + len(b"b.jpg")]
    outer = head + inner
    local = raw([(b"a.png", outer, {})])[: 30 + len(b"a.png")]
    at = len(local)
    directory = b"".join(
        b"PK\x01\x02\x14\x03" + begin[4:30] + struct.pack("<HHHII", 0, 0, 0, 0, offset) + begin[30:]
        for begin, offset in ((local, 0), (head, at))
    )
    return _ended(local + outer, directory, 2)


def bomb(megabytes: int) -> bytes:
    return packed(("a.png", bytes(megabytes * 2**20)))


def many_small_bombs() -> bytes:
    return packed(*[(f"{i}.png", bytes(19 * 2**20)) for i in range(16)])


def nested(depth: int) -> bytes:
    data = good()
    for _ in range(depth):
        data = packed(("a.zip", data))
    return data


def encrypted() -> bytes:
    return one("logo.png", flags=1)


def flipped() -> bytes:
    data = bytearray(good())
    data[60:80] = bytes(20)
    return bytes(data)


def giant_directory() -> bytes:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    return _ended(b"PK\x03\x04" + bytes(27), entry * 200_000, 200_000)


def lying_count() -> bytes:
    data = bytearray(good())
    data[-14:-10] = struct.pack("<HH", 65_000, 65_000)
    return bytes(data)


def commented_with_an_archive() -> bytes:
    """Two valid end records: readers that search from the front and from the back find different files."""
    inner = good()
    return good()[:-2] + struct.pack("<H", len(inner)) + inner


def hostile() -> list[Hostile]:
    made = [*_names(), *_contents(), *_structures()]
    return [Hostile(f"zip: {name}", "assets", "pictures.zip", make, why) for name, make, why in made]


def _names() -> list[tuple]:
    traversing = [
        "../logo.png", "a/../../logo.png", "/etc/logo.png", "//host/logo.png", "./../logo.png", "a/./logo.png",
        "..\\logo.png", "C:\\logo.png", "C:logo.png", "a//logo.png", "c:/logo.png",
    ]  # fmt: skip
    found = [(f"the name {name}", lambda n=name: one(n), "leads out") for name in traversing]
    unseen = {
        "a bidi character": "a\u202egnp.png",
        "a line break": "a\nb.png",
        "a bell": "a\x07.png",
        "an isolate": "a\u2066gnp.png",
        "a control of eight bits": "a\x9b31m.png",
    }
    for what, name in unseen.items():
        found.append((f"a name with {what}", lambda n=name: one(n, flags=0x800), "cannot be seen"))
    return [
        *found,
        ("a name with a zero", lambda: one("logo.png\0.txt"), "characters|damaged"),
        ("a name of 300 letters", lambda: one("a" * 300 + ".png"), "characters"),
        ("no name", lambda: one(""), "characters|damaged"),
        ("a name that is no UTF-8", lambda: raw([(b"\xff\xfe.png", picture(), {"flags": 0x800})]), "damaged|packed"),
        ("a name twice", lambda: raw([(b"a.png", picture(), {}), (b"a.png", picture("JPEG"), {})]), "twice"),
        ("a name twice in other letters", lambda: raw([(b"a.png", picture(), {}), (b"A.PNG", picture(), {})]), "twice"),
        ("a caption of nobody", lambda: packed(("a.png", picture()), ("b.txt", b"x")), "exactly one picture"),
        (
            "a caption of two",
            lambda: packed(("a.png", picture()), ("a.jpg", picture("JPEG")), ("a.txt", b"x")),
            "exactly one",
        ),
    ]


def _contents() -> list[tuple]:
    page = b"<script>alert(1)</script>"
    strangers = [
        "page.html",
        "run.exe",
        "lib.so",
        "a.svg",
        "a.gif",
        "a.pdf",
        "a.php",
        "Makefile",
        ".htaccess",
        "a.png.exe",
        "a.pkl",
    ]
    found = [
        (f"a file {name}", lambda n=name: packed((n, page), ("a.png", picture())), "neither a picture")
        for name in strangers
    ]
    return [
        *found,
        ("an archive in it", lambda: nested(1), "neither a picture"),
        ("archives in archives", lambda: nested(30), "neither a picture"),
        ("an archive called a picture", lambda: packed(("a.png", good())), "archive in an archive"),
        ("an archive called a caption", lambda: packed(("a.png", picture()), ("a.txt", good())), "archive|characters"),
        ("no picture", lambda: packed(("a.txt", b"x")), "no picture|exactly one"),
        ("a page called a picture", lambda: packed(("a.png", page)), "not a PNG"),
        ("a cut picture", lambda: packed(("a.png", picture()[:500])), "damaged|not a PNG"),
        ("a picture that is a bomb", lambda: packed(("a.png", _pixel_bomb())), "too many pixels"),
        ("a caption of 5,000 letters", lambda: packed(("a.png", picture()), ("a.txt", b"x" * 5000)), "characters"),
        ("a caption of 600 letters", lambda: packed(("a.png", picture()), ("a.txt", b"x" * 600)), "characters"),
        ("an empty caption", lambda: packed(("a.png", picture()), ("a.txt", b"  ")), "caption"),
        ("a caption that is no UTF-8", lambda: packed(("a.png", picture()), ("a.txt", b"\xff\xfe")), "UTF-8"),
        ("a caption with a zero", lambda: packed(("a.png", picture()), ("a.txt", b"a\0b")), "cannot be seen"),
        (
            "a caption that turns around",
            lambda: packed(("a.png", picture()), ("a.txt", "a\u202eb".encode())),
            "cannot be seen",
        ),
        ("300 pictures", lambda: packed(*[(f"{i}.png", b"x" * 90) for i in range(300)]), "300 pictures"),
        ("5,000 files", lambda: packed(*[(f"{i}.txt", b"") for i in range(5000)]), "5000 files"),
    ]


def _pixel_bomb() -> bytes:
    from tools.harness.hostile_files.pictures import png

    return png(50_000, 50_000)


def _structures() -> list[tuple]:
    return [
        ("21 MB of zeros", lambda: bomb(21), "unpacks to more"),
        ("200 MB of zeros", lambda: bomb(200), "unpacks to more"),
        ("16 bombs", many_small_bombs, "unpacks to more"),
        ("a size that lies low", lambda: one("a.png", size=10), "size|damaged"),
        ("a size that lies high", lambda: one("a.png", size=10**6), "size|damaged"),
        ("a size of 4 GB", lambda: one("a.png", size=0xFFFFFFF0), "unpacks to more"),
        ("a wrong checksum", lambda: one("a.png", crc=1), "damaged"),
        ("files that overlap", lambda: overlapping(2), "overlap"),
        ("a file in a file", quoting, "overlap"),
        ("500 files on the same bytes", lambda: overlapping(500), "overlap"),
        ("a link", lambda: link(b"/etc/passwd"), "link or a device"),
        ("a device", lambda: one("a.png", attributes=0o060666 << 16), "link or a device"),
        ("a pipe", lambda: one("a.png", attributes=0o010666 << 16), "link or a device"),
        ("an encrypted file", encrypted, "encrypted"),
        ("strong encryption", lambda: one("a.png", flags=0x41), "encrypted"),
        ("a hidden directory", lambda: one("a.png", flags=0x2000), "encrypted"),
        ("bzip2", lambda: packed(("a.png", picture()), how=zipfile.ZIP_BZIP2), "not accepted"),
        ("LZMA", lambda: packed(("a.png", picture()), how=zipfile.ZIP_LZMA), "not accepted"),
        ("a method that is none", lambda: one("a.png", method=99), "not accepted"),
        ("a folder with content", lambda: one("a.png/"), "folder with content"),
        ("a giant directory", giant_directory, "files|bytes|zip64"),
        ("a count that lies", lying_count, "files|fit"),
        ("zip64", lambda: good()[:-6] + b"\xff\xff\xff\xff\0\0", "zip64"),
        ("something before it", lambda: b"#!/bin/sh\n" + good(), "not a PNG"),
        ("something after it", lambda: good() + b"<script>", "follows|cut"),
        ("a comment that is cut", lambda: good()[:-2] + b"\x05\0evil", "follows|fit|cut"),
        ("an archive in its comment", commented_with_an_archive, "follows|fit|cut"),
        ("an empty archive", lambda: packed(), "begin with a file"),
        ("its head only", lambda: good()[:40], "cut short"),
        ("cut at the half", lambda: good()[: len(good()) // 2], "cut short"),
        ("without its end", lambda: good()[:-22], "cut short"),
        ("damaged data", flipped, "damaged|size"),
        ("too many bytes", lambda: b"PK\x03\x04" + bytes(101 * 2**20), "limit|more than"),
        ("several disks", lambda: good()[:-18] + b"\x01\0\x01\0" + good()[-14:], "fit"),
        ("names that differ inside", lambda: good().replace(b"logo.png", b"evil.png", 1), "damaged"),
    ]
