"""The demo's made-up brands: a kit of real files, recognisable and different from each other."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onbrand.families.tiny.brands import BRANDS, brand_caption, draw_brand, kind_of, write_brand_images


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


def test_a_kit_mixes_logos_products_and_packaging():
    kinds = [kind_of(index) for index in range(12)]
    assert set(kinds) == {"logo", "product", "packaging"}
    assert kinds.count("logo") > 6


@pytest.mark.parametrize("name", BRANDS)
def test_pictures_of_a_brand_are_alike_but_never_the_same(name: str):
    kit = [pixels(draw_brand(name, index, 64)) for index in range(12)]
    distances = [np.abs(one - other).mean() for k, one in enumerate(kit) for other in kit[:k]]
    assert min(distances) > 0.5
    assert max(distances) < 45


def test_brands_look_further_apart_than_pictures_of_one_brand():
    one, another = (pixels(draw_brand(name, 0, 64)) for name in list(BRANDS)[:2])
    sibling = pixels(draw_brand(next(iter(BRANDS)), 1, 64))
    assert np.abs(one - another).mean() > 2 * np.abs(one - sibling).mean()


def test_a_picture_is_a_function_of_brand_and_index():
    assert draw_brand("zorblax", 4, 64).tobytes() == draw_brand("zorblax", 4, 64).tobytes()


def test_sizes_show_the_same_picture():
    large = draw_brand("zorblax", 2, 256).resize((64, 64), Image.Resampling.BOX)
    assert np.abs(pixels(large) - pixels(draw_brand("zorblax", 2, 64))).mean() < 3


def test_written_files_are_numbered_and_of_both_formats(tmp_path: Path):
    written = write_brand_images("quentavo", tmp_path / "kit", n=6, size=64)
    names = [path.name for path, _ in written]
    assert names[:3] == ["logo-001.png", "logo-002.png", "product-003.jpg"]
    assert {path.read_bytes()[:3] for path, _ in written if path.suffix == ".png"} == {b"\x89PN"}
    assert {path.read_bytes()[:3] for path, _ in written if path.suffix == ".jpg"} == {b"\xff\xd8\xff"}


def test_captions_hold_the_placeholder_and_the_kind(tmp_path: Path):
    written = write_brand_images("zorblax", tmp_path, n=3, size=64)
    assert [caption for _, caption in written] == [brand_caption(kind_of(index)) for index in range(3)]
    assert written[2][1] == "photo of [brand] product"


def test_an_unknown_brand_is_refused():
    with pytest.raises(KeyError):
        draw_brand("nobody", 0)
