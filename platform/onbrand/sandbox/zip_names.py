"""Decodes names in archives that do not state their encoding; ambiguous characters are marked as unknown.

Windows programs write names in the code page of their system and do not say which. A code page is a candidate if every
name of the archive makes words in it. Characters on which all candidates agree are known; others become U+FFFD. Runs in
the checking child.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from onbrand.sandbox.alphabets import ALPHABETS, FOREIGN_SCRIPTS, SYMBOLS

UNKNOWN = "\ufffd"
_OEM = ("cp437", "cp850", "cp852", "cp857", "cp775", "cp737", "cp866", "cp855", "cp862", "cp720")
_ANSI = ("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp874")
_WIDE = ("cp932", "gbk", "cp950", "cp949")
CODE_PAGES = (*_OEM, *_ANSI, *_WIDE)
"""OEM and ANSI code pages of Windows' languages."""

_REST_OF_WORD = re.compile(rb"[\x80-\xff][\x40-\x7e\x80-\xff]*")
_LETTER = r"[^\W\d_ªºµ²³¹½¼¾]"
_MARK = "[\u0300-\u036f\u05b0-\u05c2\u064b-\u0652\u0e31-\u0e4e]"
_WORD = re.compile(f"{_LETTER}+(?:{_MARK}+{_LETTER}*)*")
_SHAPE = re.compile(r"U?l*|U+")
_SHARP_S = re.compile("(?<![aeiouyäöü])ß", re.IGNORECASE)
_BROKEN = re.compile(r"[^\x00-\x7f][`{|}~^@\\]")
"""A non-ASCII character and a sign: the two bytes of a double-byte character, read in a single-byte page."""
_LATIN = r"[A-Za-z]"
_WIDE_LETTER = "[\u0391-\u0451\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3\uff66-\uff9f]"
_LONE = re.compile(
    f"{_LATIN}{_WIDE_LETTER}+{_LATIN}|{_WIDE_LETTER}[a-z]{_WIDE_LETTER}|"
    f"(?<!{_WIDE_LETTER}){_WIDE_LETTER}{_LATIN}{{2}}|{_LATIN}{{2}}{_WIDE_LETTER}(?!{_WIDE_LETTER})"
)
"""Wide letters between Latin letters, or one alone beside them: an accented letter read as half a character."""
_WIDE_SIGNS = re.compile(
    "[\u3000-\u3004\u3008-\u301f\uff01-\uff5e\u2018-\u201d\u2026\u00b7\u00d7\u2605\u2606\u25a0-\u25cf]"
)
_HALF_WIDTH = re.compile("[\uff61-\uff9f]+")
_HALF_WIDTH_WORD = re.compile("(?=.{2})[\uff66\uff71-\uff9d][\uff66-\uff9f]*")


@dataclass(frozen=True, slots=True)
class Reading:
    """A decoded name.

    Args:
        text: the name, with U+FFFD for unknown characters.
        is_known: whether all characters are known.
    """

    text: str
    is_known: bool


def read_names(names: Sequence[bytes]) -> list[Reading]:
    """Decode the names of one archive that are not UTF-8; all are in the same code page."""
    possible = [page for page in CODE_PAGES if all(_makes_words(name, page) for name in names)]
    return [_agreed(name, possible) for name in names]


def _agreed(name: bytes, pages: Sequence[str]) -> Reading:
    readings = {name.decode(page) for page in pages}
    if len(readings) == 1:
        return Reading(readings.pop(), True)
    if not pages or any(page in _WIDE for page in pages):
        return Reading(_REST_OF_WORD.sub(UNKNOWN.encode(), name).decode(), False)
    letters = [set(each) for each in zip(*readings, strict=True)]
    return Reading("".join(each.pop() if len(each) == 1 else UNKNOWN for each in letters), False)


def _makes_words(name: bytes, page: str) -> bool:
    try:
        text = name.decode(page)
    except UnicodeDecodeError:
        return False
    if page in _WIDE:
        return _is_east_asian(name, text, page)
    return not _BROKEN.search(text) and _is_written(_WORD.findall(text)) and _has_signs_in_place(text)


# one byte a character


def _is_written(words: list[str]) -> bool:
    """Whether non-ASCII words are of one Latin-letter language or of known scripts, without capitals inside."""
    words = [word for word in words if not word.isascii()]
    return all(map(_is_shaped, words)) and (_is_of_a_language(words) or all(map(_is_of_a_script, words)))


def _is_shaped(word: str) -> bool:
    letters = (letter for letter in word if letter != "ß")
    return not _SHARP_S.search(word) and _SHAPE.fullmatch("".join(map(_case, letters))) is not None


def _is_of_a_language(words: list[str]) -> bool:
    foreign = {letter for word in words for letter in word.lower() if letter > "\x7f"}
    return any(foreign <= alphabet for alphabet in ALPHABETS)


def _is_of_a_script(word: str) -> bool:
    letters = frozenset(word.lower())
    return any(letters <= script and not never.search(word.lower()) for script, never in FOREIGN_SCRIPTS)


def _case(letter: str) -> str:
    return "U" if letter.isupper() else "l"


def _has_signs_in_place(text: str) -> bool:
    """Whether all non-ASCII signs are in `SYMBOLS`, and next to a word only a few of them, behind it (`Logo™`)."""
    text = _WORD.sub(lambda word: "a" * len(word[0]), text)
    for index, sign in enumerate(text):
        before, after = text[index - 1 : index], text[index + 1 : index + 2]
        if not sign.isascii() and (
            sign not in SYMBOLS or after.isalpha() or (before.isalpha() and sign not in "©®™ªº")
        ):
            return False
    return True


# two bytes a character


def _is_east_asian(name: bytes, text: str, page: str) -> bool:
    """Whether at least half of the letters are in general use, and none stands alone among Latin letters."""
    if _LONE.search(text) or not all(_HALF_WIDTH_WORD.fullmatch(word) for word in _HALF_WIDTH.findall(text)):
        return False
    rest = _WIDE_SIGNS.sub("", text)
    letters = re.findall(_WIDE_LETTER, rest)
    if not letters or any(not letter.isascii() and not re.match(_WIDE_LETTER, letter) for letter in rest):
        return False
    if page == "cp949" and all("\u4e00" <= letter <= "\u9fff" for letter in letters):
        return True  # Korean names have Chinese letters throughout or hardly any
    return 2 * sum(letter < "\u3000" or _IN_USE[page](letter) for letter in letters) >= len(letters)


def _between(page: str, first: int, last: int, letter: str) -> bool:
    code = letter.encode(page)
    return len(code) == 2 and first <= int.from_bytes(code, "big") <= last and (page != "gbk" or code[1] >= 0xA1)


def _is_japanese_in_use(letter: str) -> bool:
    return "\u3041" <= letter <= "\u30ff" or "\uff66" <= letter <= "\uff9f" or _between("cp932", 0x889F, 0x9872, letter)


def _is_hangul_in_use(letter: str) -> bool:
    return _between("cp949", 0xB0A1, 0xC8FE, letter) and letter.encode("cp949")[1] >= 0xA1


_IN_USE: dict[str, Callable[[str], bool]] = {
    "cp932": _is_japanese_in_use,  # kana, and kanji of JIS X 0208's first level
    "gbk": partial(_between, "gbk", 0xB0A1, 0xF7FE),  # GB 2312
    "cp950": partial(_between, "cp950", 0xA440, 0xC67E),  # Big5's first level
    "cp949": _is_hangul_in_use,  # KS X 1001
}
