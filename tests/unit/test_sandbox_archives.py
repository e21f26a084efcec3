"""Zip archives of several systems: the pictures and captions that are found, and their names."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from typing import IO, cast

import pytest

from onbrand.errors import InvalidInput, OnbrandError
from tests.unit.zip_writing import PICTURE, archive, found_in, names_in


def caption_in(text: bytes, picture: bytes = b"a.png", name: bytes = b"a.txt") -> str | None:
    (found,) = found_in(archive((picture, PICTURE), (name, text)))
    return found.caption


# what is left out


@pytest.mark.parametrize(
    "litter",
    [
        "._a.png", "p/._a.png", "__MACOSX/._a.png", "p/__MACOSX/q/._a.png", ".DS_Store", "p/.DS_Store", "p/Icon\r",
        ".localized", "Thumbs.db", "p/ehthumbs.db", "desktop.ini", "p/DESKTOP.INI", ".picasa.ini", "Picasa.ini",
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "p/@eaDir/a.png@SynoEAStream", ".thumbnails/1.jpg", ".directory",
        ".Spotlight-V100/store.db", ".Trashes/501/b.png", ".fseventsd/0001", "~$a.png", ".~lock.a.png#",
        "Thumbs.db:encryptable", "p/Thumbs.db:encryptable", "a.png:Zone.Identifier",
        "System Volume Information/b.png", "$RECYCLE.BIN/$I1.png", "p/empty/", ".picasaoriginals/a.png",
    ],
)  # fmt: skip
def test_what_systems_keep_beside_files_is_left_out(litter: str) -> None:
    data = archive((b"p/a.png", PICTURE), (litter.encode(), b"" if litter.endswith("/") else b"\0\5\x16\7"))
    assert [one.filename for one in found_in(data)] == ["p/a.png"]


def test_only_what_systems_keep_is_no_picture() -> None:
    with pytest.raises(InvalidInput, match=r"all\.zip is refused: it holds no picture"):
        found_in(archive((b"__MACOSX/._a.png", PICTURE), (b"Thumbs.db", b"x")))


def test_a_full_archive_of_a_mac_is_taken() -> None:
    """200 pictures and captions, and two parts of each that macOS adds."""
    entries = [(f"p/{i}.{kind}".encode(), PICTURE) for i in range(200) for kind in ("png", "txt")]
    forks = [(b"__MACOSX/p/._" + name[2:], b"\0\5\x16\7") for name, _ in entries]
    assert len(found_in(archive(*((n, d if n.endswith(b"png") else b"[brand]") for n, d in entries), *forks))) == 200


# names


@pytest.mark.parametrize(
    "name",
    [
        "Screenshot 2024-01-05 at 3.14.15\u202fPM.png", "a\u00a0b.png", "می\u200cخواهم.png", "👩\u200d🎨.png",
        "so\u00adft.png", "a\u200eb.png", "a\u200bb.png", "a\ufeffb.png",
        "Front:Back.png", "Logo (final): v2.png", "p/C:D.png",
        "A①.png", "❤\ufe0f.png", "10:30:00.png", "größe.jfif", "logo.MPO",
    ],
)  # fmt: skip
def test_names_with_odd_spaces_and_joiners_are_taken_as_they_are(name: str) -> None:
    assert names_in(name.encode(), flags=0x800) == [name]
    assert names_in(name.encode()) == [name]


@pytest.mark.parametrize(
    "hidden", ["\u202e", "\u202a", "\u2066", "\u2069", "\x1b", "\x07", "\x7f", "\x9b", "\n", "\t", "\0"]
)
def test_names_that_turn_or_control_are_refused_and_named(hidden: str) -> None:
    with pytest.raises(InvalidInput, match=r"'lo\?go\.png' holds characters that cannot be seen \(U\+") as told:
        names_in(f"lo{hidden}go.png".encode())
    assert hidden not in told.value.message


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("größe.png".encode(), "größe.png"),
        ("größe.png".encode("cp437"), "größe.png"),
        ("été à Nîmes.png".encode("cp437"), "été à Nîmes.png"),
        ("Müller & Söhne.png".encode("cp437"), "Müller & Söhne.png"),
        ("ロゴ.png".encode("cp932"), "ロゴ.png"),
        ("商品写真_01.png".encode("cp932"), "商品写真_01.png"),
        ("ブランド/表.png".encode("cp932"), "ブランド/表.png"),
        ("ロゴ.png".encode(), "ロゴ.png"),
        ("логотип.png".encode(), "логотип.png"),
        ("gro\u0308ße.png".encode(), "größe.png"),
        (b"p\\a.png", "p/a.png"),
    ],
)
def test_names_without_a_word_of_their_encoding_are_read_right(raw: bytes, name: str) -> None:
    assert names_in(raw) == [name]


def test_an_archive_has_one_encoding() -> None:
    assert names_in(*(name.encode("cp932") for name in ("上表_1.png", "ロゴ.png"))) == [
        "上表_1.png",
        "ロゴ.png",
    ]


def unicode_path(raw: bytes, name: bytes, version: int = 1) -> bytes:
    part = struct.pack("<BI", version, zlib.crc32(raw)) + name
    return struct.pack("<HH", 0x7075, len(part)) + part


def test_info_zips_unicode_path_goes_before_the_name() -> None:
    raw = "логотип.png".encode("cp866")
    assert names_in(raw, extra=unicode_path(raw, "логотип.png".encode())) == ["логотип.png"]


@pytest.mark.parametrize(
    "extra",
    [
        unicode_path(b"another.png", b"b.png"),
        unicode_path(b"a.png", b"b.png", version=2),
        unicode_path(b"a.png", b"\xff\xfe"),
        unicode_path(b"a.png", b""),
        struct.pack("<HH", 0x7075, 3) + b"\1\0\0",
        struct.pack("<HH", 0x7075, 200) + b"\1",
        bytes(7),
        b"\1",
    ],
    ids=repr,
)
def test_a_part_that_is_not_of_the_name_does_not_matter(extra: bytes) -> None:
    assert names_in(b"a.png", extra=extra) == ["a.png"]


def test_a_unicode_path_cannot_lead_elsewhere_either() -> None:
    with pytest.raises(InvalidInput, match="leads out"):
        names_in(b"a.png", extra=unicode_path(b"a.png", b"../a.png"))


@pytest.mark.parametrize("name", ["C:a.png", "c:/a.png", "C:\\a.png", "./../a.png", "./C:/a.png", "p//a.png"])
def test_a_name_of_a_drive_or_of_another_folder_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="leads out"):
        names_in(name.encode())


def test_a_name_may_begin_in_the_folder_it_is_in() -> None:
    assert names_in(b"./a.png", b"././p/b.png") == ["a.png", "p/b.png"]
    data = archive((b"./p/a.png", PICTURE), (b"./", b""), (b"./p/", b""))
    assert [one.filename for one in found_in(data)] == ["p/a.png"]


def test_two_spellings_are_two_names() -> None:
    assert names_in("straße.png".encode(), b"strasse.png") == ["straße.png", "strasse.png"]


def test_a_greek_caption_in_capitals_is_found() -> None:
    assert caption_in(b"[brand]", "ΛΟΓΟΣ.PNG".encode(), "λογος.txt".encode()) == "[brand]"


def test_two_names_that_people_take_for_one_are_refused() -> None:
    with pytest.raises(InvalidInput, match="appears twice"):
        names_in("größe.png".encode(), "gro\u0308ße.PNG".encode())


# captions


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("photo of [brand]\u00a0logo".encode(), "photo of [brand]\u00a0logo"),
        ("\ufeffphoto of [brand]\r\nat night\r\n".encode(), "photo of [brand]\nat night"),
        ("photo of [brand], día".encode("utf-16"), "photo of [brand], día"),
        (b"\xfe\xff" + "photo of [brand]".encode("utf-16-be"), "photo of [brand]"),
        ("می\u200cخواهم 👩\u200d🎨 so\u00adft".encode(), "می\u200cخواهم 👩\u200d🎨 so\u00adft"),
    ],
)
def test_captions_are_read_as_systems_save_them(text: bytes, caption: str) -> None:
    assert caption_in(text) == caption


@pytest.mark.parametrize(
    ("picture", "name"),
    [("LOGO.JPG", "logo.TXT"), ("p/Logo.jpeg", "p/LOGO.txt"), ("größe.png", "gro\u0308ße.txt"), ("a.b.png", "a.b.txt")],
)
def test_a_caption_is_found_in_any_case_and_composition(picture: str, name: str) -> None:
    assert caption_in(b"[brand]", picture.encode(), name.encode()) == "[brand]"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a\u202eb".encode(), r"'a\.txt' holds characters that cannot be seen \(U\+202E\)"),
        ("a\u2067b".encode(), "cannot be seen"),
        (b"a\x1bb", "cannot be seen"),
        ("a".encode("utf-16-le"), "cannot be seen"),
        (b"caf\xe9", r"'a\.txt' is not text in UTF-8"),
        (b"\xff\xfe", "UTF-8"),
        (b"\xff\xfe\0", "UTF-8"),
        (b" \r\n", r"caption in 'a\.txt' has 0 characters"),
        (b"x" * 501, r"caption in 'a\.txt' has 501 characters"),
    ],
)
def test_what_is_no_caption_is_refused_and_named(text: bytes, why: str) -> None:
    with pytest.raises(OnbrandError, match=why):
        caption_in(text)


# archives


def test_an_archive_may_have_a_comment() -> None:
    (found,) = found_in(archive((b"a.png", PICTURE), comment=b"made with PK\x05\x06 " + bytes(60_000)))
    assert found.data == PICTURE


def test_an_archive_made_on_the_fly_is_taken() -> None:
    """Sizes after the bytes (data descriptors), and numbers of 64 bits for small files."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    out = Pipe()
    with (
        zipfile.ZipFile(cast("IO[bytes]", out), "w", zipfile.ZIP_DEFLATED) as made,
        made.open("a.png", "w", force_zip64=True) as file,
    ):
        file.write(PICTURE)
    (found,) = found_in(out.getvalue())
    assert found.data == PICTURE


def test_numbers_of_64_bits_are_read() -> None:
    data = bytearray(archive((b"a.png", PICTURE), extra=struct.pack("<HHQQ", 1, 16, len(PICTURE), 0)))
    at = data.index(b"PK\x01\x02")
    packed = data[at + 20 : at + 24]
    part = data.index(struct.pack("<HH", 1, 16), at)
    data[part + 12 : part + 16] = packed
    data[at + 20 : at + 28] = b"\xff" * 8
    (found,) = found_in(bytes(data))
    assert found.data == PICTURE


@pytest.mark.parametrize("place", range(0, 160, 3))
def test_every_changed_byte_is_a_clear_refusal_or_the_same_picture(place: int) -> None:
    data = bytearray(
        archive((b"p/a.png", PICTURE), (b"p/a.txt", b"[brand]"), extra=unicode_path(b"p/a.png", b"p/a.png"))
    )
    data[place % len(data)] ^= 0xFF
    found = []
    with contextlib.suppress(OnbrandError):
        found = found_in(bytes(data))
    assert [one.data for one in found] in ([], [PICTURE])
