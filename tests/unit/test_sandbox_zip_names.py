"""Names in zip archives without a declared encoding are read correctly, or marked as unknown."""

from __future__ import annotations

import contextlib

import pytest

from onbrand.errors import InvalidInput
from tests.unit.zip_writing import PICTURE, archive, found_in, names_in


def names_packed(page: str, *stems: str) -> list[str]:
    return [name.removesuffix(".png") for name in names_in(*(f"{stem}.png".encode(page) for stem in stems))]


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("cp866", ["Логотип фирмы 1", "Обложка"]),
        ("cp850", ["maçã"]), ("cp850", ["ações", "não"]), ("cp850", ["très"]), ("cp850", ["Sørensen"]),
        ("cp437", ["Logo groß", "Äpfel", "Übersicht", "schön"]), ("cp1252", ["groß", "über", "Äpfel"]),
        ("cp852", ["Łódź"]), ("cp852", ["žluťoučký kůň"]), ("cp852", ["árvíztűrő"]),
        ("cp857", ["Şişli"]), ("cp737", ["Λογότυπο"]), ("cp720", ["شعار الشركة", "صورة المنتج"]), ("cp874", ["โลโก้"]),
        ("cp932", ["新しい画像"]), ("cp932", ["ﾛｺﾞ"]), ("cp950", ["品牌"]), ("cp950", ["產品照片", "標誌"]),
    ],
)  # fmt: skip
def test_names_of_which_one_reading_makes_sense_are_read_right(page: str, names: list[str]) -> None:
    assert names_packed(page, *names) == names


@pytest.mark.parametrize(
    ("page", "names", "shown"),
    [
        ("cp866", ["логотип"], ["\ufffd" * 7]),
        ("cp866", ["фото 1"], ["\ufffd 1"]),
        ("cp866", ["Д", "О"], ["\ufffd", "\ufffd"]),
        ("cp866", ["а", "А"], ["\ufffd", "\ufffd"]),
        ("gbk", ["品牌"], ["\ufffd"]),
        ("cp949", ["브랜드"], ["\ufffd"]),
        ("cp850", ["niño", "größe"], ["ni\ufffdo", "größe"]),
        ("cp850", ["groß"], ["gro\ufffd"]),
        ("cp850", ["Äpfel"], ["\ufffdpfel"]),
        ("cp1252", ["diálogo"], ["di\ufffdlogo"]),
        ("latin-1", ["été"], ["\ufffdt\ufffd"]),
        ("mac-roman", ["größe", "café"], ["gr\ufffd", "caf\ufffd"]),
        ("koi8-r", ["логотип"], ["\ufffd"]),
    ],
)
def test_letters_that_could_be_others_are_shown_as_unknown(page: str, names: list[str], shown: list[str]) -> None:
    assert names_packed(page, *names) == shown


PAGES = ("cp437", "cp850", "cp852", "cp857", "cp866", "cp737", "cp1250", "cp1251", "cp1252", "cp932", "gbk", "cp949")
WORDS = (
    "Äpfel", "größe", "très", "niño", "maçã", "Kapitän", "diálogo", "Håkan", "Sørensen", "Łódź", "kůň", "Şişli",
    "лого", "Фото", "ДОМ", "дизайн", "λόγος", "ロゴ", "商品", "品牌", "标志", "標誌", "产品图片", "브랜드", "사진",
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_no_name_is_read_wrongly_in_silence(page: str) -> None:
    """Right, or with U+FFFD in it: every word in every code page that has its letters."""
    tried = 0
    for word in WORDS:
        with contextlib.suppress(UnicodeEncodeError):
            raw = f"{word} 1.png".encode(page)
            tried += 1
            (name,) = names_in(raw)
            assert name == f"{word} 1.png" or "\ufffd" in name, (page, word, name)
    assert tried


@pytest.mark.parametrize("page", ["cp866", "cp949", "gbk", "cp932"])
def test_a_caption_of_unknown_letters_is_found_by_its_bytes(page: str) -> None:
    one, other = {"cp866": "ДО", "cp949": "가나", "gbk": "品牌", "cp932": "表裏"}[page]
    entries = [(f"{one}.JPG", PICTURE), (f"{other}.png", PICTURE), (f"{other}.txt", b"2"), (f"{one}.TXT", b"1")]
    found = found_in(archive(*((name.encode(page), data) for name, data in entries)))
    assert [each.caption for each in found] == ["1", "2"]


def test_a_caption_of_other_unknown_letters_goes_to_no_picture() -> None:
    with pytest.raises(InvalidInput, match=r"'\ufffd\.txt' must describe exactly one picture"):
        found_in(archive(("Д.png".encode("cp866"), PICTURE), ("О.txt".encode("cp866"), b"x")))


def test_the_same_unknown_name_twice_is_refused() -> None:
    with pytest.raises(InvalidInput, match="appears twice"):
        names_in("Д.png".encode("cp866"), "Д.PNG".encode("cp866"))
