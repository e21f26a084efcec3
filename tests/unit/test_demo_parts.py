"""The demo's parts that need no platform: sample brands, the contact sheet, the verdict."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from PIL import Image

from onbrand.client import Asset, Onbrand
from onbrand.demo import run_demo, shortcomings, steps
from onbrand.demo.contact_sheet import Row, Section, draw_contact_sheet
from onbrand.demo.isolation_attempts import Try, _files
from onbrand.demo.sample_brands import SampleBrand, Upload, choose_samples, own_kit
from onbrand.errors import ConfigurationError, InvalidInput


def pictures(folder: Path, num: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(num)]
    for path in paths:
        Image.new("RGB", (40, 30), "red").save(path)
    return paths


def test_no_picture_is_both_trained_on_and_measured_by(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 9)
    for kit in choose_samples([("Own Brand", tmp_path / "own")], tmp_path / "drawn"):
        assert kit.held_out
        assert not {upload.path for upload in kit.uploads} & set(kit.held_out)


def test_made_up_brands_fill_up_to_two(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 4)
    assert len(choose_samples([], tmp_path / "drawn")) == 2
    assert next(kit.brand_id for kit in choose_samples([("My Own", tmp_path / "own")], tmp_path / "d2")) == "my-own"
    two = [("one", tmp_path / "own"), ("two", tmp_path / "own")]
    assert [kit.brand_id for kit in choose_samples(two, tmp_path / "d3")] == ["one", "two"]


def test_a_folder_with_too_few_pictures_is_refused_with_its_name(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 3)
    with pytest.raises(InvalidInput, match="own holds 3 pictures"):
        own_kit("own", tmp_path / "own")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="gone"):
        own_kit("own", tmp_path / "gone")


@pytest.mark.parametrize("broken", [1, 3], ids=["uploaded", "held out"])
def test_a_picture_that_is_cut_short_is_refused_with_its_name(tmp_path: Path, broken: int) -> None:
    path = pictures(tmp_path / "own", 4)[broken]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InvalidInput, match=f"{path.name} cannot be read") as refused:
        own_kit("own", tmp_path / "own")
    assert refused.value.param == "images"


def test_a_picture_of_another_format_is_refused_whatever_its_name_ends_in(tmp_path: Path) -> None:
    path = pictures(tmp_path / "own", 4)[3]
    Image.new("RGB", (40, 30), "red").save(path, "GIF")
    with pytest.raises(InvalidInput, match=f"{path.name} cannot be read"):
        own_kit("own", tmp_path / "own")


def test_no_request_uploads_more_pictures_than_the_platform_takes() -> None:
    requests: list[tuple[str, list[Path]]] = []

    def take(brand: str, files: list[Path], captions: list[str], *, object: str) -> list[Path]:
        assert captions == [f"of {file}" for file in files]
        requests.append((object, files))
        return files

    uploads = [
        Upload(Path(f"{shown}-{n}"), f"of {shown}-{n}", shown) for n in range(5) for shown in ("product", "logo")
    ]
    member = cast(Onbrand, SimpleNamespace(upload_training_images=take))
    player = steps.DemoBrand(SampleBrand("own", "Own", "own", tuple(uploads), (), ()), member, member)
    steps.upload(player, 2)
    assert [(shown, len(files)) for shown, files in requests] == [
        (shown, n) for shown in ("logo", "product") for n in (2, 2, 1)
    ]
    assert sorted(map(str, player.assets)) == sorted(str(upload.path) for upload in uploads)


def test_a_demo_that_is_refused_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="gone"):
        run_demo("sd15", [("own", tmp_path / "gone")], tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_an_earlier_report_does_not_survive_a_run_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ConfigurationError("there is no port")

    monkeypatch.setattr("onbrand.demo.run._on_a_platform", fail)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ConfigurationError):
        run_demo("sd15", [], tmp_path, quiet=True)
    assert not (tmp_path / "report.json").exists()


def test_two_brands_of_one_name_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "own", 4)
    with pytest.raises(InvalidInput, match="same name"):
        choose_samples([("own", tmp_path / "own"), ("Own", tmp_path / "own")], tmp_path / "drawn")


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
        ({"denied": {"tried": 7, "refused": 7}}, "7 of 7"),
        ({"denied": {"tried": 8, "refused": 8}}, None),
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


def player(brand_id: str) -> steps.DemoBrand:
    """A member with one picture, behind a link of a store that the test stands in for."""
    link = SimpleNamespace(url=f"http://store/{brand_id}/logo.png?signature={brand_id}")
    member = cast(Onbrand, SimpleNamespace(assets=SimpleNamespace(link=lambda brand, asset: link)))
    asset = cast(Asset, SimpleNamespace(id="logo"))
    return steps.DemoBrand(SampleBrand(brand_id, "", "", (), (), ()), member, member, [asset])


@pytest.mark.parametrize(
    ("served", "refused"),
    [
        ({"theirs"}, [True, True]),
        ({"theirs", ""}, [True, False]),
        ({"theirs", "mine"}, [False, True]),
        (set(), [False, False]),
    ],
    ids=["a wall", "no signature needed", "any signature will do", "broken for the owner"],
)
def test_a_file_is_refused_only_where_its_owner_gets_it(
    monkeypatch: pytest.MonkeyPatch, served: set[str], refused: list[bool]
) -> None:
    def get(client: httpx.Client, url: str) -> httpx.Response:
        asked = httpx.URL(url)
        is_served = asked.path == "/theirs/logo.png" and asked.params.get("signature", "") in served
        return httpx.Response(200 if is_served else 403)

    monkeypatch.setattr(httpx.Client, "get", get)
    assert [attempt.is_refused() for attempt in _files(player("mine"), player("theirs"))] == refused
