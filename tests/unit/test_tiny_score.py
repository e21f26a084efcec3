"""The judge of the tiny models is right about true and wrong drawings; and the measure of fit."""

import random

import pytest
import torch
from PIL import Image

from onbrand.families.tiny.draw import Scene, draw_scene, held_out
from onbrand.families.tiny.fit import fit, similarity
from tools.tiny_bases.score import judge, prompts


def drawn(asked: list) -> list[Image.Image]:
    rng = random.Random(0)
    return [draw_scene(Scene("photo", *triple), rng) for _, triple in asked]


def test_true_drawings_are_judged_right():
    asked = prompts(100, 1, held=False) + prompts(50, 1, held=True)
    verdict = judge(drawn(asked), [triple for _, triple in asked])
    assert verdict["all3"] == 1.0
    assert verdict["iou"] > 0.85


@pytest.mark.parametrize(
    ("part", "drawn_instead"),
    [
        ("colour", ("green", "star", "white")),
        ("shape", ("red", "heart", "white")),
        ("ground", ("red", "star", "pink")),
    ],
)
def test_each_mistake_is_seen(part: str, drawn_instead: tuple[str, str, str]):
    picture = draw_scene(Scene("photo", *drawn_instead), random.Random(0))
    verdict = judge([picture], [("red", "star", "white")])
    assert verdict.pop("iou") > 0.8
    assert {name for name, share in verdict.items() if share == 0} == {part, "all3"}


def test_a_blank_picture_has_no_shape():
    verdict = judge([Image.new("RGB", (64, 64), "white")], [("red", "star", "white")])
    assert (verdict["shape"], verdict["colour"], verdict["ground"], verdict["iou"]) == (0, 0, 1, 0)


def test_a_speck_beside_the_shape_does_not_confuse_the_judge():
    picture = draw_scene(Scene("photo", "red", "circle", "white"), random.Random(0))
    picture.paste((20, 20, 20), (5, 5, 9, 9))
    assert judge([picture], [("red", "circle", "white")])["all3"] == 1


def test_held_out_prompts_ask_only_for_held_out_combinations():
    assert all(held_out(*triple) for _, triple in prompts(60, 2, held=True))
    assert not any(held_out(*triple) for _, triple in prompts(200, 2, held=False))


def test_fit_of_the_references_themselves_is_perfect():
    references = torch.randn(5, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert fit(references[:3] * 2.5, references) == pytest.approx(0, abs=1e-5)


def test_similarity_is_to_the_nearest_reference():
    references = torch.eye(3).view(3, 1, 1, 3)
    generated = torch.tensor([[1.0, 0, 0], [0, -1.0, 0]]).view(2, 1, 1, 3)
    assert similarity(generated, references) == pytest.approx(0.5)
