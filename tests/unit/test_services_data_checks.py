"""The data checks report every kind of finding with its file, reason and remedy, and accept good data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from PIL import Image, ImageFilter

from onbrand.errors import DataRefused
from onbrand.families.spec import SPECS, with_family_defaults
from onbrand.families.tiny.brands import draw_brand
from onbrand.services.data_checks import (
    DataSample,
    DataTarget,
    Finding,
    examine,
    holds_word,
    must_be_fit,
    target_of,
)
from tests.unit.test_sandbox_image_features import features_of, scene

AIM = DataTarget(resolution=128, trigger_word="zilgo", smallest_side=64)


def seen(number: int, image: Image.Image | None = None, caption: str = "photo of [brand] logo") -> DataSample:
    """A picture as the data checks get it."""
    features = asdict(features_of(image or scene(number)))
    return DataSample(f"asset-{number}", f"logo-{number:03d}.png", caption, features, name=f"IMG_{number}.png")


def healthy(count: int = 10) -> list[DataSample]:
    return [seen(number) for number in range(100, 100 + count)]


def found(*pictures: DataSample, target: DataTarget = AIM) -> list[Finding]:
    """The findings for these pictures together with enough good ones."""
    return examine([*pictures, *healthy()], target)


def only(*pictures: DataSample, target: DataTarget = AIM) -> Finding:
    [finding] = found(*pictures, target=target)
    return finding


def test_healthy_pictures_have_no_finding() -> None:
    assert found() == []


def test_every_finding_names_its_file_and_says_what_to_do() -> None:
    finding = only(seen(1, scene(1, (120, 100))))
    assert (finding.asset_id, finding.file, finding.name) == ("asset-1", "logo-001.png", "IMG_1.png")
    assert finding.message.startswith("logo-001.png is 120 x 100 pixels")
    assert "128" in finding.remedy


@pytest.mark.parametrize(
    ("side", "said"), [(63, ("error", "too_small")), (64, ("warning", "small")), (127, ("warning", "small"))]
)
def test_the_smallest_side_is_compared_with_the_resolution(side: int, said: tuple[str, str]) -> None:
    finding = only(seen(1, scene(1, (200, side))))
    assert (finding.level, finding.code) == said


def test_a_picture_of_the_resolution_is_large_enough() -> None:
    assert found(seen(1, scene(1, (300, 128)))) == []


def test_the_same_pixels_twice_are_an_error_and_name_the_first() -> None:
    finding = only(seen(1), seen(2, scene(1)))
    assert (finding.level, finding.code, finding.file) == ("error", "duplicate", "logo-002.png")
    assert "logo-001.png" in finding.message


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((200, 156), Image.Resampling.LANCZOS),
        lambda image: image.crop((2, 2, 254, 198)),
        lambda image: image.point(lambda value: min(255, int(value * 1.02))),
    ],
    ids=["scaled", "cropped", "brighter"],
)
def test_nearly_the_same_picture_is_a_warning(change: Any) -> None:
    finding = only(seen(1), seen(2, change(scene(1))))
    assert (finding.level, finding.code, finding.file) == ("warning", "near_duplicate", "logo-002.png")


def test_two_plain_pictures_of_different_colours_are_no_twins() -> None:
    codes = [
        each.code
        for each in found(seen(1, Image.new("RGB", (200, 200), "red")), seen(2, Image.new("RGB", (200, 200), "blue")))
    ]
    assert codes == ["empty", "empty"]


@pytest.mark.parametrize("draw", [scene, lambda seed: draw_brand("zorblax", seed, 256)], ids=["boxes", "a brand"])
def test_blur_is_a_warning_that_names_the_detail_that_is_left(draw: Any) -> None:
    sharp = draw(1)
    assert found(seen(1, sharp)) == []
    finding = only(seen(1, sharp.filter(ImageFilter.GaussianBlur(6))))
    assert (finding.level, finding.code) == ("warning", "blurred")
    assert "32 pixels" in finding.message or "64 pixels" in finding.message


def test_blur_that_training_does_not_see_is_no_finding() -> None:
    soft = scene(1, (512, 512)).filter(ImageFilter.GaussianBlur(1.5))
    assert [
        each.code for each in found(seen(1, soft), target=DataTarget(512, "zilgo", 128)) if each.file == "logo-001.png"
    ] == ["blurred"]
    assert found(seen(1, soft)) == []


def test_low_contrast_alone_is_not_blur() -> None:
    assert found(seen(1, scene(1).point(lambda value: 110 + value // 8))) == []


def test_transparency_is_told_and_nothing_to_see_is_an_error() -> None:
    half, nothing = scene(1).convert("RGBA"), scene(2).convert("RGBA")
    half.paste((0, 0, 0, 0), (0, 0, 128, 200))
    nothing.putalpha(0)
    finding = only(seen(1, half))
    assert (finding.level, finding.code) == ("warning", "transparent")
    assert "50 %" in finding.message
    finding = only(seen(2, nothing))
    assert (finding.level, finding.code) == ("error", "invisible")


@pytest.mark.parametrize(
    ("caption", "code"),
    [
        ("a logo on a wall", "no_trigger"),
        ("zilgos on a wall", "no_trigger"),
        ("prezilgo", "no_trigger"),
        (" ", "no_caption"),
    ],
)
def test_a_caption_must_hold_the_trigger_word(caption: str, code: str) -> None:
    finding = only(seen(1, caption=caption))
    assert (finding.level, finding.code) == ("error", code)
    assert caption.strip() == "" or caption not in finding.message


@pytest.mark.parametrize("caption", ["[brand]", "a Zilgo, on a wall", "photo of zilgo's bag", "(zilgo)"])
def test_a_caption_that_says_the_word_in_some_way_is_fine(caption: str) -> None:
    assert found(seen(1, caption=caption)) == []


def test_a_trigger_of_two_words_is_found_as_a_whole() -> None:
    assert holds_word("a Blue Zilgo bag", "blue zilgo")
    assert not holds_word("a zilgo that is blue", "blue zilgo")


def test_few_different_pictures_are_a_warning_and_twins_count_once() -> None:
    codes = [finding.code for finding in examine(healthy(9), AIM)]
    assert codes == ["few_images"]
    finding = examine([*healthy(9), seen(2, scene(108))], AIM)[-1]
    assert finding.message.startswith("there are 9 different pictures")


def test_a_picture_without_measurements_is_an_error() -> None:
    finding = only(DataSample("asset-1", "logo-001.png", "[brand]", {}))
    assert (finding.level, finding.code) == ("error", "unreadable")
    assert "upload it again" in finding.remedy


def test_errors_come_first_and_stop_a_job_warnings_do_not() -> None:
    small, wordless = seen(1, scene(1, (200, 100))), seen(2, caption="a wall")
    findings = found(small, wordless)
    assert [finding.level for finding in findings] == ["error", "warning"]
    must_be_fit(findings[1:])
    with pytest.raises(DataRefused, match=r"logo-002\.png has a caption without .*: write '\[brand\]'") as refused:
        must_be_fit(findings)
    assert refused.value.fields["findings"][0]["code"] == "no_trigger"


def test_a_refusal_of_many_stays_readable() -> None:
    findings = found(*(seen(number, caption="a wall") for number in range(8)))
    with pytest.raises(DataRefused, match="and 5 more"):
        must_be_fit(findings)


def test_the_aim_is_the_wish_over_the_bases_advice() -> None:
    advice = with_family_defaults("sd15", {"training": {"resolution": 256}})
    options = {"resolution": 64, "trigger_word": "zilgo"}
    assert target_of(SPECS["sd15"], options, advice, "acme") == DataTarget(64, "zilgo", 64)
    assert target_of(SPECS["sd15"], {}, advice, "acme") == DataTarget(256, "acme", 64)
    assert target_of(SPECS["sdxl"], {}, with_family_defaults("sdxl", {}), "acme") == DataTarget(1024, "acme", 256)
