"""From uploaded bytes to the examples that the trainer reads."""

import hashlib
import io

import pytest
import torch
from PIL import Image

from onbrand.errors import DataRefused, NotFound
from onbrand.internal.training import TrainingAsset
from onbrand.training.data.cache import DiskCache
from onbrand.training.data.dataset import CaptionVariants, JobPictures, Picture, fitted, held_out, prior_pictures
from onbrand.training.data.encoding import encode
from tests.unit.training_bases import FAMILIES, SIDE, drawn, fresh_family, small_examples


class Shelf:
    """Pictures by id, read as the ticket's client does."""

    def __init__(self, **files: bytes) -> None:
        self.files = files

    def read_asset(self, asset_id: str) -> bytes:
        if asset_id not in self.files:
            raise NotFound("there is no such asset")
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
    with pytest.raises(DataRefused, match="broken-one"):
        list(JobPictures(Shelf(**{"broken-one": b"no picture"}), [TrainingAsset(id="broken-one", caption="secret")]))


def test_stored_bytes_that_changed_or_are_gone_are_named_by_their_id():
    data = png(Image.new("RGB", (8, 8)))
    own = TrainingAsset(id="a", caption="", sha256=hashlib.sha256(data).hexdigest())
    [picture] = JobPictures(Shelf(a=data), [own])
    assert picture.image.size == (8, 8)
    with pytest.raises(DataRefused, match="the picture a has other stored bytes than were uploaded"):
        list(JobPictures(Shelf(a=data + b"x"), [own]))
    with pytest.raises(DataRefused, match="the picture a has no stored bytes any more"):
        list(JobPictures(Shelf(), [own]))


def test_a_picture_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(Image.new("RGB", (40, 20)), exif=exif)
    [picture] = JobPictures(Shelf(a=data), [TrainingAsset(id="a", caption="")])
    assert picture.image.size == (20, 40)


def test_a_pictures_caption_never_shows_in_its_representation():
    assert "secret" not in repr(Picture(Image.new("RGB", (8, 8)), "secret words", "a"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_has_latents_and_text_and_one_more_text_row_is_no_caption(name):
    examples = small_examples(fresh_family(name), num_own=3, num_prior=2)
    assert (examples.num_own, examples.num_prior, len(examples.text)) == (3, 2, 6)
    assert {latents.shape for latents in examples.latents} == {fresh_family(name).latent_shape(64, 64)}
    assert all(torch.isfinite(latents).all() for latents in examples.latents)


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


def oblong(number: int, width: int = 160, height: int = 80) -> Picture:
    return Picture(drawn(number).image.resize((width, height)), f"photo of acme logo {number}", f"oblong-{number}")


def test_a_picture_is_trained_on_in_the_shape_it_has():
    family = fresh_family()
    examples = encode(family, [drawn(1), oblong(2), oblong(3, 80, 160)], SIDE)
    shapes = [tuple(latents.shape[1:]) for latents in examples.latents]
    assert shapes[0] == (16, 16)
    assert shapes[1] == shapes[2][::-1] != (16, 16)


def test_a_picture_at_several_resolutions_is_a_row_for_each_different_bucket():
    family = fresh_family()
    examples = encode(family, [drawn(1), oblong(2, 72, 72)], (48, 64, 128))
    assert examples.names == ("asset-1", "asset-1", "asset-1", "oblong-2", "oblong-2", "oblong-2")
    assert len({latents.shape for latents in examples.latents[3:]}) == 3
    assert len(examples.thumbs_P3SS) == 2


def test_the_same_caption_is_encoded_once():
    family = fresh_family()
    pictures = [Picture(drawn(n).image, "photo of acme logo", f"p{n}") for n in range(4)]
    examples = encode(family, pictures, SIDE)
    assert len(examples.text) == 2
    assert examples.text_rows_NV.flatten().tolist() == [0, 0, 0, 0]


def test_what_was_encoded_before_is_not_encoded_again_and_has_the_same_bits(tmp_path):
    family = fresh_family()
    cache = DiskCache(tmp_path, "acme", family.revision, str(family.dtype))
    fresh = encode(family, [drawn(1), oblong(2)], SIDE, cache=cache)
    family.encode_images = family.encode_prompts = None  # nothing may be encoded from here
    family.encode_negatives = lambda prompts: fresh.text.rows([fresh.no_caption])
    again = encode(family, [oblong(2), drawn(1)], SIDE, cache=cache)
    assert torch.equal(again.latents[1], fresh.latents[0])
    assert torch.equal(again.latents[0], fresh.latents[1])
    assert torch.equal(again.text["text"][:2].flip(0), fresh.text["text"][:2])


def test_a_pictures_latents_do_not_depend_on_the_pictures_beside_it():
    family = fresh_family()
    alone, beside = encode(family, [drawn(1)], SIDE), encode(family, [drawn(n) for n in range(4)], SIDE)
    assert torch.equal(alone.latents[0], beside.latents[1])


def test_shuffled_captions_keep_their_first_part_and_the_trigger_word():
    wording = CaptionVariants("acme", shuffle=True)
    texts = wording.wordings("a photo, red, on a table, by Acme, sunset")
    assert len(set(texts)) > 2
    assert all(text.startswith("a photo, by Acme, ") for text in texts[1:])
    assert all(sorted(text.split(", ")) == sorted(texts[0].split(", ")) for text in texts)
    assert texts == wording.wordings("a photo, red, on a table, by Acme, sunset")


def test_a_class_caption_is_the_caption_without_the_trigger_word_and_nothing_else():
    assert CaptionVariants("acme").class_of("photo of ACME logo, acmeology") == "photo of logo, acmeology"


CAPTIONS = ["logo"] * 6 + ["bag"] * 3 + ["box"]


def test_a_sixth_of_the_pictures_judges_and_never_the_only_one_of_a_caption():
    names = [f"id-{n}" for n in range(10)]
    for seed in range(20):
        assert [CAPTIONS[place] for place in held_out(CAPTIONS, names, 6, seed)].count("box") == 0
    assert len(held_out(CAPTIONS, names, None, 0)) == 1
    assert held_out(CAPTIONS[:7], names[:7], None, 0) == []


def test_which_pictures_judge_is_a_function_of_the_seed_and_leaves_one_to_train_on():
    names = [f"id-{n}" for n in range(10)]
    assert held_out(CAPTIONS, names, 2, 1) == held_out(CAPTIONS, names, 2, 1)
    assert len({tuple(held_out(CAPTIONS, names, 2, seed)) for seed in range(10)}) > 1
    assert len(held_out(CAPTIONS, names, 64, 0)) == 9
