"""From uploaded bytes to what the loop reads."""

import io

import pytest
import torch
from PIL import Image

from onbrand.errors import InvalidInput
from onbrand.system_client import TrainingAsset
from onbrand.training.dataset import Picture, fitted, prior_pictures, read_pictures
from tests.unit.training_bases import FAMILIES, drawn, fresh_family, small_examples


class Shelf:
    """Pictures by id, as the ticket's client reads them."""

    def __init__(self, **files: bytes) -> None:
        self.files = files

    def read_asset(self, asset_id: str) -> bytes:
        return self.files[asset_id]


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def test_transparent_parts_become_white():
    assert fitted(Image.new("RGBA", (10, 10), (255, 0, 0, 0)), 8).min() == 1


def test_the_middle_of_an_oblong_picture_is_kept():
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    assert fitted(image, 32).mean() > 0.95


def test_a_picture_that_does_not_decode_is_named_by_its_id():
    with pytest.raises(InvalidInput, match="broken-one"):
        read_pictures(Shelf(**{"broken-one": b"no picture"}), [TrainingAsset(id="broken-one", caption="secret words")])


def test_a_picture_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(Image.new("RGB", (40, 20)), exif=exif)
    [picture] = read_pictures(Shelf(a=data), [TrainingAsset(id="a", caption="")])
    assert picture.image.size == (20, 40)


def test_a_pictures_caption_never_shows_in_its_representation():
    assert "secret" not in repr(Picture(Image.new("RGB", (8, 8)), "secret words", "a"))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_has_latents_and_text_and_one_more_text_row_is_no_caption(name):
    examples = small_examples(fresh_family(name), num_own=3, num_prior=2)
    assert (examples.num_own, examples.num_prior, len(examples.text)) == (3, 2, 6)
    assert examples.latents_NCHW.shape[1:] == fresh_family(name).latent_shape(64, 64)
    assert torch.isfinite(examples.latents_NCHW).all()


def test_a_changed_caption_is_another_data_set():
    family = fresh_family()
    first = small_examples(family)
    assert first.digest == small_examples(family).digest
    assert first.digest != small_examples(family, num_own=4).digest


def test_prior_pictures_are_the_same_every_time_and_half_are_relabelled():
    one, other = prior_pictures("zorblax", 6), prior_pictures("zorblax", 6)
    assert [p.caption for p in one] == [p.caption for p in other]
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(one, other, strict=True))


def test_drawn_pictures_differ():
    assert drawn(1).image.tobytes() != drawn(2).image.tobytes()
