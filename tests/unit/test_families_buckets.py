"""The training size of a picture: no enlargement, little cropping."""

import math

import pytest

from onbrand.errors import InvalidInput
from onbrand.families.aspect_buckets import bucket_step, buckets, crop_of, smallest_side
from onbrand.families.spec import SPECS

SIZES = [(h, w) for h in (128, 200, 333, 512, 700, 1500) for w in (128, 190, 450, 640, 1024, 3000)]


@pytest.mark.parametrize("resolution", [512, 768, 1024])
def test_buckets_are_multiples_of_64_with_about_the_same_area(resolution):
    sizes = buckets(resolution, 64)
    assert (resolution, resolution) in sizes
    assert all(h % 64 == w % 64 == 0 for h, w in sizes)
    assert all(0.8 * resolution**2 < h * w <= resolution**2 for h, w in sizes)
    assert {(w, h) for h, w in sizes} == set(sizes)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_no_picture_is_enlarged_and_the_crop_lies_within_it(height, width):
    crop = crop_of(height, width, 512, 64)
    scale = max(crop.size[0] / height, crop.size[1] / width)
    assert scale <= 1
    assert crop.top + crop.size[0] <= round(height * scale) + 1
    assert crop.left + crop.size[1] <= round(width * scale) + 1
    assert math.prod(crop.size) <= 512**2


def test_a_picture_keeps_its_shape():
    assert crop_of(1000, 2000, 512, 64).size == (320, 768)
    assert crop_of(2000, 1000, 512, 64).size == (768, 320)
    assert crop_of(1000, 1000, 512, 64).size == (512, 512)


def test_a_small_picture_has_a_small_bucket():
    assert crop_of(300, 450, 512, 64).size == (256, 448)


def test_the_crop_is_about_the_middle_and_told_as_sdxl_wants_it():
    crop = crop_of(1000, 1100, 512, 64)
    assert crop.sizes == (1000, 1100, 0, (round(1100 * 0.512) - 512) // 2, 512, 512)


def test_a_picture_that_is_too_small_is_refused_by_name_with_the_size_it_needs():
    least = smallest_side(1024, 64)
    crop_of(least, least, 1024, 64)
    with pytest.raises(InvalidInput, match=r"asset-7 is 900 x 255 pixels.*at least 256") as refusal:
        crop_of(least - 1, 900, 1024, 64, "asset-7")
    assert refusal.value.param == "training_asset_ids"


@pytest.mark.parametrize(
    ("family", "base", "step"), [("sd15", 512, 64), ("flux", 1024, 64), ("sd15", 64, 8), ("flux", 64, 16)]
)
def test_steps_are_smaller_for_a_smaller_base(family, base, step):
    assert bucket_step(SPECS[family], base) == step
