"""A compiled denoiser with slots draws the same images, and does not recompile when rows change brands.

`ONBRAND_TEST_COMPILED_FAMILIES=sd15,sdxl,flux` and `ONBRAND_TEST_BRAND_SWITCHES=10000` select the long version.
"""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from onbrand.engine.adapters import AdapterUse
from onbrand.engine.compilation import compile_passes
from onbrand.engine.engine import Engine
from onbrand.engine.request import Request
from onbrand.families.lora import read_adapter
from tests.numerics.drawing import largest_difference, pictures, request, run
from tools.harness.brand_switches import RANKS, CountingBackend, brand_switches
from tools.harness.tiny_families import family_of

COMPILED = os.environ.get("ONBRAND_TEST_COMPILED_FAMILIES", "flux").split(",")
NUM_SWITCHES = int(os.environ.get("ONBRAND_TEST_BRAND_SWITCHES", "100"))


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", COMPILED)
def test_rows_change_brands_and_nothing_is_compiled_again(name, make_adapter):
    """`fullgraph=True`; ranks 4 to 16, any scales, slots written anew between passes."""
    family = family_of(name)
    adapters = [read_adapter(make_adapter(family, rank, seed=rank).data, family) for rank in RANKS]
    figures = brand_switches(family, adapters, NUM_SWITCHES, num_rows=min(NUM_SWITCHES, 16))
    assert figures["recompiles"] == 0
    assert figures["brand_switches"] >= NUM_SWITCHES


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_engine_draws_the_pictures_of_a_plain_one(name, make_adapter, monkeypatch):
    family = family_of(name)
    backend = CountingBackend()
    monkeypatch.setattr("onbrand.engine.engine.compile_passes", lambda denoiser: compile_passes(denoiser, backend))
    uses = [make_adapter(family, rank, seed=rank, brand=f"brand-{n}").use for n, rank in enumerate((4, 16))]
    requests = [request(str(n), n, adapters=(use,), num_inference_steps=2) for n, use in enumerate(uses)]
    plain = pictures(run(Engine(family, max_batch=2), requests))
    try:
        drawn = pictures(run(Engine(family, max_batch=2, compile=True), requests))
    finally:
        family.denoiser._compiled_call_impl = None
    assert backend.num_graphs == 1
    for picture, image in plain.items():
        assert largest_difference(drawn[picture], image) < 1e-5


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
@pytest.mark.parametrize("name", COMPILED)
def test_what_inductor_makes_draws_the_same_bits_whoever_shares_the_batch(name, make_adapter):
    """With rank classes and layers in use that others bring; what is compiled once is not compiled anew for them."""
    family = family_of(name)
    mine, small, large = [
        make_adapter(family, rank, seed=rank, brand=f"brand-{rank}").use for rank in (6, 4, 16)
    ]  # two rank classes
    plain = pictures(run(Engine(family, max_batch=2), [asked("me", 0, mine)]))["me", 0]
    engine = Engine(family, max_batch=2, batch_sizes=(2,), compile=True)
    try:
        run(engine, [asked("warm", 1, large), asked("up", 2, small)])
        neighbours = [[], [asked("a", 1, small)], [asked("b", 2, large)], [asked("c", 3, None)]]
        drawn = [pictures(run(engine, [asked("me", 0, mine), *others]))["me", 0] for others in neighbours]
    finally:
        family.denoiser._compiled_call_impl = None
    assert all(torch.equal(picture, drawn[0]) for picture in drawn)
    assert largest_difference(drawn[0], plain) < 1e-4


def asked(id: str, number: int, use: AdapterUse | None) -> Request:
    brand = {"brand_id": use.key.brand_id} if use else {}
    return request(id, number, adapters=(use,) if use else (), num_inference_steps=2, **brand)
