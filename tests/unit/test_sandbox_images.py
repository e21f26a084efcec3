"""Uploaded pictures: which are refused, and what is kept of accepted ones."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from onbrand.config import Limits
from onbrand.errors import InvalidInput, TooLarge, UnsupportedMedia
from onbrand.sandbox.checker import Checker
from onbrand.sandbox.images import clean_image, inspect_image

LIMITS = Limits()
CANARY = b"canary-7f3a"


def picture(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(7).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    (image or picture()).save(out, format=kind, **options)
    return out.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, data: bytes = b"", more: bytes = b"") -> bytes:
    """A PNG whose header declares a size, independent of `data`."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + png_chunk(b"IDAT", zlib.compress(data)) + png_chunk(b"IEND", b"")


def webp_of(width: int, height: int) -> bytes:
    """A WEBP whose canvas declares a size."""
    canvas = b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", len(canvas)) + canvas
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize(
    ("kind", "content_type", "ext"),
    [("PNG", "image/png", "png"), ("JPEG", "image/jpeg", "jpg"), ("WEBP", "image/webp", "webp")],
)
def test_an_accepted_picture_keeps_its_format_and_size(kind: str, content_type: str, ext: str) -> None:
    data = encoded(kind)
    facts = inspect_image(data, LIMITS)
    clean = clean_image(data, LIMITS)
    assert (facts.format, facts.content_type, facts.width, facts.height) == (kind, content_type, 64, 48)
    assert (clean.content_type, clean.ext, clean.width, clean.height) == (content_type, ext, 64, 48)
    assert clean.sha256 == hashlib.sha256(clean.bytes).hexdigest()
    assert Image.open(io.BytesIO(clean.bytes)).format == kind


def test_a_png_keeps_every_pixel() -> None:
    clean = clean_image(encoded("PNG"), LIMITS)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(clean.bytes))), np.asarray(picture()))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("options", [{}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}], ids=["plain", "extended"])
def test_a_lossless_webp_keeps_every_pixel(mode: str, options: dict[str, object]) -> None:
    """Also colours of pixels that cannot be seen, and in the extended form of the file."""
    image = picture(mode=mode)
    clean = clean_image(encoded("WEBP", image, lossless=True, exact=True, **options), LIMITS)
    assert clean.content_type == "image/webp"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(clean.bytes))), np.asarray(image))


@pytest.mark.slow
def test_a_picture_that_cannot_be_encoded_for_want_of_memory_is_not_called_damaged() -> None:
    """In children: from some memory on it decodes, and from some more on it is made anew."""
    noise = np.random.default_rng(3).integers(0, 4, (1000, 1200, 4), dtype=np.uint8)
    data = encoded("WEBP", Image.fromarray(noise), lossless=True, exact=True, quality=0, method=0)
    said = []
    for megabytes in range(60, 90, 4):
        try:
            Checker(Limits(check_bytes=megabytes * 10**6)).image(data, "a.webp")
        except (UnsupportedMedia, TooLarge) as problem:
            said.append((type(problem), problem.message))
    assert (
        TooLarge,
        "a.webp needs more memory than a file may take to be made anew; save it smaller, or as PNG",
    ) in said


def test_a_lossy_webp_stays_lossy_with_its_alpha() -> None:
    data = encoded("WEBP", picture(mode="RGBA"), lossless=False, quality=80)
    clean = clean_image(data, LIMITS)
    assert b"VP8L" not in clean.bytes
    alphas = [np.asarray(Image.open(io.BytesIO(each)))[..., 3] for each in (data, clean.bytes)]
    assert np.array_equal(*alphas)


def test_the_same_picture_gives_the_same_bytes() -> None:
    assert clean_image(encoded("JPEG"), LIMITS) == clean_image(encoded("JPEG"), LIMITS)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb_or_rgba(mode: str) -> None:
    image = (
        Image.fromarray(np.full((48, 64), 40_000, np.uint16)) if mode == "I;16" else picture(mode="RGB").convert(mode)
    )
    clean = Image.open(io.BytesIO(clean_image(encoded("PNG", image), LIMITS).bytes))
    assert clean.mode == ("RGBA" if mode in ("LA", "RGBA") else "RGB")


def test_sixteen_bits_become_eight_without_clipping() -> None:
    image = Image.fromarray(np.full((48, 64), 40_000, np.uint16))
    clean = Image.open(io.BytesIO(clean_image(encoded("PNG", image), LIMITS).bytes))
    assert clean.getpixel((0, 0)) == (156, 156, 156)  # 40,000 of 65,535 are 155.6 of 255


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    clean = clean_image(encoded("JPEG", picture(mode="CMYK")), LIMITS)
    assert Image.open(io.BytesIO(clean.bytes)).mode == "RGB"


def test_a_transparent_palette_keeps_its_transparency() -> None:
    data = encoded("PNG", picture(mode="P"), transparency=0)
    assert Image.open(io.BytesIO(clean_image(data, LIMITS).bytes)).mode == "RGBA"


def test_exif_turns_the_picture_and_is_gone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = CANARY.decode()
    clean = clean_image(encoded("JPEG", exif=exif), LIMITS)
    assert (clean.width, clean.height) == (48, 64)
    assert not Image.open(io.BytesIO(clean.bytes)).getexif()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_nothing_but_pixels_is_left(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = CANARY.decode()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options: dict[str, object] = {"exif": exif, "icc_profile": profile + CANARY}
    if kind == "PNG":
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Comment", CANARY.decode())
        options["pnginfo"] = notes
    elif kind == "JPEG":
        options["comment"] = CANARY
    else:
        options["xmp"] = CANARY
    data = encoded(kind, **options)
    assert CANARY in data or CANARY in zlib_texts(data)
    assert CANARY not in clean_image(data, LIMITS).bytes


def zlib_texts(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return repr(image.info).encode()


def test_what_follows_the_pixels_is_gone() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        clean = clean_image(encoded(kind) + b"a film of the same moment " + CANARY, LIMITS)
        assert CANARY not in clean.bytes


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_is_an_archive_too_is_refused(kind: str) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as inside:
        inside.writestr("payload.html", f"<script>{CANARY.decode()}</script>")
    with pytest.raises(UnsupportedMedia, match="a zip archive in one"):
        clean_image(encoded(kind) + archive.getvalue(), LIMITS)


def test_four_bytes_that_look_like_an_archive_are_none() -> None:
    data = encoded("PNG") + b"PK\x05\x06" + bytes(range(200, 230))
    assert clean_image(data, LIMITS).width == 64


def test_colours_of_a_profile_become_srgb() -> None:
    """Through a profile that swaps nothing, colours stay; the profile itself goes."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clean = Image.open(io.BytesIO(clean_image(encoded("PNG", icc_profile=profile), LIMITS).bytes))
    assert "icc_profile" not in clean.info
    difference = np.asarray(clean).astype(int) - np.asarray(picture()).astype(int)
    assert np.abs(difference).max() <= 1


def gif() -> bytes:
    return encoded("GIF", picture(mode="P"))


def animated(kind: str) -> bytes:
    return encoded(kind, save_all=True, append_images=[picture(mode="L").convert("RGB")], duration=100)


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"\x89PNG\r\n\x1a\n",
        lambda: b"just text",
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
        lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>',
        lambda: b"%PDF-1.7\n",
        gif,
        lambda: encoded("TIFF"),
        lambda: encoded("BMP"),
        lambda: encoded("ICO", picture(64, 64)),
        lambda: encoded("PDF"),
        lambda: gif() + encoded("PNG"),
        lambda: animated("PNG"),
        lambda: animated("WEBP"),
        lambda: encoded("PNG")[:200],
        lambda: encoded("JPEG")[:-200],
        lambda: encoded("WEBP")[:-200],
        lambda: png_of(64, 48, b"too few bytes"),
        lambda: png_of(0, 0),
        lambda: encoded("JPEG")[:-2] + b"\xff\xda\x00\x02" * 200 + b"\xff\xd9",
        lambda: b"RIFF\x10\0\0\0WEBPVP8X" + b"\0" * 4,
    ],
)
def test_what_is_no_whole_still_picture_is_unsupported(make: Callable[[], bytes]) -> None:
    with pytest.raises(UnsupportedMedia, match=r"logo\.png"):
        clean_image(make(), LIMITS, "logo.png")


@pytest.mark.parametrize(
    "data",
    [
        png_of(6400, 6300),
        png_of(10_000, 10_000),
        png_of(50_000, 50_000),
        png_of(2**31 - 1, 2**31 - 1),
        png_of(5000, 5001),
    ],
    ids=len,
)
def test_too_many_pixels_are_refused_before_they_are_decoded(data: bytes) -> None:
    with pytest.raises(TooLarge, match="25000000"):
        inspect_image(data, LIMITS)


@pytest.mark.parametrize("side", [(4097, 3076), (16_000, 16_000), (2**24, 2**24)])
def test_a_webp_has_fewer_pixels_since_its_decoder_keeps_more_of_them(side: tuple[int, int]) -> None:
    with pytest.raises(TooLarge, match="12600000"):
        inspect_image(webp_of(*side), LIMITS)


def test_the_end_of_decoding_is_told_with_the_number_of_pixels() -> None:
    told: list[int] = []
    clean_image(encoded("PNG"), LIMITS, "a.png", told.append)
    assert told == [64 * 48]


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize("place", ["before", "behind"])
def test_what_looks_like_a_scan_and_is_none_does_not_count(place: str) -> None:
    """A phone's film behind the picture, its notes and profiles before it."""
    data, scans = encoded("JPEG"), b"\xff\xda" * 300
    odd = data + b"\0\0\0\x18ftypisom" + scans if place == "behind" else data[:2] + segment(0xE5, scans) + data[2:]
    assert clean_image(odd, LIMITS).sha256 == clean_image(data, LIMITS).sha256


def test_scans_behind_filling_and_restarts_count() -> None:
    scan = segment(0xDA, b"\1\1\0\0\x3f\0") + b"\xff\0\xff\xd0\xff\xff"
    with pytest.raises(UnsupportedMedia, match="more than 128 scans"):
        inspect_image(encoded("JPEG")[:-2] + scan * 128 + b"\xff\xd9", LIMITS)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("kind", ["PNG", "PNG at its end", "JPEG", "WEBP"])
def test_xmp_does_not_turn_a_picture(kind: str) -> None:
    text = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    data = {
        "PNG": lambda: encoded("PNG")[:33] + text + encoded("PNG")[33:],
        "PNG at its end": lambda: encoded("PNG")[:-12] + text + encoded("PNG")[-12:],
        "JPEG": lambda: b"\xff\xd8" + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP) + encoded("JPEG")[2:],
        "WEBP": lambda: encoded("WEBP", xmp=XMP),
    }[kind]()
    clean = clean_image(data, LIMITS)
    assert (clean.width, clean.height) == (64, 48)


def test_a_real_bomb_is_refused() -> None:
    bomb = png_of(20_000, 20_000, bytes(20_000 * 3 + 1) * 2_000)
    assert len(bomb) < 200_000
    with pytest.raises(TooLarge):
        clean_image(bomb, LIMITS)


@pytest.mark.slow
def test_a_bomb_in_a_comment_is_refused() -> None:
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(300 * 2**20)))
    with pytest.raises(UnsupportedMedia):
        clean_image(png_of(64, 48, bytes((64 * 3 + 1) * 48), more=text), LIMITS)


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(TooLarge, match="the limit is 100"):
        inspect_image(encoded("PNG"), Limits(upload_bytes=100))


def test_a_picture_that_is_too_small_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"31 x 64.*32 pixels"):
        inspect_image(encoded("PNG", picture(31, 64)), LIMITS)


def test_every_cut_of_a_picture_is_a_clear_error_or_a_picture() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        data = encoded(kind, picture(40, 40))
        for length in range(0, len(data), 97):
            with suppress(UnsupportedMedia):
                clean_image(data[:length], LIMITS)


def test_every_flipped_byte_is_a_clear_error_or_a_picture() -> None:
    random = np.random.default_rng(11)
    for kind in ("PNG", "JPEG", "WEBP"):
        data = bytearray(encoded(kind, picture(40, 40)))
        for place in random.integers(0, min(len(data), 600), 120):
            changed = bytes(data[:place]) + bytes([data[place] ^ 0xFF]) + bytes(data[place + 1 :])
            with suppress(UnsupportedMedia, TooLarge, InvalidInput):
                clean_image(changed, LIMITS)


def test_a_hostile_file_name_is_shown_harmlessly() -> None:
    with pytest.raises(UnsupportedMedia) as told:
        clean_image(b"", LIMITS, "a\u202e\n\x1b[31m" + "x" * 500)
    assert told.value.message.isprintable()
    assert len(told.value.message) < 200
