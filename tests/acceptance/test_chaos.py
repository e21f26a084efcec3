"""Engines are killed while brands draw, publish and delete: every answer is the right one. The long run: `chaos`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.engine import Engine
from onbrand.engine.request import Request
from onbrand.families.lora import read_adapter
from tests.acceptance.chaos import Judge, Model, Plan, Verdict, unleash
from tests.acceptance.colours import COLOURS, MOST_STEPS, SIDE, Colour, Paint, Painter, colour_of
from tests.acceptance.customers import Drawn
from tests.acceptance.running import Running
from tests.numerics.bases import family_of
from tests.numerics.drawing import pictures, run

SHORT = Plan(requests=60, kills=1, changes=4, brands=3, at_once=8, system_kills=0)
RED, BLUE = (230, 26, 26), (26, 77, 230)


def test_every_request_is_answered_once_and_every_picture_is_its_own_adapters(platform: Running) -> None:
    verdict = unleash(platform, SHORT)
    assert verdict.is_good, verdict.as_json()
    assert (verdict.answered, verdict.killed) == (SHORT.requests, SHORT.kills)
    assert min(verdict.under_way_at_kills) > 0, "nobody was drawing when the replica was killed"
    assert min(verdict.published - 2 * SHORT.brands, verdict.deleted, verdict.compared, verdict.answers["404"]) > 0


# --- what the judgement rests on --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(family_of("sd15"))


@pytest.fixture(scope="module")
def paints(painter: Painter) -> list[Paint]:
    return [painter.paint(COLOURS[37 * n % len(COLOURS)], rank, n) for n, rank in enumerate((4, 8, 20, 40))]


def painted(paints: list[Paint], **numbers: Any) -> list[Colour]:
    """The colours that one engine draws with all of them in one batch, each of another brand."""
    family = family_of("sd15")
    requests = [
        Request(
            str(number), f"brand-{number}", "photo of acme logo", 11 + number, height=SIDE, width=SIDE,
            adapters=(AdapterUse(AdapterKey(f"brand-{number}", paint.sha256), read_adapter(paint.data, family)),),
            **numbers,
        )
        for number, paint in enumerate(paints)
    ]  # fmt: skip
    drawn = pictures(run(Engine(family), requests))
    return [colour_of(drawn[request.id, 0].permute(1, 2, 0).numpy() * 255) for request in requests]


@pytest.mark.parametrize("num_steps", range(1, MOST_STEPS + 1))
@pytest.mark.parametrize(("guidance", "sampler"), [(1.0, None), (1.5, None), (1.5, "euler"), (1.0, "dpm++2m")])
def test_adapters_of_all_ranks_paint_their_colours_in_one_batch(
    paints: list[Paint], num_steps: int, guidance: float, sampler: str | None
) -> None:
    colours = painted(paints, num_inference_steps=num_steps, guidance_scale=guidance, sampler=sampler)
    assert colours == [paint.colour for paint in paints]


def test_half_of_one_adapter_and_half_of_another_paint_neithers_colour(painter: Painter) -> None:
    red, blue = painter.paint(RED, 8, 1), painter.paint(BLUE, 8, 2)
    downs, ups = safetensors.torch.load(red.data), safetensors.torch.load(blue.data)
    name = "unet.conv_out.lora_B.weight"
    mixture = Paint(RED, 8, safetensors.torch.save(downs | {name: ups[name]}, {"format": "pt"}))
    assert painted([mixture], num_inference_steps=2)[0] not in (RED, BLUE)


# --- the judge notices ------------------------------------------------------------------------------------------

PAINT = Paint(RED, 4, b"the weights")
MODEL = Model("acme", "sd15-lora-v1", PAINT)
WISHES = {"num_images": 2, "seed": 11, "num_inference_steps": 2, "guidance_scale": 1.5, "prompt": "a logo"}


class Plain(Drawn):
    """A picture of one colour, with no file behind it."""

    @property
    def pixels_HWC(self) -> np.ndarray:
        return np.full((SIDE, SIDE, 3), np.frombuffer(self.data, dtype=np.uint8), dtype=int)


def picture(colour: Colour = RED, brand: str = "acme", sha256: str = PAINT.sha256) -> Plain:
    receipt = {"adapters": [{"sha256": sha256, "scale": 1.0}], "brand_id": brand}
    return Plain({"brand_id": brand, "seed": 11, "receipt": receipt}, bytes(colour))


def rows(*numbers: tuple[int, int]) -> dict[str, Any]:
    return {"id": "g", "images": [{"index": index, "seed": seed} for index, seed in numbers]}


def told(*ends: str, pictures: tuple[int, ...] = (0, 1)) -> list[tuple[str, dict[str, Any]]]:
    drawn = [("image", {"index": index}) for index in pictures]
    return [("status", {"status": "running"}), *drawn, *[("status", {"status": end}) for end in ends]]


TOLD_TWICE = told("completed", pictures=(0, 0, 1))


def draw_twice(judge: Judge, *colours: Colour) -> None:
    for colour in colours:
        judge.must_be_painted(picture(colour), [MODEL], WISHES)


Look = Callable[[Judge], None]
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
    RIGHT[what](Judge(verdict))
    assert verdict.wrong == []


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_noticed(what: str) -> None:
    verdict = Verdict(1, answered=1)
    WRONG[what](Judge(verdict))
    assert len(verdict.wrong) == 1
    assert not verdict.is_good
