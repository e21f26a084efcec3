"""A row between noise and image: samplers by name, previews, pauses, precision and stages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch.nn import functional as F

from onbrand.engine.engine import Engine
from onbrand.engine.request import Canceled, Completed, Event, Failed, FinishedImage, Preview, Progress
from onbrand.errors import InvalidInput
from onbrand.families.family import Conditioning, Family
from onbrand.families.loading import load_family, load_pipeline
from tests.numerics.drawing import PROMPTS, largest_difference, pictures, request, run
from tools.harness.tiny_families import base_of, family_of

TOLERANCE = 1e-4
PEERS = {"euler": EulerDiscreteScheduler, "dpm++2m": DPMSolverMultistepScheduler}


def by_diffusers(name: str, sampler: str, number: int, num_steps: int) -> torch.Tensor:
    """The same request through the plain pipeline with that scheduler."""
    pipeline = load_pipeline(name, base_of(name))
    pipeline.scheduler = PEERS[sampler].from_config(pipeline.scheduler.config)
    images = pipeline(
        PROMPTS[number],
        negative_prompt="blurry",
        height=64,
        width=64,
        num_inference_steps=num_steps,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(100 + number),
        output_type="np",
    ).images
    return torch.from_numpy(images[0]).permute(2, 0, 1)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_rows_of_one_batch_each_have_the_sampler_they_asked_for(name):
    """The base's own, Euler and DPM++ 2M at different steps of one pass; the named ones as diffusers draws them."""
    asked = [("r0", 0, None, 4), ("r1", 1, "euler", 3), ("r2", 2, "dpm++2m", 5)]
    requests = [request(n, number, sampler=sampler, num_inference_steps=steps) for n, number, sampler, steps in asked]
    events = run(Engine(family_of(name), max_batch=4), requests)
    drawn = pictures(events)
    for n, number, sampler, steps in asked[1:]:
        assert largest_difference(drawn[n, 0], by_diffusers(name, sampler, number, steps)) < TOLERANCE
    receipts = {event.request_id: event.receipt.sampler for event in events if isinstance(event, FinishedImage)}
    assert receipts == {"r0": family_of(name).sampler.name, "r1": "euler", "r2": "dpm++2m"}


@pytest.mark.parametrize(("name", "sampler"), [("sd15", "flow-euler"), ("flux", "dpm++2m"), ("sdxl", "ddim")])
def test_a_sampler_that_the_family_has_not_is_refused_by_name(name, sampler):
    with pytest.raises(InvalidInput) as refusal:
        Engine(family_of(name)).add(request("r", sampler=sampler))
    assert refusal.value.param == "sampler"


@pytest.mark.parametrize(("field", "value"), [("weight", 0.0), ("slot_quota", 0), ("preview_every", -1)])
def test_a_limit_out_of_bounds_is_refused_by_name(sd15, field, value):
    with pytest.raises(InvalidInput) as refusal:
        Engine(sd15).add(request("r", **{field: value}))
    assert refusal.value.param == field


def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """Correlation of all values of two images."""
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


def test_a_preview_is_a_small_picture_of_what_is_being_drawn(family):
    requests = [request(name, n, num_inference_steps=8, preview_every=3) for n, name in enumerate("rs")]
    events = run(Engine(family, max_batch=2), requests)
    previews = {(event.request_id, event.step): event.image_CHW for event in events if isinstance(event, Preview)}
    assert set(previews) == {(name, step) for name in "rs" for step in (3, 6)}
    drawn = pictures(events)
    for mine, others in ("rs", "sr"):
        shown = previews[mine, 6]
        small = {name: F.adaptive_avg_pool2d(drawn[name, 0], shown.shape[1:]) for name in "rs"}
        assert shown.shape[1] < 64
        assert likeness(shown, small[mine]) > 0.85
        assert likeness(shown, small[others]) < 0.5


def test_nobody_gets_previews_who_did_not_ask(sd15):
    events = run(Engine(sd15, max_batch=2), [request("r", num_inference_steps=4), request("s", 1, preview_every=1)])
    assert {event.request_id for event in events if isinstance(event, Preview)} == {"s"}


def test_a_row_that_paused_is_the_picture_it_would_have_been(sd15, make_adapter):
    """Two brands with one slot and one place a pass: they step in turns, each losing its slot to the other."""
    uses = [make_adapter(sd15, seed=n, brand=f"brand-{n}").use for n in range(2)]
    requests = [request(str(n), n, num_inference_steps=3, adapters=(use,)) for n, use in enumerate(uses)]
    events = run(Engine(sd15, max_batch=1, num_slots=1), requests)
    assert [event.request_id for event in events if isinstance(event, Progress)] == ["0", "1"] * 3
    drawn = pictures(events)
    for each in requests:
        alone = pictures(run(Engine(sd15, max_batch=1, num_slots=1), [each]))
        assert torch.equal(drawn[each.id, 0], alone[each.id, 0])


def test_a_denoiser_of_half_precision_keeps_its_latents_in_full(make_adapter):
    family = load_family("sd15", base_of("sd15"), dtype=torch.bfloat16)
    engine = Engine(family, max_batch=2)
    engine.add(request("r", num_inference_steps=2, adapters=(make_adapter(family, brand="brand-0").use,)))
    engine.add(request("s", 1, sampler="dpm++2m", num_inference_steps=2))
    events = engine.step()
    assert {row.latents_1CHW.dtype for job in engine._jobs.values() for row in job.rows} == {torch.float32}
    drawn = pictures([*events, *run(engine)])
    exact = pictures(
        run(Engine(family_of("sd15"), max_batch=2), [request("s", 1, sampler="dpm++2m", num_inference_steps=2)])
    )
    assert float((drawn["s", 0] - exact["s", 0]).abs().mean()) < 0.05


# --- stages ---------------------------------------------------------------------------------------------------------


class Gate:
    """Blocks a family's method in another thread until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, family: Family, name: str) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        real: Callable[..., object] = getattr(family, name)

        def held(*args: object) -> object:
            self.reached.set()
            assert self.open.wait(60)
            return real(*args)

        monkeypatch.setattr(family, name, held)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def step_until(engine: Engine, is_reached: Callable[[list[Event]], bool]) -> list[Event]:
    events: list[Event] = []
    for _ in range(30_000):
        if is_reached(events):
            return events
        if not engine.can_step:
            time.sleep(0.001)  # its stages work in threads
        events += engine.step() if engine.can_step else engine.collect()
    raise AssertionError("it never came to it")


def test_with_stages_every_bit_is_as_without(sd15, make_adapter, pool):
    uses = [make_adapter(sd15, seed=n, brand=f"brand-{n}").use for n in range(3)]
    requests = [request(str(n), n, num_images=2, adapters=(use,)) for n, use in enumerate(uses)]
    inline = pictures(run(Engine(sd15, max_batch=4, batch_sizes=(4,)), requests))
    beside = pictures(run(Engine(sd15, max_batch=4, batch_sizes=(4,), stages=pool), requests))
    assert inline.keys() == beside.keys()
    assert all(torch.equal(inline[key], beside[key]) for key in inline)


@pytest.mark.parametrize(("most", "sizes"), [(2**17, [3, 1, 1, 1, 3]), (0, [1] * 6)])
def test_small_pictures_that_end_together_are_decoded_together_and_large_ones_each_by_itself(
    sd15, monkeypatch, most, sizes
):
    """The first time both ways, to see that no bit changes."""
    monkeypatch.setattr("onbrand.engine.decoding._MOST_AT_ONCE", most)
    real, seen = sd15.decode, []
    monkeypatch.setattr(sd15, "decode", lambda latents: seen.append(len(latents)) or real(latents))
    engine = Engine(sd15, max_batch=3, batch_sizes=(3,))
    first, again = [
        pictures(run(engine, [request(str(n), n, num_inference_steps=2) for n in range(3)])) for _ in range(2)
    ]
    assert seen == sizes
    assert all(torch.equal(again[key], first[key]) for key in first)


def test_others_step_on_while_a_picture_is_decoded(sd15, pool, monkeypatch):
    gate = Gate(monkeypatch, sd15, "decode")
    engine = Engine(sd15, max_batch=4, stages=pool)
    engine.add(request("short", 0, num_inference_steps=1))
    engine.add(request("long", 1, num_inference_steps=6))
    events = step_until(engine, lambda told: any(isinstance(e, Progress) and e.done == 6 for e in told))
    assert not any(isinstance(event, FinishedImage) for event in events)
    gate.open.set()
    events += run(engine)
    assert {event.request_id for event in events if isinstance(event, Completed)} == {"short", "long"}


def test_a_request_cancelled_while_it_is_decoded_ends_at_the_next_step(sd15, pool, monkeypatch):
    gate = Gate(monkeypatch, sd15, "decode")
    engine = Engine(sd15, max_batch=4, stages=pool)
    engine.add(request("r", num_inference_steps=1))
    step_until(engine, lambda told: gate.reached.is_set())
    engine.cancel("r")
    assert engine.step() == [Canceled("r")]
    assert not engine.has_work
    gate.open.set()


def test_a_request_cancelled_while_it_waits_never_begins(sd15):
    engine = Engine(sd15, max_batch=1)
    engine.add(request("first", 0, num_inference_steps=2))
    engine.add(request("gone", 0))
    engine.step()
    engine.cancel("gone")
    events = run(engine)
    assert Canceled("gone") in events
    assert {event.request_id for event in events if isinstance(event, Progress)} == {"first"}


@pytest.mark.parametrize("name", ["encode_prompts", "decode"])
def test_what_a_stage_raises_fails_its_own_request_only(sd15, pool, monkeypatch, name):
    real, calls = getattr(sd15, name), []

    def first_breaks(*args: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a secret prompt")
        return real(*args)

    monkeypatch.setattr(sd15, name, first_breaks)
    engine = Engine(sd15, max_batch=1, stages=pool)
    unguided = {"guidance_scale": 1.0, "num_inference_steps": 1}
    events = run(engine, [request("bad", 0, **unguided)])
    events += run(engine, [request("good", 1, **unguided)])
    (failure,) = [event for event in events if isinstance(event, Failed)]
    assert failure.request_id == "bad"
    assert "secret" not in failure.error.message
    assert [event.request_id for event in events if isinstance(event, Completed)] == ["good"]


def test_prompts_that_wait_are_encoded_at_once_and_one_that_cannot_be_fails_its_own_request_only(sd15, monkeypatch):
    """An exclusive request is encoded alone."""
    real, seen = sd15.encode_prompts, []

    def breaks(prompts: Sequence[str]) -> Conditioning:
        seen.append(list(prompts))
        if "bad" in prompts:
            raise RuntimeError("a secret prompt")
        return real(prompts)

    monkeypatch.setattr(sd15, "encode_prompts", breaks)
    engine = Engine(sd15, max_batch=4)
    short = {"guidance_scale": 1.0, "num_inference_steps": 1}
    prompts = {"a": "a red circle", "b": "a blue star", "bad": "bad", "alone": "a green ring"}
    asked = [request(name, 0, prompt=text, exclusive=name == "alone", **short) for name, text in prompts.items()]
    events = run(engine, asked)
    assert [event.request_id for event in events if isinstance(event, Failed)] == ["bad"]
    assert {event.request_id for event in events if isinstance(event, Completed)} == {"a", "b", "alone"}
    assert seen[0] == ["a red circle", "a blue star", "bad"]
    assert [each for each in seen if "a green ring" in each] == [["a green ring"]]
