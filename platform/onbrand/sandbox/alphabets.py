"""Letters of languages beyond ASCII, in lower case. They tell which old code page a name is in."""

from __future__ import annotations

import re

_LATIN = {
    "German": "äöüß",
    "French": "àâæçéèêëîïôœùûüÿ",
    "Spanish": "áéíóúüñ",
    "Portuguese": "áâãàçéêíóôõúü",
    "Italian": "àèéìíîòóù",
    "Dutch": "áäéèëïóöüú",
    "Danish, Norwegian": "æøåéèòô",
    "Swedish, Finnish": "åäöéüà",
    "Icelandic, Faroese": "áðéíóúýþæöø",
    "Catalan": "àçéèíïóòúü",
    "Irish": "áéíóú",
    "Czech": "áčďéěíňóřšťúůýžöü",
    "Slovak": "áäčďéíĺľňóôŕšťúýž",
    "Polish": "ąćęłńóśźż",
    "Hungarian": "áéíóöőúüű",
    "Slovene, Croatian": "čćđšž",
    "Romanian": "ăâîșțşţ",
    "Albanian": "çë",
    "Turkish": "çğıöşüâîû\u0307",
    "Azeri": "çəğıöşü",
    "Estonian": "äöõüšž",
    "Latvian": "āčēģīķļņōŗšūž",
    "Lithuanian": "ąčęėįšųūž",
    "Vietnamese": "àáâãăđèéêìíòóôõơùúưýạ\u0300\u0301\u0303\u0309\u0323",
}
ALPHABETS: tuple[frozenset[str], ...] = tuple(map(frozenset, _LATIN.values()))
"""Alphabets of the languages that are written in Latin letters."""
_VOWELLESS = r"^[^{0}]{{3,}}$"
FOREIGN_SCRIPTS: tuple[tuple[frozenset[str], re.Pattern[str]], ...] = (
    (
        frozenset("абвгдежзийклмнопрстуфхцчшщъыьэюяёєіїґўђјљњћџѓќѕ"),
        re.compile(f"^[ъыь]|[ъыь]{{2}}|{_VOWELLESS.format('аеиоуыэюяёєіїјр')}"),
    ),
    (
        frozenset("αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ"),
        re.compile(f"ς.|σ$|[άέήίόύώΐΰ].*[άέήίόύώΐΰ]|{_VOWELLESS.format('αεηιουωάέήίόύώϊϋΐΰ')}"),
    ),
    (frozenset(map(chr, (*range(0x05D0, 0x05EB), *range(0x05B0, 0x05C3)))), re.compile("[ךםןףץ].|^[\u05b0-\u05c2]")),
    (
        frozenset("ءآأؤإئابةتثجحخدذرزسشصضطظعغـفقكلمنهوىيپچژگک" + "".join(map(chr, range(0x064B, 0x0653)))),
        re.compile("[ةى].|^[ؤئة\u064b-\u0652]|[\u064b-\u0650]{2}|.[آإ]"),
    ),
    (
        frozenset(map(chr, (*range(0x0E01, 0x0E3B), *range(0x0E40, 0x0E4F)))),
        re.compile("^[\u0e30-\u0e3a\u0e45-\u0e4e]"),
    ),
)
"""Cyrillic, Greek, Hebrew, Arabic, Thai: their words contain no Latin letters.
Each comes with a pattern that no lower-case word of the script matches."""
SYMBOLS = frozenset("©®™°№§€£«»²³½¼µ·–—…ªº\u00a0")
"""Non-ASCII signs that may appear in names."""
