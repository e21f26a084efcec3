"""Documents from outside: PDFs are parsed and written anew, Markdown must be text without HTML.

Runs in the checking child. Active content of a PDF is refused, not removed, so that the author learns of it.
"""

from __future__ import annotations

import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import pikepdf
from markdown_it import MarkdownIt
from markdown_it.token import Token

from onbrand.errors import InvalidInput, OnbrandError, TooLarge, UnsupportedMedia
from onbrand.sandbox.document_links import address_in_pdf, is_plain_address
from onbrand.sandbox.polyglots import must_be_one_thing
from onbrand.sandbox.results import CleanDocument
from onbrand.visible import hidden_in

if TYPE_CHECKING:
    from onbrand.config import Limits

_CONTENT_TYPES = {"pdf": "application/pdf", "md": "text/markdown; charset=utf-8"}
_OBJECTS_MAX = 200_000
_STREAM_BYTES_MAX = 128 * 2**20
_STREAMS_BYTES_MAX = 256 * 2**20
_IMAGE_PIXELS_MAX = 100_000_000
_FILTERS_MAX = 3
_MENDED = "repairing"  # qpdf's word for additions of its own, such as an empty dictionary of resources
_INFLATED = 2**20
_STRING = re.compile(rb"\((?:\\.|[^\\()])*\)|<[0-9a-fA-F\s]*>", re.DOTALL)
_NAME = re.compile(rb"/[^\s/<>\[\]()%{}]*")
_FORBIDDEN = {
    b"/JavaScript": "scripts",
    b"/JS": "scripts",
    b"/Launch": "an action that starts programs",
    b"/SubmitForm": "a form that sends what is filled in",
    b"/ImportData": "an action that reads other files",
    b"/GoToR": "links to other files",
    b"/GoToE": "links into embedded files",
    b"/Filespec": "other files",
    b"/EmbeddedFile": "embedded files",
    b"/EmbeddedFiles": "embedded files",
    b"/EF": "embedded files",
    b"/FileAttachment": "embedded files",
    b"/Rendition": "film or sound",
    b"/Movie": "film or sound",
    b"/Sound": "film or sound",
    b"/RichMedia": "film or sound",
    b"/Screen": "film or sound",
    b"/3D": "a three-dimensional scene",
    b"/XFA": "an XFA form",
    b"/AA": "actions that start by themselves",
    b"/Crypt": "encrypted parts",
}
_FILTERS = frozenset(
    {"/FlateDecode", "/DCTDecode", "/JPXDecode", "/CCITTFaxDecode", "/JBIG2Decode", "/LZWDecode",
     "/ASCII85Decode", "/ASCIIHexDecode", "/RunLengthDecode"}
)  # fmt: skip
_AS_TEXT = frozenset({"/ASCII85Decode", "/ASCIIHexDecode"})
_LOOKED_INTO = (b"/URI", b"/Base", b"/OpenAction", b"/Metadata")
_MARKUP = re.compile(r"<[A-Za-z/!?]")
_UNSEEN = re.compile("[\ufff0-\uffff\U000e0000-\U000e0fff]")
"""Tags and non-characters, refused in documents too: people do not write them, but models read them."""
_FLAGS = re.compile(
    "|".join(
        "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in region) + "\U000e007f"
        for region in ("gbeng", "gbsct", "gbwls")
    )
)
"""The flags of England, Scotland and Wales: the only emoji of Unicode's RGI set that are written with tags."""
_NESTING_MAX = 50


def clean_document(data: bytes, ext: str, limits: Limits, name: str) -> CleanDocument:
    """Check the document and write it anew.

    Args:
        ext: ``pdf`` or ``md``, by its name.
        name: its name, safe to show.

    Raises:
        UnsupportedMedia: not a complete document of that type, encrypted, or with active content.
        TooLarge: more bytes, pages or objects than the limits, packed or unpacked.
        InvalidInput: text that is empty, or has HTML, odd links or invisible characters.
    """
    made, num_pages = _pdf(data, limits, name) if ext == "pdf" else (_markdown(data, limits, name), None)
    return CleanDocument(made, _CONTENT_TYPES[ext], ext, num_pages, hashlib.sha256(made).hexdigest())


def _refuse(name: str, why: str, kind: type[OnbrandError] = UnsupportedMedia) -> NoReturn:
    raise kind(f"{name} is refused: {why}", param="file")


# PDF (ISO 32000-2)


def _pdf(data: bytes, limits: Limits, name: str) -> tuple[bytes, int]:
    if len(data) > limits.document_bytes:
        _refuse(name, f"it has {len(data)} bytes; the limit is {limits.document_bytes}", TooLarge)
    _must_be_framed(data, name)
    try:
        with pikepdf.open(io.BytesIO(data), attempt_recovery=False, suppress_warnings=True) as pdf:
            num_pages = _must_be_pages_only(pdf, limits, name)
            made = _written(pdf)
            if any(_MENDED not in str(warning) for warning in pdf.get_warnings()):
                _refuse(name, "it is damaged; save it anew as PDF")
            return made, num_pages
    except pikepdf.PasswordError:
        _refuse(name, "it is encrypted; save it without a password")
    except (pikepdf.PdfError, pikepdf.PikepdfError, ValueError, TypeError, KeyError, RuntimeError, RecursionError):
        why = "is encrypted; save it without a password" if b"/Encrypt" in data else "is damaged; save it anew as PDF"
        _refuse(name, f"it {why}")


def _must_be_framed(data: bytes, name: str) -> None:
    """Refuse bytes before the PDF's header or after its end, and files that are also of another type."""
    if not data.startswith((b"%PDF-1.", b"%PDF-2.")):
        _refuse(name, "it is not a PDF")
    if not data.rstrip(b"\r\n\t \0").endswith(b"%%EOF"):
        _refuse(name, "it is cut short, or something follows its end; save it anew as PDF")
    must_be_one_thing(data, "PDF", name, "file")


def _must_be_pages_only(pdf: pikepdf.Pdf, limits: Limits, name: str) -> int:
    """Refuse encryption, active content and numbers beyond the limits; returns the number of pages."""
    if pdf.is_encrypted:
        _refuse(name, "it is encrypted; save it without a password")
    if int(pdf.trailer.get("/Size", 0)) > _OBJECTS_MAX:
        _refuse(name, f"it has more than {_OBJECTS_MAX} objects", TooLarge)
    num_pages = len(pdf.pages)
    if not 1 <= num_pages <= limits.document_pages:
        _refuse(name, f"it has {num_pages} pages; 1 to {limits.document_pages} are accepted", TooLarge)
    left = _STREAMS_BYTES_MAX
    for thing in pdf.objects:
        _must_do_nothing(thing, name)
        if isinstance(thing, pikepdf.Stream):
            left -= _must_be_plain_stream(thing, left, name)
    return num_pages


def _must_do_nothing(thing: Any, name: str) -> None:
    """Refuse scripts, files, programs and films, found by the names in dictionaries in qpdf's normal spelling."""
    what = thing.stream_dict if isinstance(thing, pikepdf.Stream) else thing
    if not isinstance(what, pikepdf.Dictionary | pikepdf.Array):
        return
    names = set(_NAME.findall(_STRING.sub(b" ", what.unparse(resolved=True))))
    for found in names & _FORBIDDEN.keys():
        _refuse(name, f"it holds {_FORBIDDEN[found]}")
    if not names.isdisjoint(_LOOKED_INTO):
        for each in _dictionaries(what):
            _must_lead_nowhere_else(each, name)


def _dictionaries(thing: Any) -> Iterator[Any]:
    """The dictionary and all nested ones. References are not followed: `pdf.objects` lists their targets."""
    waiting = [thing]
    while waiting:
        each = waiting.pop()
        if isinstance(each, pikepdf.Dictionary):
            yield each
            waiting += [value for _, value in each.items() if not _is_reference(value)]
        elif isinstance(each, pikepdf.Array):
            waiting += [value for value in each if not _is_reference(value)]


def _is_reference(value: Any) -> bool:
    return bool(getattr(value, "is_indirect", False))


def _must_lead_nowhere_else(each: Any, name: str) -> None:
    """Refuse links other than to pages and the web, and actions on opening; remove metadata about authors and tools."""
    for uri in (each.get("/URI"), each.get("/Base")):
        is_odd = isinstance(uri, pikepdf.Name | pikepdf.Stream)  # some viewers take a name for an address
        is_text = isinstance(uri, pikepdf.String)
        if is_odd or (is_text and not is_plain_address(address_in_pdf(bytes(uri)))):
            _refuse(name, "it holds a link that is neither https, http nor mailto")
    opening = each.get("/OpenAction")
    if isinstance(opening, pikepdf.Dictionary) and (opening.get("/S") != pikepdf.Name.GoTo or "/Next" in opening):
        _refuse(name, "it holds actions that start by themselves")
    if "/Metadata" in each:
        del each["/Metadata"]


def _must_be_plain_stream(stream: Any, left: int, name: str) -> int:
    """Refuse streams with odd filters or beyond the limits; returns the bytes that count as unpacked."""
    facts = stream.stream_dict
    if "/F" in facts or "/FFilter" in facts:
        _refuse(name, "it holds other files")
    filters = [str(each) for each in _listed(facts.get("/Filter"))]
    if len(filters) > _FILTERS_MAX or not _FILTERS.issuperset(filters):
        _refuse(name, "a part of it is packed in a way that is not accepted")
    if len([each for each in filters if each not in _AS_TEXT]) > 1:
        _refuse(name, "a part of it is packed more than once")
    if facts.get("/Subtype") == pikepdf.Name.Image:
        _must_be_small_image(facts, name)
    num_bytes = _unpacked_bytes(stream, filters, min(left, _STREAM_BYTES_MAX))
    if num_bytes > _STREAM_BYTES_MAX:
        _refuse(name, f"a part of it unpacks to more than {_STREAM_BYTES_MAX} bytes", TooLarge)
    if num_bytes > left:
        _refuse(name, f"it unpacks to more than {_STREAMS_BYTES_MAX} bytes", TooLarge)
    return num_bytes


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, pikepdf.Array) else [value]


def _must_be_small_image(facts: Any, name: str) -> None:
    width, height = int(facts.get("/Width", 0)), int(facts.get("/Height", 0))
    if width < 1 or height < 1 or width * height > _IMAGE_PIXELS_MAX:
        _refuse(name, f"a picture in it has no size, or more than {_IMAGE_PIXELS_MAX} pixels", TooLarge)


def _unpacked_bytes(stream: Any, filters: list[str], most: int) -> int:
    """Bytes after unpacking; inflating stops beyond `most`. Image formats are not decoded and count as 0."""
    if filters == ["/FlateDecode"]:
        return _inflated_bytes(bytes(stream.read_raw_bytes()), most)
    if any(each in ("/FlateDecode", "/LZWDecode", "/RunLengthDecode") for each in filters):
        return len(stream.read_bytes(pikepdf.StreamDecodeLevel.specialized))
    return 0


def _inflated_bytes(packed: bytes, most: int) -> int:
    inflater, count = zlib.decompressobj(), 0
    while packed and count <= most and not inflater.eof:
        try:
            count += len(inflater.decompress(packed, _INFLATED))
        except zlib.error:
            return count
        packed = inflater.unconsumed_tail
    return count


def _written(pdf: pikepdf.Pdf) -> bytes:
    """Write the PDF anew from reachable objects, without earlier versions, author metadata and loose objects."""
    if "/Info" in pdf.trailer:
        del pdf.trailer["/Info"]
    out = io.BytesIO()
    pdf.save(
        out,
        object_stream_mode=pikepdf.ObjectStreamMode.generate,
        stream_decode_level=pikepdf.StreamDecodeLevel.none,
        fix_metadata_version=False,
        preserve_pdfa=False,
        deterministic_id=True,
    )
    return out.getvalue()


# Markdown (CommonMark 0.31)


def _markdown(data: bytes, limits: Limits, name: str) -> bytes:
    if len(data) > limits.markdown_bytes:
        _refuse(name, f"it has {len(data)} bytes; the limit for Markdown is {limits.markdown_bytes}", TooLarge)
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        _refuse(name, "it is not text in UTF-8")
    if not text.strip():
        _refuse(name, "it is empty", InvalidInput)
    _must_be_visible(text, name)
    _must_be_text_only(text, name)
    return text.encode()


def _must_be_visible(text: str, name: str) -> None:
    for number, line in enumerate(text.split("\n"), start=1):
        if hidden_in(line, lines=True) or _UNSEEN.search(_FLAGS.sub("", line)):
            _refuse(name, f"line {number} holds characters that cannot be seen", InvalidInput)


def _must_be_text_only(text: str, name: str) -> None:
    """Refuse HTML outside code, deep nesting, and links other than to the web."""
    reader = MarkdownIt("commonmark", {"html": True, "maxNesting": _NESTING_MAX})
    reader.validateLink = lambda url: True  # type: ignore[method-assign]
    about: dict[str, Any] = {}
    tokens = reader.parse(text, about)
    for block in tokens:
        where = f"line {block.map[0] + 1}" if block.map else "it"
        if block.level >= _NESTING_MAX - 2:
            _refuse(name, f"{where} is nested too deep", InvalidInput)
        for token in [block, *(block.children or [])]:
            _must_be_harmless(token, where, name)
    for found in about.get("references", {}).values():
        _must_lead_to_the_web(str(found.get("href", "")), "it", name)


def _must_be_harmless(token: Token, where: str, name: str) -> None:
    is_markup = token.type in ("html_block", "html_inline")
    if is_markup or (token.type == "text" and _MARKUP.search(token.content)):
        _refuse(name, f"{where} holds HTML; write it as `code` or leave it out", InvalidInput)
    for attribute in ("href", "src"):
        _must_lead_to_the_web(str(token.attrs.get(attribute, "")), where, name)
    for inner in token.children or []:
        _must_be_harmless(inner, where, name)


def _must_lead_to_the_web(address: str, where: str, name: str) -> None:
    if not is_plain_address(address):
        _refuse(name, f"{where} holds a link that is neither https, http nor mailto", InvalidInput)
