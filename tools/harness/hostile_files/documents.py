"""Hostile documents: PDFs with actions, packed or broken structure, and texts with markup for browsers."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pikepdf
from pikepdf import Array, Dictionary, Name, Stream, String

from tools.harness.hostile_files.archives import good as good_archive
from tools.harness.hostile_files.corpus import Hostile

Change = Callable[[pikepdf.Pdf], None]


def pdf(change: Change | None = None, **options: Any) -> bytes:
    """A PDF of one page, changed."""
    with pikepdf.Pdf.new() as made:
        made.add_blank_page()
        made.pages[0].Contents = Stream(made, b"0 0 m 100 100 l S")
        if change:
            change(made)
        out = io.BytesIO()
        made.save(out, **options)
    return out.getvalue()


def written(*objects: bytes, trailer: bytes = b"") -> bytes:
    """A PDF written by hand: objects from 1 on, 1 being the catalogue."""
    body, places = b"%PDF-1.7\n", []
    for number, thing in enumerate(objects, start=1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, thing)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, len(body))
    return body + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + end


PAGES = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
PAGE = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Resources<<>>>>"


def hand(catalogue: bytes = b"", page: bytes = b"", *more: bytes, trailer: bytes = b"") -> bytes:
    return written(
        b"<</Type/Catalog/Pages 2 0 R%s>>" % catalogue, PAGES, PAGE[:-2] + page + b">>", *more, trailer=trailer
    )


def stream(data: bytes, facts: bytes = b"") -> bytes:
    return b"<</Length %d%s>>stream\n%s\nendstream" % (len(data), facts, data)


@cache
def zeros(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def action(facts: bytes) -> bytes:
    return hand(b"/OpenAction<<%s>>" % facts)


def annotation(facts: bytes) -> bytes:
    return hand(b"", b"/Annots[<</Type/Annot/Rect[0 0 9 9]%s>>]" % facts)


def _embedded(made: pikepdf.Pdf) -> None:
    made.attachments["evil.exe"] = b"MZ"


def _many_pages(made: pikepdf.Pdf) -> None:
    for _ in range(600):
        made.add_blank_page()


def _hidden_script(made: pikepdf.Pdf) -> None:
    made.Root.Evil = made.make_indirect(Dictionary(S=Name.JavaScript, JS=String("app.alert(1)")))


def _script_in_stream(made: pikepdf.Pdf) -> None:
    made.Root.Evil = made.make_indirect(Dictionary(A=Array([Dictionary(JS=Stream(made, b"app.alert(1)"))])))


def _encrypted(owner: str, user: str) -> bytes:
    return pdf(encryption=pikepdf.Encryption(owner=owner, user=user))


def _object_stream_bomb() -> bytes:
    """A stream of objects that unpacks to 400 MB: readers unpack such streams to look anything up."""
    data = zeros(400)
    inner = stream(data, b"/Type/ObjStm/N 1/First 4/Filter/FlateDecode")
    return hand(b"/Evil 4 0 R", b"", inner)


def _deep(count: int) -> bytes:
    return hand(b"/Evil " + b"[" * count + b"]" * count)


def _page_loop() -> bytes:
    return written(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Pages/Kids[2 0 R]/Count 1/Parent 2 0 R>>",
    )


def hostile() -> list[Hostile]:
    pdfs = [(name, "a.pdf", make, why) for name, make, why in [*_doing(), *_packing(), *_structures()]]
    return [
        Hostile(f"document: {name}", "documents", filename, make, why)
        for name, filename, make, why in [*pdfs, *_names(), *_texts()]
    ]


def _addresses() -> list[tuple]:
    """Addresses that viewers normalise before they follow them."""
    written_as = {
        "a control before": b"(\x01javascript:x)",
        "an escaped control before": b"(\\001javascript:x)",
        "a line end within": b"(java\\nscript:x)",
        "a tab within, in hexadecimal": b"<6a6176610973637269 7074 3a78>",
        "backslashes": b"(\\\\\\\\evil\\\\share)",
        "slashes to another machine": b"(//evil/share)",
        "UTF-16": b"<feff006a006100760061007300630072006900700074003a0078>",
        "a name for a text": b"/javascript:x",
    }
    link = b"/Subtype/Link/A<</S/URI/URI%s>>"
    made = [
        (f"an address with {how}", lambda text=text: annotation(link % text), "neither")
        for how, text in written_as.items()
    ]
    base = ("a javascript base elsewhere", lambda: hand(b"/URI 4 0 R", b"", b"<</Base(javascript:x)>>"), "neither")
    return [*made, base]


def _doing() -> list[tuple]:
    script = b"/S/JavaScript/JS(app.alert\\(1\\))"
    return [
        ("a script on opening", lambda: action(script), "scripts"),
        ("a script in other spelling", lambda: action(b"/S/J#61vaScript/J#53(app.alert\\(1\\))"), "scripts"),
        ("a script in a stream", lambda: pdf(_script_in_stream), "scripts"),
        ("a script hidden in an object", lambda: pdf(_hidden_script), "scripts"),
        (
            "a script hidden in an object stream",
            lambda: pdf(_hidden_script, object_stream_mode=pikepdf.ObjectStreamMode.generate),
            "scripts",
        ),
        ("named scripts", lambda: hand(b"/Names<</JavaScript<</Names[(a)<<%s>>]>>>>" % script), "scripts"),
        ("a script of a field", lambda: annotation(b"/Subtype/Widget/AA<</K<<%s>>>>" % script), "scripts|start by"),
        ("a script of a page", lambda: hand(b"", b"/AA<</O<<%s>>>>" % script), "scripts|start by"),
        ("a program", lambda: action(b"/S/Launch/F(cmd.exe)"), "starts programs"),
        ("a program under a link", lambda: annotation(b"/Subtype/Link/A<</S/Launch/F(/bin/sh)>>"), "starts programs"),
        ("a form that sends", lambda: annotation(b"/Subtype/Widget/A<</S/SubmitForm/F(http://x/)>>"), "sends"),
        ("data from elsewhere", lambda: action(b"/S/ImportData/F(a.fdf)"), "reads other files"),
        ("another file", lambda: annotation(b"/Subtype/Link/A<</S/GoToR/F(\\\\\\\\x\\\\y)/D[0/Fit]>>"), "other files"),
        ("an embedded target", lambda: annotation(b"/Subtype/Link/A<</S/GoToE/T<</R/C/N(a)>>>>"), "embedded"),
        ("an address on opening", lambda: action(b"/S/URI/URI(https://tracker.example/)"), "start by themselves"),
        ("a page, then an address", lambda: action(b"/S/GoTo/D[3 0 R/Fit]/Next<</S/URI/URI(https://x/)>>"), "start by"),
        ("a javascript base", lambda: hand(b"/URI<</Base(javascript:alert\\(1\\)//)>>"), "neither https"),
        (
            "a javascript address elsewhere",
            lambda: hand(
                b"", b"/Annots[<</Type/Annot/Subtype/Link/Rect[0 0 9 9]/A<</S/URI/URI 4 0 R>>>>]", b"(JavaScript:x)"
            ),
            "neither https",
        ),
        ("an action of a page", lambda: hand(b"", b"/AA<</O<</S/URI/URI(https://x/)>>>>"), "start by themselves"),
        (
            "a javascript address",
            lambda: annotation(b"/Subtype/Link/A<</S/URI/URI(javascript:alert\\(1\\))>>"),
            "neither https",
        ),
        ("a file address", lambda: annotation(b"/Subtype/Link/A<</S/URI/URI(file:///etc/passwd)>>"), "neither https"),
        ("a data address", lambda: annotation(b"/Subtype/Link/A<</S/URI/URI(data:text/html,x)>>"), "neither https"),
        *_addresses(),
        ("an embedded file", lambda: pdf(_embedded), "files"),
        ("a file under a note", lambda: annotation(b"/Subtype/FileAttachment/FS<</Type/Filespec/EF<<>>>>"), "files"),
        ("a film", lambda: annotation(b"/Subtype/Movie/Movie<</F(a.avi)>>"), "film"),
        ("a sound", lambda: annotation(b"/Subtype/Sound/Sound 3 0 R"), "film"),
        ("a rendition", lambda: annotation(b"/Subtype/Screen/A<</S/Rendition>>"), "film"),
        ("rich media", lambda: annotation(b"/Subtype/RichMedia"), "film"),
        ("a scene", lambda: annotation(b"/Subtype/3D/3DD 3 0 R"), "scene"),
        ("an XFA form", lambda: hand(b"/AcroForm<</XFA[(a)(b)]/Fields[]>>"), "XFA"),
        (
            "a stream of another file",
            lambda: hand(b"/Evil 4 0 R", b"", stream(b"x", b"/F(/etc/passwd)")),
            "other files",
        ),
        ("an external object", lambda: hand(b"/Evil<</Type/Filespec/F(http://x/)>>"), "other files"),
    ]


def _packing() -> list[tuple]:
    packed = b"/Filter/FlateDecode"
    twice = zlib.compress(zeros(100))
    picture = b"/Type/XObject/Subtype/Image/BitsPerComponent 8/ColorSpace/DeviceRGB/Width %d/Height %d"
    return [
        ("150 MB of zeros", lambda: hand(b"/Evil 4 0 R", b"", stream(zeros(150), packed)), "unpacks to more"),
        ("400 MB of zeros", lambda: hand(b"/Evil 4 0 R", b"", stream(zeros(400), packed)), "unpacks to more"),
        ("6 times 60 MB", lambda: hand(b"/Evil 4 0 R", b"", *[stream(zeros(60), packed)] * 6), "unpacks to more"),
        (
            "packed twice",
            lambda: hand(b"/Evil 4 0 R", b"", stream(twice, b"/Filter[/FlateDecode/FlateDecode]")),
            "more than once",
        ),
        (
            "packed 50 times",
            lambda: hand(b"/Evil 4 0 R", b"", stream(b"x", b"/Filter[%s]" % (b"/ASCIIHexDecode" * 50))),
            "not accepted",
        ),
        ("an unknown filter", lambda: hand(b"/Evil 4 0 R", b"", stream(b"x", b"/Filter/EvilDecode")), "not accepted"),
        (
            "a bomb of run lengths",
            lambda: hand(b"/Evil 4 0 R", b"", stream(b"\x81\x00" * 2**20 + b"\x80", b"/Filter/RunLengthDecode")),
            "unpacks to more|memory|damaged",
        ),
        ("a stream of objects of 400 MB", _object_stream_bomb, "unpacks to more|memory|damaged"),
        (
            "a picture of 10^10 pixels",
            lambda: hand(b"/Evil 4 0 R", b"", stream(b"x", picture % (100_000, 100_000))),
            "pixels",
        ),
        ("a picture of no size", lambda: hand(b"/Evil 4 0 R", b"", stream(b"x", picture % (0, 9))), "no size"),
        ("600 pages", lambda: pdf(_many_pages), "601 pages"),
        ("a million objects said", lambda: hand(trailer=b"/Size 1000000"), "objects|damaged"),
        ("too many bytes", lambda: pdf() + b"\n" * (21 * 2**20) + b"%%EOF", "limit|more than"),
    ]


def _structures() -> list[tuple]:
    data = pdf()
    return [
        ("a password", lambda: _encrypted("a", "b"), "encrypted"),
        ("an owner's password", lambda: _encrypted("a", ""), "encrypted"),
        (
            "an encrypted part",
            lambda: hand(b"/Evil 4 0 R", b"", stream(b"x", b"/Filter/Crypt")),
            "encrypted|not accepted",
        ),
        ("no page", lambda: written(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 0>>"), "0 pages"),
        ("pages in a circle", _page_loop, "damaged"),
        ("no catalogue", lambda: written(b"42"), "damaged"),
        ("a catalogue without pages", lambda: written(b"<</Type/Catalog>>"), "damaged|pages"),
        ("10,000 brackets", lambda: _deep(10_000), "damaged|nested"),
        ("an object that is itself", lambda: hand(b"/Evil 4 0 R", b"", b"4 0 R"), "damaged|scripts"),
        (
            "a length that is itself",
            lambda: hand(b"/Evil 4 0 R", b"", b"<</Length 4 0 R>>stream\nx\nendstream"),
            "damaged",
        ),
        ("a length that lies", lambda: hand(b"/Evil 4 0 R", b"", b"<</Length 999999>>stream\nx\nendstream"), "damaged"),
        ("a table that lies", lambda: data.replace(b"startxref", b"startxrex"), "damaged"),
        ("a table far away", lambda: hand()[:-20] + b"\nstartxref\n99999999\n%%EOF\n", "damaged"),
        ("its header only", lambda: b"%PDF-1.7\n", "cut short"),
        ("its header and end", lambda: b"%PDF-1.7\n%%EOF", "damaged"),
        ("noise", lambda: b"%PDF-1.7\n" + bytes(range(256)) * 40 + b"%%EOF", "damaged"),
        ("cut at the half", lambda: data[: len(data) // 2], "cut short"),
        ("cut and ended", lambda: data[: len(data) // 2] + b"\n%%EOF", "damaged"),
        ("its last bytes missing", lambda: data[:-8], "cut short"),
        ("something before it", lambda: b"GIF89a" + data, "not a PDF"),
        ("a page before it", lambda: b"<html><script>alert(1)</script>" + data, "not a PDF"),
        (
            "a page in its head",
            lambda: data.replace(b"\n", b"\n%<script>alert(1)</script>\n", 1),
            "page for browsers|damaged",
        ),
        ("an archive after it", lambda: data + good_archive(), "cut short|follows"),
        ("an archive in it", lambda: data[:-7] + good_archive() + b"\n%%EOF", "damaged|archive"),
        ("a script after it", lambda: data + b"<script>alert(1)</script>", "follows"),
        ("a version that is none", lambda: b"%PDF-9.9" + data[8:], "not a PDF"),
        ("a picture called a PDF", lambda: b"\x89PNG\r\n\x1a\n", "not a PDF"),
        ("an archive called a PDF", good_archive, "not a PDF"),
        ("nothing", lambda: b"", "not a PDF"),
        ("a PostScript program", lambda: b"%!PS\n(/etc/passwd)(r)file\n", "not a PDF"),
    ]


def _names() -> list[tuple]:
    names = ["a.exe", "a.html", "a.svg", "a.pdf.exe", "a", "a.docm", "a.txt", "a.xhtml", "a.md.html"]
    found = [(f"a file {name}", name, pdf, "neither a .pdf nor a .md") for name in names]
    return [*found, ("a name of dots", "...pdf", pdf, "title"), ("a name without letters", "\u202e.pdf", pdf, "title")]


def flag(region: str) -> str:
    """A black flag with a region in tag characters, as emoji encode it."""
    return "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in region) + "\U000e007f"


def _texts() -> list[tuple]:
    markup = {
        "a script": "# Voice\n\n<script>alert(1)</script>\n",
        "a script in a line": "Be kind <script>alert(1)</script> always\n",
        "a tag that is not closed": "a <img src=x onerror=alert(1)//\n",
        "a frame": '<iframe src="https://x/"></iframe>\n',
        "a comment": "a <!-- hidden --> b\n",
        "a declaration": "<!DOCTYPE html>\n",
        "an instruction": "<?php system('id') ?>\n",
        "a style": "<style>*{display:none}</style>\n",
        "a form": "<form action=https://x><input name=p></form>\n",
        "a drawing": "<svg/onload=alert(1)>\n",
        "a tag in a quote": "> - <b onclick=alert(1)>x</b>\n",
        "a tag in a list": "1. a\n   <details ontoggle=alert(1) open>\n",
        "a tag in a heading": "## a <a href=javascript:alert(1)>b</a>\n",
        "a tag in a link": "[<img src=x onerror=alert(1)>](https://x/)\n",
        "a tag in a picture": "![a <script>](https://x/a.png)\n",
    }
    links = {
        "a javascript link": "[a](javascript:alert(1))\n",
        "a javascript link in capitals": "[a](JaVaScRiPt:alert(1))\n",
        "a javascript link in entities": "[a](&#106;avascript:alert&#40;1&#41;)\n",
        "a javascript link in brackets": "<javascript:alert(1)>\n",
        "a javascript link elsewhere": "[a]\n\n[a]: javascript:alert(1)\n",
        "a reference that nobody uses": "x\n\n[a]: vbscript:x\n",
        "a data link": "[a](data:text/html;base64,PHNjcmlwdD4=)\n",
        "a data picture": "![a](data:image/svg+xml;base64,PHN2Zz4=)\n",
        "a file link": "[a](file:///etc/passwd)\n",
    }
    unseen = {
        "a zero": b"a\0b\n",
        "an escape": b"a\x1b[31mb\n",
        "a backspace": b"good\x08\x08evil\n",
        "a character that turns around": "a\u202eb\n".encode(),
        "an isolate": "a\u2066b\n".encode(),
        "a hidden tag": "a\U000e0041b\n".encode(),
        "words in a flag": flag("hidden").encode(),
        "tags after a flag": f"{flag('gbeng')}\U000e0041\n".encode(),
    }
    other = {
        "UTF-16": ("# Voice".encode("utf-16"), "UTF-8|cannot be seen"),
        "Latin-1": (b"caf\xe9\n", "UTF-8"),
        "bytes that are no character": (b"\xf5\x80\x80\x80", "UTF-8"),
        "a surrogate": (b"\xed\xa0\x80", "UTF-8"),
        "a long spelling": (b"\xc0\xaf", "UTF-8"),
        "nothing to read": (b" \n\t\n", "empty"),
        "a picture": (b"\x89PNG\r\n\x1a\n\0\0", "UTF-8"),
        "2 MB": (b"a" * 2 * 2**20, "limit for Markdown"),
        "200,000 brackets": (b"[[" * 200_000, "too long|nested"),
        "50,000 quotes": (b">" * 50_000 + b"<b>", "too long|nested|HTML"),
        "600 lists": (b"".join(b" " * (2 * i) + b"- a\n" for i in range(600)), "too long|nested|HTML"),
    }
    return [
        *[(f"Markdown with {what}", "a.md", lambda t=text: t.encode(), "HTML") for what, text in markup.items()],
        *[
            (f"Markdown with {what}", "a.md", lambda t=text: t.encode(), "neither https")
            for what, text in links.items()
        ],
        *[(f"Markdown with {what}", "a.md", lambda d=data: d, "cannot be seen") for what, data in unseen.items()],
        *[(f"Markdown of {what}", "a.md", lambda d=data: d, why) for what, (data, why) in other.items()],
    ]
