"""Hostile pictures: decompression bombs, truncated files, polyglots, other formats, broken structure."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
import zlib
from functools import cache, partial

from PIL import Image, PngImagePlugin

from tools.harness.hostile_files.corpus import Hostile

KINDS = ("PNG", "JPEG", "WEBP")
EXT = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@cache
def picture(kind: str = "PNG", size: int = 96, mode: str = "RGB") -> bytes:
    """A valid picture."""
    dice = random.Random(3)
    image = Image.frombytes("RGB", (size, size), dice.randbytes(size * size * 3)).convert(mode)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes = b"", more: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header declares a size, independent of `rows`."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    canvas = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    inner = b"VP8X" + struct.pack("<I", len(canvas)) + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(inner)) + b"WEBP" + inner


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose frame header declares another size."""
    data = bytearray(picture("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("evil.html", "<script>alert(1)</script>")
    return out.getvalue()


def saved(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(picture())).save(out, kind, **options)
    return out.getvalue()


def animated(kind: str) -> bytes:
    return saved(kind, save_all=True, append_images=[Image.new("RGB", (96, 96), "red")], duration=50)


def scans(count: int) -> bytes:
    return picture("JPEG")[:-2] + b"\xff\xda\x00\x02" * count + b"\xff\xd9"


def commented(text: bytes, kind: str) -> bytes:
    """A picture whose first bytes after the magic are `text`, which content sniffers read."""
    if kind == "PNG":
        data = picture("PNG")
        return data[:33] + chunk(b"tEXt", b"Comment\0" + text) + data[33:]
    data = picture("JPEG")
    return data[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + data[2:]


def bomb_text(kind: bytes, megabytes: int) -> bytes:
    body = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    more = chunk(kind, body + zlib.compress(bytes(megabytes * 2**20), 1))
    return png(64, 64, bytes((64 * 3 + 1) * 64), more)


def noted() -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("a", "<script>alert(1)</script>")
    out = io.BytesIO()
    Image.open(io.BytesIO(picture())).save(out, "PNG", pnginfo=notes)
    return out.getvalue()


def hostile() -> list[Hostile]:
    made = [*_bombs(), *_polyglots(), *_others(), *_broken(), *_cuts()]
    return [Hostile(name, "assets", filename, make, why) for name, filename, make, why in made]


def _bombs() -> list[tuple]:
    sizes = [(6400, 6300), (10_000, 10_000), (50_000, 50_000), (2**31 - 1, 2**31 - 1), (25_000_001, 1), (1, 2**30)]
    bombs = [
        (f"a PNG that promises {w} x {h}", "a.png", lambda w=w, h=h: png(w, h), "too many pixels|not a PNG")
        for w, h in sizes
    ]
    bombs += [
        (f"a WEBP that promises {w} x {h}", "a.webp", lambda w=w, h=h: webp(w, h), "too many pixels")
        for w, h in [(4096, 3080), (16_000, 16_000), (2**24, 2**24)]
    ]
    bombs += [
        (f"a JPEG that promises {w} x {h}", "a.jpg", lambda w=w, h=h: jpeg_of(w, h), "too many pixels")
        for w, h in [(5001, 5000), (40_000, 40_000), (65_535, 65_535)]
    ]
    bombs += [
        (f"a {kind.decode()} of {mb} MB", "a.png", lambda k=kind, m=mb: bomb_text(k, m), "damaged|not a PNG|memory")
        for kind, mb in [(b"zTXt", 300), (b"iTXt", 300), (b"iCCP", 300)]
    ]
    return [
        *bombs,
        ("20,000 x 20,000 black pixels", "a.png", lambda: png(20_000, 20_000, bytes(60_001) * 2000), "too many pixels"),
        ("too many rows for its size", "a.png", lambda: png(24_000_000, 1, b""), "damaged|pixels"),
        ("10,000 scans", "a.jpg", lambda: scans(10_000), "scans"),
        ("200 scans", "a.jpg", lambda: scans(200), "scans"),
        ("too many bytes", "a.png", lambda: picture() + bytes(20 * 2**20), "limit|more than"),
        ("one pixel", "a.png", lambda: saved_size(1), "each side"),
        ("31 x 31", "a.png", lambda: saved_size(31), "each side"),
    ]


def saved_size(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side)).save(out, "PNG")
    return out.getvalue()


def _polyglots() -> list[tuple]:
    pdf = b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n"
    found = [
        (f"a {kind} and a zip", f"a.{EXT[kind]}", lambda k=kind: picture(k) + archive(), "zip archive")
        for kind in KINDS
    ]
    found += [
        (f"a {kind} that holds {what}", f"a.{EXT[kind]}", partial(commented, text, kind), why)
        for kind in ("PNG", "JPEG")
        for what, text, why in [
            ("a script", b"<script>alert(1)</script>", "page for browsers"),
            ("a page", b"<!DOCTYPE html><html><body onload=alert(1)>", "page for browsers"),
            ("PHP", b"<?php system($_GET['c']); ?>", "page for browsers"),
            ("a PDF", pdf, "a PDF"),
            ("a drawing", b"<svg onload=alert(1)>", "page for browsers"),
        ]
    ]
    return [
        *found,
        ("a GIF and a PNG", "a.png", lambda: saved("GIF") + picture(), "not a PNG"),
        ("a PDF before a JPEG", "a.jpg", lambda: pdf + picture("JPEG"), "not a PNG"),
        ("a page before a PNG", "a.png", lambda: b"<html>" + picture(), "not a PNG"),
        ("a script in a text of a PNG", "a.png", noted, "page for browsers"),
        ("a program before a PNG", "a.png", lambda: b"MZ" + bytes(62) + picture(), "not a PNG"),
        ("an ELF before a JPEG", "a.jpg", lambda: b"\x7fELF" + bytes(60) + picture("JPEG"), "not a PNG"),
        ("a shell script before a PNG", "a.png", lambda: b"#!/bin/sh\nid\n" + picture(), "not a PNG"),
        ("a WEBP in a WAVE", "a.webp", lambda: b"RIFF" + picture("WEBP")[4:8] + b"WAVE" + bytes(64), "not a PNG"),
    ]


def _others() -> list[tuple]:
    formats = ("GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "PCX", "SGI", "JPEG2000", "PDF", "EPS", "DDS", "ICNS")
    found = [(f"a {kind} called a PNG", "a.png", lambda k=kind: saved(k), "not a PNG") for kind in formats]
    texts = {
        "an EPS program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) run\n",
        "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "an SVG with an entity": b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>',
        "an ImageMagick script": b"push graphic-context\nviewbox 0 0 640 480\nfill 'url(https://x/\"|id\")'\npop",
        "a playlist": b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
        "a page": b"<html><script>alert(1)</script></html>",
        "plain text": b"just text",
        "nothing": b"",
        "zeros": bytes(4096),
        "a pickle": pickle.dumps({"a": [1, 2, 3]}),
        "a pickle that runs": b"cos\nsystem\n(S'id'\ntR.",
        "a Flash film": b"FWS\x0a" + bytes(100),
        "a Java class": b"\xca\xfe\xba\xbe" + bytes(100),
        "a gzip": b"\x1f\x8b\x08" + bytes(100),
        "a 7z": b"7z\xbc\xaf\x27\x1c" + bytes(100),
        "a tar": b"a.png".ljust(257, b"\0") + b"ustar\x0000" + bytes(250),
    }
    found += [(f"{what} called a PNG", "a.png", lambda t=text: t, "not a PNG") for what, text in texts.items()]
    found += [
        (f"an animated {kind}", f"a.{EXT[kind]}", lambda k=kind: animated(k), "animated") for kind in ("PNG", "WEBP")
    ]
    return found


def _broken() -> list[tuple]:
    bad_crc = picture()[:29] + b"\0\0\0\0" + picture()[33:]
    return [
        ("a PNG of no pixels", "a.png", lambda: png(0, 0), "not a PNG|damaged"),
        ("a PNG with a wrong checksum", "a.png", lambda: bad_crc, "not a PNG|damaged"),
        ("a PNG of a depth that is none", "a.png", lambda: png(64, 64, depth=7), "not a PNG|damaged"),
        ("a PNG of a colour that is none", "a.png", lambda: png(64, 64, colour=5), "not a PNG|damaged"),
        ("a PNG without pixels", "a.png", lambda: png(64, 64), "damaged|not a PNG"),
        ("a PNG with too few rows", "a.png", lambda: png(64, 64, b"too few"), "damaged"),
        (
            "a PNG with a chunk that ends nowhere",
            "a.png",
            lambda: picture()[:33] + b"\xff\xff\xff\xffIDAT",
            "damaged|not",
        ),
        (
            "a PNG with a negative chunk",
            "a.png",
            lambda: picture()[:33] + b"\x80\0\0\0tEXt" + picture()[33:],
            "damaged|not",
        ),
        ("a PNG whose stream is noise", "a.png", lambda: _noise_png(), "damaged"),
        ("a JPEG whose tables are missing", "a.jpg", lambda: _without_tables(), "damaged|not a PNG"),
        ("a JPEG of no height", "a.jpg", lambda: jpeg_of(64, 0), "damaged|not a PNG|each side"),
        (
            "a JPEG of markers only",
            "a.jpg",
            lambda: b"\xff\xd8" + b"\xff\xfe\x00\x02" * 5000 + b"\xff\xd9",
            "damaged|not a PNG",
        ),
        ("a WEBP whose pixels are zeros", "a.webp", lambda: webp_of_zeros(), "damaged|not a PNG"),
        ("a WEBP of a canvas only", "a.webp", lambda: webp(64, 64), "damaged|not a PNG"),
        (
            "a WEBP that claims 4 GB",
            "a.webp",
            lambda: b"RIFF\xff\xff\xff\xffWEBP" + picture("WEBP")[12:],
            "damaged|not a PNG",
        ),
        ("a name that turns around", "a\u202egnp.exe", lambda: b"x", "not a PNG"),
        ("a name with a path", "../../../etc/passwd", lambda: b"root:x", "not a PNG"),
        ("a name of 300 letters", "a" * 300, lambda: b"x", "not a PNG"),
    ]


def _noise_png() -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    noise = random.Random(5).randbytes(3000)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", noise) + chunk(b"IEND", b"")


def _without_tables() -> bytes:
    data = picture("JPEG")
    while (at := data.find(b"\xff\xdb")) > 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    return data


def webp_of_zeros() -> bytes:
    data = bytearray(picture("WEBP"))
    data[20:40] = bytes(20)
    return bytes(data)


def _cuts() -> list[tuple]:
    def cut(kind: str, share: float) -> bytes:
        data = picture(kind)
        return data[: int(len(data) * share)]

    return [
        (f"a {kind} cut at {share:.0%}", f"a.{EXT[kind]}", lambda k=kind, s=share: cut(k, s), "damaged|not a PNG")
        for kind in KINDS
        for share in (0.01, 0.1, 0.5, 0.9)
    ]
