"""The colour adapters paint their colour. The chaos run relies on it."""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch

from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.engine import Engine
from onbrand.families.lora import read_adapter
from tests.numerics.drawing import pictures, run
from tools.harness.colour_adapters import COLOURS, MOST_STEPS, SIDE, Colour, Paint, Painter, colour_of
from tools.harness.engine_requests import engine_request
from tools.harness.tiny_families import family_of

RED, BLUE = (230, 26, 26), (26, 77, 230)
WAYS = [(1.0, None), (1.5, None), (1.5, "euler"), (1.0, "dpm++2m")]


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(family_of("sd15"))


@pytest.fixture(scope="module")
def paints(painter: Painter) -> list[Paint]:
    return [painter.paint(COLOURS[37 * n % len(COLOURS)], rank, n) for n, rank in enumerate((4, 8, 20, 40))]


def painted(paints: list[Paint], **numbers: Any) -> list[Colour]:
    """The colours of one engine's images with all adapters in one batch, each of another brand."""
    family = family_of("sd15")
    requests = [
        engine_request(
            str(number), f"brand-{number}", "photo of acme logo", 11 + number, height=SIDE, width=SIDE,
            adapters=(AdapterUse(AdapterKey(f"brand-{number}", paint.sha256), read_adapter(paint.data, family)),),
            **numbers,
        )
        for number, paint in enumerate(paints)
    ]  # fmt: skip
    drawn = pictures(run(Engine(family), requests))
    return [colour_of(drawn[request.id, 0].permute(1, 2, 0).numpy() * 255) for request in requests]


@pytest.mark.parametrize("num_steps", range(1, MOST_STEPS + 1))
@pytest.mark.parametrize(("guidance", "sampler"), WAYS)
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
