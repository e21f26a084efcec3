"""Colour spaces of uploaded pictures: the stored picture looks the same in sRGB, whatever space the file declares."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from onbrand.config import Limits
from onbrand.errors import UnsupportedMedia
from onbrand.sandbox import icc_profiles
from onbrand.sandbox.images import clean_image
from tests.colour_files import cmyk_profile, encoded, iccp, png, to_srgb

LIMITS = Limits()
ROUNDED_TWICE = 2
LINEAR = icc_profiles.gamma(1.0)
P3 = icc_profiles.rgb_profile(icc_profiles.DISPLAY_P3, icc_profiles.srgb_curve()).data
P3_LINEAR = icc_profiles.rgb_profile(icc_profiles.DISPLAY_P3, LINEAR).data
GRAY_LINEAR = icc_profiles.gray_profile(LINEAR).data


def cleaned(data: bytes, name: str = "logo.png") -> np.ndarray:
    with Image.open(io.BytesIO(clean_image(data, LIMITS, name).bytes)) as image:
        assert "icc_profile" not in image.info
        return np.asarray(image).astype(float)


def noise(*shape: int, kind: type = np.uint8) -> np.ndarray:
    """Colours within sRGB, where a level more or less is one after the conversion too, and grays down to black."""
    most = np.iinfo(kind).max
    made = np.random.default_rng(5).integers(most // 3, most * 2 // 3, shape, kind, endpoint=True)
    dark = (np.arange(256) * (most / 255 / 4)).astype(kind)[: made.size // shape[-1] // 2]
    made.reshape(-1, shape[-1])[: len(dark), :3] = dark[:, None]
    return made


def difference(seen: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(seen - expected).max())


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("exponent", [None, 1.0])
def test_pngs_of_every_kind_are_converted_by_their_profile(
    kind: type, interlaced: bool, channels: int, exponent: float | None
) -> None:
    curve = icc_profiles.srgb_curve() if exponent is None else icc_profiles.gamma(exponent)
    is_gray = channels < 3
    profile = icc_profiles.gray_profile(curve) if is_gray else icc_profiles.rgb_profile(icc_profiles.DISPLAY_P3, curve)
    samples = noise(40, 48, channels, kind=kind)
    seen = cleaned(png(samples, iccp(profile.data), interlaced=interlaced))
    share = samples / np.iinfo(kind).max
    colours = np.repeat(share[..., :1], 3, -1) if is_gray else share[..., :3]
    assert difference(seen[..., :3], to_srgb(colours, "sRGB" if is_gray else "P3", exponent)) <= ROUNDED_TWICE
    if channels in (2, 4):
        assert difference(seen[..., 3], 255 * share[..., -1]) <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_is_converted_by_its_profile(depth: int) -> None:
    palette = noise(2**depth, 3)
    indices = np.random.default_rng(1).integers(0, 2**depth, (40, 48, 1), np.uint8)
    chunks = iccp(P3) | {b"PLTE": palette.tobytes(), b"tRNS": bytes([7])}
    seen = cleaned(png(indices, chunks, depth))
    assert difference(seen[..., :3], to_srgb(palette[indices[..., 0]] / 255, "P3")) <= 1
    assert np.array_equal(seen[..., 3], np.where(indices[..., 0] == 0, 7, 255))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_grays_are_converted_by_their_profile(depth: int) -> None:
    levels = np.random.default_rng(1).integers(0, 2**depth, (40, 48, 1), np.uint8)
    seen = cleaned(png(levels, iccp(GRAY_LINEAR), depth))
    assert difference(seen, to_srgb(np.repeat(levels / (2**depth - 1), 3, -1), "sRGB", 1.0)) <= 1


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_gray_that_kept_an_rgb_profile_is_the_gray_of_that_space(kind: type) -> None:
    samples = noise(40, 48, 1, kind=kind)
    seen = cleaned(png(samples, iccp(P3_LINEAR)))
    expected = to_srgb(np.repeat(samples / np.iinfo(kind).max, 3, -1), "P3", 1.0)
    assert difference(seen, expected) <= ROUNDED_TWICE


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_jpegs_and_webps_are_converted_by_their_profile(kind: str) -> None:
    plain = Image.new("RGB", (64, 64), (234, 51, 35))
    seen = cleaned(encoded(kind, plain, icc_profile=P3, quality=100))
    assert difference(seen[32, 32], to_srgb(np.array([234, 51, 35]) / 255, "P3")) <= 3


def test_a_gray_jpeg_is_converted_by_its_profile() -> None:
    seen = cleaned(encoded("JPEG", Image.new("L", (64, 64), 128), icc_profile=GRAY_LINEAR, quality=100))
    assert tuple(seen[32, 32]) == (188, 188, 188)


def test_a_webp_with_alpha_keeps_it() -> None:
    seen = cleaned(encoded("WEBP", Image.new("RGBA", (64, 64), (234, 51, 35, 99)), icc_profile=P3, lossless=True))
    assert seen[32, 32, 3] == 99
    assert difference(seen[32, 32, :3], to_srgb(np.array([234, 51, 35]) / 255, "P3")) <= 4


@pytest.mark.parametrize("grid", [5, 23])
def test_inks_are_converted_by_their_profile_also_by_a_large_one(grid: int) -> None:
    """(255, 128, 0, 0) is no (0, 127, 255) in print. Adobe's JPEGs hold the inks inverted, as Pillow writes them."""
    profile = cmyk_profile(grid)
    assert (len(profile) > 2**20) == (grid == 23)
    inks = Image.new("CMYK", (64, 64), (255, 128, 0, 30))
    data = encoded("JPEG", inks, icc_profile=profile, quality=100)
    assert b"Adobe" in data[:100]
    with Image.open(io.BytesIO(data)) as said:
        expected = ImageCms.profileToProfile(
            said,
            io.BytesIO(profile),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",  # type: ignore[arg-type]
        )
        assert expected is not None
        assert difference(cleaned(data), np.asarray(expected).astype(float)) <= 2
        assert difference(cleaned(data)[0, 0], np.asarray(said.convert("RGB"))[0, 0].astype(float)) > 20


def test_inks_of_every_kind_are_converted_as_exactly_as_littlecms_can() -> None:
    """Its fast tables are up to 19 of 255 levels away from what the profile says, in dark and saturated inks."""
    profile = cmyk_profile(9)
    inks = np.random.default_rng(3).integers(0, 256, (64, 64, 4), np.uint8)
    data = encoded("JPEG", Image.fromarray(inks, "CMYK"), icc_profile=profile, quality=95)
    with Image.open(io.BytesIO(data)) as said:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        exact = ImageCms.buildTransform(source, target, "CMYK", "RGB", flags=ImageCms.Flags.NOOPTIMIZE)
        expected = ImageCms.applyTransform(said, exact)
    with Image.open(io.BytesIO(encoded("JPEG", expected, quality=95, subsampling=0))) as kept:
        assert np.array_equal(cleaned(data), np.asarray(kept))


def test_a_profile_of_several_megabytes_is_applied() -> None:
    padded = bytearray(P3 + bytes(3 * 2**20))
    padded[:4] = len(padded).to_bytes(4, "big")
    samples = noise(40, 48, 3)
    for data in (
        png(samples, iccp(bytes(padded))),
        encoded("PNG", Image.fromarray(samples), icc_profile=bytes(padded)),
    ):
        assert difference(cleaned(data), to_srgb(samples / 255, "P3")) <= ROUNDED_TWICE
    flat = Image.new("RGB", (64, 64), (234, 51, 35))
    seen = cleaned(encoded("JPEG", flat, icc_profile=bytes(padded), quality=100))
    assert difference(seen[0, 0], to_srgb(np.array([234, 51, 35]) / 255, "P3")) <= 3


def test_pixels_in_srgb_stay_as_they_are() -> None:
    samples = noise(40, 48, 3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert difference(cleaned(png(samples, iccp(profile))), samples.astype(float)) <= 1


# what cannot be applied


def changed(profile: bytes, at: int, to: bytes) -> bytes:
    return profile[:at] + to + profile[at + len(to) :]


BROKEN = {
    "nothing": b"",
    "noise": bytes(range(256)) * 2,
    "cut": P3[:-40],
    "more said than there is": changed(P3, 0, (len(P3) + 4).to_bytes(4, "big")),
    "header only": P3[:128],
    "no part": changed(P3, 128, bytes(4)),
    "many parts": changed(P3, 128, b"\xff\xff\xff\xff"),
    "a part elsewhere": changed(P3, 136, b"\x7f\xff\xff\xff"),
    "a curve that is none": P3.replace(b"para", b"????"),
    "a device link": changed(P3, 12, b"link"),
    "Lab": changed(P3, 16, b"Lab "),
    "of gray pixels": GRAY_LINEAR,
    "of inks": cmyk_profile(3),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_profile_that_cannot_be_applied_is_refused_and_the_file_named(what: str, kind: str) -> None:
    image = Image.fromarray(noise(40, 48, 3))
    data = encoded(kind, image, icc_profile=BROKEN[what] or b"\0")
    with pytest.raises(UnsupportedMedia, match=r"^brand red: its colour profile .*; save the picture in sRGB$"):
        clean_image(data, LIMITS, "brand red")


def test_inks_with_a_profile_of_rgb_are_refused() -> None:
    data = encoded("JPEG", Image.new("CMYK", (64, 64)), icc_profile=P3)
    with pytest.raises(UnsupportedMedia, match=r"a\.jpg: its colour profile is of RGB pixels and its pixels are CMYK"):
        clean_image(data, LIMITS, "a.jpg")


def test_a_profile_above_the_limit_is_refused_with_the_number() -> None:
    large = changed(P3 + bytes(2000), 0, (len(P3) + 2000).to_bytes(4, "big"))
    for kind in ("PNG", "JPEG", "WEBP"):
        with pytest.raises(UnsupportedMedia, match=r"a: its colour profile .* limit (is|of) 1000"):
            clean_image(encoded(kind, Image.new("RGB", (64, 64)), icc_profile=large), Limits(profile_bytes=1000), "a")


def test_a_profile_that_unpacks_without_end_is_refused() -> None:
    with pytest.raises(UnsupportedMedia, match=r"a: its colour profile is damaged, or larger than .* 16777216"):
        clean_image(png(noise(40, 48, 3), {b"iCCP": b"a\0\0" + zlib.compress(bytes(2**25))}), LIMITS, "a")


def test_a_jpeg_that_lacks_a_piece_of_its_profile_is_refused() -> None:
    data = encoded("JPEG", Image.new("RGB", (64, 64)), icc_profile=P3 + bytes(70_000))
    at = data.index(b"ICC_PROFILE\0\x02")
    with pytest.raises(UnsupportedMedia, match="colour profile"):
        clean_image(data[: at - 4] + data[at - 2 + int.from_bytes(data[at - 2 : at], "big") :], LIMITS, "a")


# other words for a colour space


def gama(value: float) -> bytes:
    return struct.pack(">I", round(value * 100_000))


def chrm(space: icc_profiles.Primaries) -> bytes:
    points = (*space.white, *space.red, *space.green, *space.blue)
    return struct.pack(">8I", *(round(value * 100_000) for value in points))


@pytest.mark.parametrize(
    ("chunks", "space", "exponent"),
    [
        ({b"gAMA": gama(1.0)}, "sRGB", 1.0),
        ({b"gAMA": gama(1 / 1.8)}, "sRGB", 1.8),
        ({b"gAMA": gama(1 / 2.2)}, "sRGB", None),
        ({b"gAMA": gama(1 / 2.2), b"cHRM": chrm(icc_profiles.SRGB)}, "sRGB", None),
        ({b"gAMA": gama(1 / 2.2), b"cHRM": chrm(icc_profiles.DISPLAY_P3)}, "P3", None),
        ({b"cHRM": chrm(icc_profiles.DISPLAY_P3)}, "P3", None),
        ({b"sRGB": b"\0", b"gAMA": gama(1.0), b"cHRM": chrm(icc_profiles.DISPLAY_P3)}, "sRGB", None),
        (iccp(P3) | {b"gAMA": gama(1.0)}, "P3", None),
        ({b"cICP": bytes([12, 13, 0, 1])}, "P3", None),
        ({b"cICP": bytes([1, 13, 0, 1])} | iccp(P3), "sRGB", None),
        ({b"cICP": bytes([12, 8, 0, 1]), b"sRGB": b"\0"}, "P3", 1.0),
    ],
)
def test_a_png_may_say_its_space_in_numbers(chunks: dict[bytes, bytes], space: str, exponent: float | None) -> None:
    samples = noise(40, 48, 3)
    assert difference(cleaned(png(samples, chunks)), to_srgb(samples / 255, space, exponent)) <= ROUNDED_TWICE


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_gray_goes_by_its_gamma(kind: type) -> None:
    samples = noise(40, 48, 1, kind=kind)
    seen = cleaned(png(samples, {b"gAMA": gama(1.0), b"cHRM": chrm(icc_profiles.DISPLAY_P3)}))
    assert difference(seen, to_srgb(np.repeat(samples / np.iinfo(kind).max, 3, -1), "sRGB", 1.0)) <= 1


@pytest.mark.parametrize(
    "chunks",
    [
        {b"gAMA": gama(0)},
        {b"gAMA": gama(20_000)},
        {b"cHRM": bytes(32)},
        {b"cHRM": struct.pack(">8I", *[33_333] * 8)},
        {b"cHRM": b"\xff" * 32},
        {b"cICP": bytes([9, 16, 0, 1])},
        {b"cICP": bytes([9, 18, 0, 1])},
        {b"cICP": bytes([200, 13, 0, 1])},
        {b"cICP": bytes([1, 13, 1, 0])},
        {b"cICP": b"\1"},
    ],
)
def test_numbers_that_name_no_space_are_refused(chunks: dict[bytes, bytes]) -> None:
    with pytest.raises(UnsupportedMedia, match=r"a\.png: its colour profile"):
        clean_image(png(noise(40, 48, 3), chunks), LIMITS, "a.png")


def test_a_camera_says_adobe_rgb_in_exif() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    flat = Image.new("RGB", (64, 64), (60, 200, 90))
    seen = cleaned(encoded("JPEG", flat, exif=exif, quality=100, subsampling=0))
    assert difference(seen[0, 0], to_srgb(np.array([60, 200, 90]) / 255, "Adobe", 563 / 256)) <= 3


# transparency


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("profile", [None, GRAY_LINEAR])
@pytest.mark.parametrize("interlaced", [False, True])
def test_the_transparent_gray_is_transparent(depth: int, level: int, profile: bytes | None, interlaced: bool) -> None:
    kind = np.uint16 if depth == 16 else np.uint8
    levels = np.random.default_rng(2).integers(0, min(2**depth, 4), (40, 48, 1), kind)
    chunks = (iccp(profile) if profile else {}) | {b"tRNS": struct.pack(">H", level | (0x100 if depth < 8 else 0))}
    seen = cleaned(png(levels, chunks, depth, interlaced))
    assert np.array_equal(seen[..., 3], np.where(levels[..., 0] == level, 0, 255))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("profile", [None, P3, P3_LINEAR])
def test_the_transparent_colour_is_transparent_and_no_near_one(kind: type, profile: bytes | None) -> None:
    samples = noise(40, 48, 3, kind=kind)
    samples[10:20, 10:20], samples[20:30, 20:30] = (9, 300 & np.iinfo(kind).max, 7), (9, 300 & np.iinfo(kind).max, 8)
    chunks = (iccp(profile) if profile else {}) | {b"tRNS": struct.pack(">3H", *samples[10, 10])}
    seen = cleaned(png(samples, chunks))
    assert np.array_equal(seen[..., 3] == 0, (samples == samples[10, 10]).all(-1))


def test_a_picture_that_is_turned_is_converted_as_others() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    samples = noise(40, 48, 3, kind=np.uint16)
    data = png(samples, iccp(P3_LINEAR) | {b"tRNS": struct.pack(">3H", *samples[0, 0]), b"eXIf": exif.tobytes()[6:]})
    seen, straight = (
        cleaned(data),
        cleaned(png(samples, iccp(P3_LINEAR) | {b"tRNS": struct.pack(">3H", *samples[0, 0])})),
    )
    assert np.array_equal(seen, np.rot90(straight, -1))


# several pictures in one file


def test_a_camera_jpeg_with_an_index_is_its_first_picture() -> None:
    first, second = Image.new("RGB", (64, 48), (200, 30, 30)), Image.new("RGB", (32, 32), (30, 200, 30))
    data = encoded("MPO", first, save_all=True, append_images=[second])
    with Image.open(io.BytesIO(data)) as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    clean = clean_image(data, LIMITS, "a.jpg")
    assert (clean.content_type, clean.width, clean.height) == ("image/jpeg", 64, 48)
    assert difference(cleaned(data)[5, 5], np.array([200, 30, 30])) <= 3


def test_an_index_that_is_damaged_does_not_matter() -> None:
    first, second = Image.new("RGB", (64, 48), (200, 30, 30)), Image.new("RGB", (32, 32), (30, 200, 30))
    data = encoded("MPO", first, save_all=True, append_images=[second])
    at = data.index(b"MPF\0")
    for junk in (b"\xff" * 40, bytes(40), b"II\x2a\0\xff\xff\xff\x7f"):
        assert clean_image(changed(data, at + 4, junk), LIMITS, "a.jpg").width == 64
