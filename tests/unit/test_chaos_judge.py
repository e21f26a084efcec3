"""The judge of the chaos run accepts correct results and reports wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.acceptance.chaos import Model, Validator, Verdict
from tools.harness.colour_adapters import SIDE, Colour, Paint
from tools.harness.load_client import Drawn
from tools.harness.receipts import receipt_of

RED, BLUE = (230, 26, 26), (26, 77, 230)
PAINT = Paint(RED, 4, b"the weights")
MODEL = Model("acme", "sd15-lora-v1", PAINT)
WISHES = {"num_images": 2, "seed": 11, "num_inference_steps": 2, "guidance_scale": 1.5, "prompt": "a logo"}


class Plain(Drawn):
    """A picture of one colour, with no file behind it."""

    @property
    def pixels_HWC(self) -> np.ndarray:
        return np.full((SIDE, SIDE, 3), np.frombuffer(self.data, dtype=np.uint8), dtype=int)


def picture(colour: Colour = RED, brand: str = "acme", sha256: str = PAINT.sha256) -> Plain:
    receipt = receipt_of(brand, [(sha256, 1.0)])
    return Plain({"brand_id": brand, "seed": 11, "receipt": receipt}, bytes(colour))


def rows(*numbers: tuple[int, int]) -> dict[str, Any]:
    return {"id": "g", "images": [{"index": index, "seed": seed} for index, seed in numbers]}


def told(*ends: str, pictures: tuple[int, ...] = (0, 1)) -> list[tuple[str, dict[str, Any]]]:
    drawn = [("image", {"index": index}) for index in pictures]
    return [("status", {"status": "running"}), *drawn, *[("status", {"status": end}) for end in ends]]


TOLD_TWICE = told("completed", pictures=(0, 0, 1))


def draw_twice(judge: Validator, *colours: Colour) -> None:
    for colour in colours:
        judge.must_be_painted(picture(colour), [MODEL], WISHES)


Look = Callable[[Validator], None]
RIGHT: dict[str, Look] = {
    "its own colour": lambda judge: judge.must_be_painted(picture(), [MODEL], WISHES),
    "all its pictures": lambda judge: judge.must_be_whole(rows((1, 12), (0, 11)), WISHES),
    "the mean of two colours": lambda judge: judge.must_have_colour(
        picture((128, 52, 128)).pixels_HWC, [RED, BLUE], "g"
    ),
    "one end": lambda judge: judge.must_have_been_told_once(told("completed"), "completed", 2, "g"),
    "no such model": lambda judge: judge.must_be_missing(None, "v1"),
}
WRONG: dict[str, Look] = {
    "another's colour": lambda judge: judge.must_be_painted(picture(BLUE), [MODEL], WISHES),
    "another brand's picture": lambda judge: judge.must_be_painted(picture(brand="rival"), [MODEL], WISHES),
    "another's weights": lambda judge: judge.must_be_painted(picture(sha256="0" * 64), [MODEL], WISHES),
    "another picture for the same seed": lambda judge: draw_twice(judge, RED, (227, 26, 26)),
    "one colour of two": lambda judge: judge.must_have_colour(picture(RED).pixels_HWC, [RED, BLUE], "g"),
    "another end than its row's": lambda judge: judge.must_have_been_told_once(told("failed"), "completed", 2, "g"),
    "a picture too few": lambda judge: judge.must_be_whole(rows((0, 11)), WISHES),
    "a picture twice": lambda judge: judge.must_be_whole(rows((0, 11), (0, 11)), WISHES),
    "another seed": lambda judge: judge.must_be_whole(rows((0, 11), (1, 13)), WISHES),
    "two ends": lambda judge: judge.must_have_been_told_once(told("completed", "failed"), "completed", 2, "g"),
    "a picture told twice": lambda judge: judge.must_have_been_told_once(TOLD_TWICE, "completed", 2, "g"),
    "a deleted model drawn": lambda judge: judge.must_be_missing({"status": "completed"}, "v1"),
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT)
def test_what_is_right_passes(what: str) -> None:
    verdict = Verdict(1)
    RIGHT[what](Validator(verdict))
    assert verdict.wrong == []


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_noticed(what: str) -> None:
    verdict = Verdict(1, answered=1)
    WRONG[what](Validator(verdict))
    assert len(verdict.wrong) == 1
    assert not verdict.is_good
