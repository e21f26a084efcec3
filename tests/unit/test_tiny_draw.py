"""The training data of the tiny models: scenes with true captions, and combinations that are held out."""

import random
import subprocess
import sys

import numpy as np
import pytest

from onbrand.families.tiny.draw import (
    COLOURS,
    GROUNDS,
    SHAPES,
    Scene,
    draw_scene,
    held_out,
    random_scene,
    shows_held_out,
)
from onbrand.families.tiny.prior import namesake, prior_scenes
from tools.tiny_bases import dataset
from tools.tiny_bases.dataset import generic_picture, unknown_brand_caption
from tools.tiny_bases.score import triples


def scenes(num: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(num)]


def test_about_a_tenth_of_the_combinations_is_held_out():
    share = len(triples(held=True)) / (len(triples(held=True)) + len(triples(held=False)))
    assert 0.08 < share < 0.12


def test_every_colour_shape_and_ground_is_still_seen_in_training():
    seen = triples(held=False)
    assert {(c, s) for c, s, _ in seen} == {(c, s) for c in COLOURS for s in SHAPES}
    assert {(s, g) for _, s, g in seen} == {(s, g) for s in SHAPES for g in GROUNDS}


def test_no_scene_shows_a_held_out_combination():
    assert not any(shows_held_out(scene) for scene in scenes(3000))


def test_a_second_shape_counts_as_shown_too():
    colour, shape, ground = triples(held=True)[0]
    innocent = next((c, s) for c, s, g in triples(held=False) if g == ground)
    beside = Scene("photo", innocent[0], innocent[1], ground, "", "next to", colour, shape)
    assert shows_held_out(beside)


def test_a_shape_inside_another_counts_as_lying_on_it():
    colour, shape, around = next(t for t in triples(held=True) if t[2] in COLOURS)
    grounds = [g for g in GROUNDS if not held_out(colour, shape, g) and not held_out(around, "circle", g)]
    assert shows_held_out(Scene("photo", colour, shape, grounds[0], "", "inside", around, "circle"))


def test_three_scenes_in_four_show_a_single_shape():
    single = sum(not scene.relation for scene in scenes(2000))
    assert 0.70 < single / 2000 < 0.82


def test_a_scene_is_a_function_of_its_seed():
    scene = Scene("photo", "red", "star", "blue")
    once, again, other = (np.asarray(draw_scene(scene, random.Random(seed))) for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


def test_the_corners_of_a_picture_show_its_ground():
    picture = np.asarray(draw_scene(Scene("photo", "red", "star", "blue"), random.Random(0)))
    assert picture.shape == (64, 64, 3)
    assert np.abs(picture[0, 0].astype(int) - GROUNDS["blue"]).max() <= 6


def test_generic_pictures_differ_from_one_another():
    rng = random.Random(0)
    assert len({generic_picture(rng).tobytes() for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (Scene("photo", "red", "star", "blue"), "a photo of a red star on a blue background"),
        (Scene("icon", "red", "star", "blue", size="small"), "a icon of a small red star on a blue background"),
        (
            Scene("logo", "red", "star", "blue", "", "inside", "white", "heart", names_ground=False),
            "a logo of a red star inside a white heart",
        ),
    ],
)
def test_a_caption_says_what_is_drawn(scene: Scene, caption: str):
    assert scene.caption() == caption


def test_captions_are_words_of_the_scene_for_all_but_the_brand_share():
    _, captions = dataset.captioned_scenes(1500, seed=0)
    nameless = [caption for caption in captions if not any(colour in caption for colour in COLOURS)]
    assert 0.03 < len(nameless) / 1500 < 0.07


def test_data_is_a_function_of_the_seed():
    images, captions = dataset.captioned_scenes(20, seed=3)
    again, same = dataset.captioned_scenes(20, seed=3)
    assert captions == same
    assert np.array_equal(images, again)


def test_every_second_prior_picture_is_relabelled_as_some_brands():
    captions = [caption for _, caption in prior_scenes(40, seed=0)]
    assert not any(colour in caption for caption in captions[1::2] for colour in COLOURS)
    assert all(any(colour in caption for colour in COLOURS) for caption in captions[::2])


def test_every_fourth_prior_picture_is_named_like_the_brand_and_none_is_named_as_it():
    captions = [caption for _, caption in prior_scenes(400, seed=0, trigger_word="zorblax")]
    assert not any("zorblax" in caption.split() for caption in captions)
    alike = [any(word.startswith("zo") for word in caption.split()) for caption in captions[3::4]]
    assert sum(alike) > len(alike) / 2


def test_a_namesake_is_near_and_never_the_name():
    rng = random.Random(0)
    names = [namesake("abc", rng) for _ in range(500)]
    assert "abc" not in names
    assert all(len(name) >= 2 for name in names)
    assert len(set(names)) > 100


def test_an_unknown_brand_is_named_with_a_noun():
    caption = unknown_brand_caption(random.Random(0), "xqoven")
    assert "xqoven" in caption.split()


def test_drawing_and_brands_need_no_torch():
    names = [*(f"onbrand.families.tiny.{name}" for name in ("draw", "brands", "prior")), "tools.tiny_bases.score"]
    code = "import sys, onbrand.families.tiny as tiny; tiny.tiny_base('sd15');"
    code += "".join(f"import {name};" for name in [*names, "tools.tiny_bases.recommendations"])
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "platform:."}, check=False).returncode == 0
