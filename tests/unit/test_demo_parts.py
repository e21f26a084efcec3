"""The demo's parts that need no platform: kits, the contact sheet, the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onbrand.demo import shortcomings
from onbrand.demo.contact_sheet import Row, Section, draw_contact_sheet
from onbrand.demo.intruder import Try
from onbrand.demo.kits import choose_kits, own_kit
from onbrand.errors import InvalidInput


def pictures(folder: Path, num: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(num)]
    for path in paths:
        Image.new("RGB", (40, 30), "red").save(path)
    return paths


def test_no_picture_is_both_trained_on_and_measured_by(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 9)
    for kit in choose_kits([("Own Brand", tmp_path / "own")], tmp_path / "drawn"):
        assert kit.held_out
        assert not {upload.path for upload in kit.uploads} & set(kit.held_out)


def test_made_up_brands_fill_up_to_two(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 4)
    assert len(choose_kits([], tmp_path / "drawn")) == 2
    assert next(kit.brand_id for kit in choose_kits([("My Own", tmp_path / "own")], tmp_path / "d2")) == "my-own"
    two = [("one", tmp_path / "own"), ("two", tmp_path / "own")]
    assert [kit.brand_id for kit in choose_kits(two, tmp_path / "d3")] == ["one", "two"]


def test_a_folder_with_too_few_pictures_is_refused_with_its_name(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 3)
    with pytest.raises(InvalidInput, match="own holds 3 pictures"):
        own_kit("own", tmp_path / "own")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="gone"):
        own_kit("own", tmp_path / "gone")


def test_two_brands_of_one_name_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 4)
    with pytest.raises(InvalidInput, match="same name"):
        choose_kits([("own", tmp_path / "own"), ("Own", tmp_path / "own")], tmp_path / "drawn")


def test_the_contact_sheet_shows_each_brands_pictures_in_rows(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "own", 6)
    section = Section("Own", "sd15", [Row("its own pictures", "6 uploaded", paths), Row("the base alone", "", paths)])
    sheet = Image.open(draw_contact_sheet([section, section], tmp_path / "sheet.png"))
    colours = np.asarray(sheet.convert("RGB"))
    red = int((colours == (255, 0, 0)).all(axis=2).sum())
    assert red > 4 * 6 * 130 * 130


GOOD: dict[str, Any] = {
    "brands": [{"brand_id": "a", "job": {"status": "completed"}, "fit": {"base": 0.8, "adapter": 0.1}}],
    "denied": {"tried": 9, "refused": 9},
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"denied": {"tried": 9, "refused": 8}}, "8 of 9"),
        ({"denied": {"tried": 0, "refused": 0}}, "0 of 0"),
        ({"brands": [GOOD["brands"][0] | {"fit": {"base": 0.8, "adapter": 0.3}}]}, "adapter fits 0.3"),
        ({"brands": [GOOD["brands"][0] | {"job": {"status": "failed"}}]}, "failed"),
    ],
)
def test_a_demo_that_does_not_show_what_it_must_says_so(change: dict[str, Any], says: str | None) -> None:
    found = shortcomings(GOOD | change)
    assert (found == []) if says is None else (len(found) == 1 and says in found[0])


def test_what_is_broken_for_the_owner_too_does_not_count_as_refused() -> None:
    assert Try("a wall", lambda: 404, frozenset({404}), lambda: 200).is_refused()
    assert not Try("a missing route", lambda: 404, frozenset({404}), lambda: 404).is_refused()
    assert not Try("a hole", lambda: 200, frozenset({404}), lambda: 200).is_refused()
    assert not Try("a crash", lambda: 500, frozenset({404}), lambda: 200).is_refused()
