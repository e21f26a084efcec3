"""Rows are independent: a row that joins, leaves or fails changes no bit of another row's image."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.engine import Engine
from onbrand.engine.request import Canceled, Completed, Failed, FinishedImage, Progress
from onbrand.errors import AdapterRefused, Conflict, InvalidInput, TooManyRequests
from onbrand.families.lora import AdapterWeights, LayerWeights
from tests.numerics.drawing import largest_difference, pictures, request, run
from tools.harness.tiny_families import family_of


def one_class(family, **more):
    """An engine whose passes all have 4 rows, so that images are comparable bit by bit."""
    return Engine(family, max_batch=4, batch_sizes=(4,), **more)


def test_a_picture_has_the_same_bits_whoever_shares_the_batch(family, make_adapter):
    mine = request("mine", 0, adapters=(make_adapter(family, 4, brand="brand-0").use,))
    alone = pictures(run(one_class(family), [mine]))["mine", 0]
    uses = [make_adapter(family, rank, seed=n, brand=f"brand-{n}").use for n, rank in ((1, 8), (2, 32))]
    others = [request(f"other-{n}", n, adapters=(use,), guidance_scale=5.0) for n, use in enumerate(uses, 1)]
    for place in range(3):
        mixed = pictures(run(one_class(family), [*others[:place], mine, *others[place:], request("base", 3)]))
        assert torch.equal(mixed["mine", 0], alone)


def test_whose_brand_it_is_changes_no_bit_of_a_picture(family, make_adapter):
    """Accounts decide when a row steps, not how."""
    mine = request("mine", 0, adapters=(make_adapter(family, 4, brand="brand-0").use,))
    alone = pictures(run(one_class(family), [mine]))["mine", 0]
    others = [request(f"other-{n}", n, num_images=2, account_id="many") for n in range(1, 7)]
    together = pictures(run(one_class(family), [*others, replace(mine, account_id="single")]))
    assert torch.equal(together["mine", 0], alone)


def test_another_batch_size_changes_a_picture_by_rounding_only(family, make_adapter):
    mine = request("mine", 0, adapters=(make_adapter(family, 4, brand="brand-0").use,))
    alone = pictures(run(Engine(family, max_batch=1), [mine]))["mine", 0]
    others = [request(f"other-{n}", n) for n in (1, 2, 3)]
    mixed = pictures(run(Engine(family, max_batch=4), [mine, *others]))["mine", 0]
    assert largest_difference(mixed, alone) < 1e-5


def test_keys_that_are_kept_change_no_bit(family, make_adapter, monkeypatch):
    """Rows join and leave, so that keys are made anew for other rows, with other adapters, at other places."""
    uses = [make_adapter(family, rank, seed=rank, brand=f"brand-{n}").use for n, rank in enumerate((4, 8, 16))]
    requests = [
        request(str(n), n, adapters=(use,), num_inference_steps=2 + n, num_images=1 + n % 2)
        for n, use in enumerate(uses)
    ]
    kept = pictures(run(Engine(family, max_batch=4, num_slots=2), requests))
    monkeypatch.setattr("onbrand.engine.cpu.unet_blocks._BYTES_KEPT", 0)
    made_anew = pictures(run(Engine(family, max_batch=4, num_slots=2), requests))
    assert all(torch.equal(kept[place], image) for place, image in made_anew.items())


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_parts_before_text_see_nothing_of_a_prompt(name):
    """Rows at the same latents and step, with other prompts: equal there to the bit, and different in the end."""
    family = family_of(name)
    seen: list[torch.Tensor] = []

    def look(module, inputs, output):
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    hooks = [part.register_forward_hook(look) for part in family.parts_before_text()]
    try:
        with torch.inference_mode():
            texts = family.encode_prompts(["a red square on blue", "nothing"])
            latents = torch.randn(1, *family.latent_shape(64, 64)).repeat(2, 1, 1, 1)
            told = family.denoise(latents, torch.tensor([500.0, 500.0]), texts)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen) == 2
    assert all(torch.equal(one, other) for one, other in seen)
    assert not torch.equal(told[0], told[1])


def test_keys_are_made_once_for_rows_that_stay_and_forgotten_with_their_request(sd15, make_adapter):
    engine = Engine(sd15, max_batch=2)
    layer = next(m for name, m in sd15.denoiser.named_modules() if name.endswith("attn2.to_k"))
    passes: list[int] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    try:
        engine.add(request("long", 0, adapters=(make_adapter(sd15, brand="brand-0").use,), num_inference_steps=6))
        for _ in range(3):
            engine.step()
        engine.add(request("short", 1, num_inference_steps=2))
        run(engine)
    finally:
        hook.remove()
    assert passes == [2, 4, 2]  # alone, with another, alone again; both branches of guidance
    assert engine._runner._context is None


def test_a_request_joins_at_the_next_step_and_leaves_when_it_is_done(sd15, make_adapter):
    early = request("early", 0, num_inference_steps=5, adapters=(make_adapter(sd15, brand="brand-0").use,))
    late = request("late", 1, num_inference_steps=2, adapters=(make_adapter(sd15, seed=1, brand="brand-1").use,))
    engine = one_class(sd15)
    engine.add(early)
    events = engine.step()
    engine.add(late)
    events += run(engine)
    completed = [event.request_id for event in events if isinstance(event, Completed)]
    assert completed == ["late", "early"]
    drawn = pictures(events)
    assert torch.equal(drawn["early", 0], pictures(run(one_class(sd15), [early]))["early", 0])
    assert torch.equal(drawn["late", 0], pictures(run(one_class(sd15), [late]))["late", 0])


def test_progress_counts_every_step_of_every_picture(sd15):
    events = run(Engine(sd15, max_batch=2), [request("r", num_images=2, num_inference_steps=2)])
    assert [(e.done, e.total) for e in events if isinstance(e, Progress)] == [(2, 4), (4, 4)]


def test_a_cancelled_request_frees_its_rows_at_the_next_step(sd15):
    engine = one_class(sd15)
    kept = request("kept", 1)
    for each in (request("gone", num_images=4, num_inference_steps=50), kept):
        engine.add(each)
    engine.step()
    engine.cancel("gone")
    events = run(engine)
    assert [event for event in events if getattr(event, "request_id", "") == "gone"] == [Canceled("gone")]
    assert torch.equal(pictures(events)["kept", 0], pictures(run(one_class(sd15), [kept]))["kept", 0])


def test_cancelling_what_is_not_there_changes_nothing(sd15):
    engine = Engine(sd15)
    engine.cancel("nobody")
    assert not engine.has_work


def broken_adapter(value: float, layer: str, brand: str = "brand-0") -> AdapterUse:
    weights = AdapterWeights({layer: LayerWeights(torch.full((4, 4), value), torch.full((4, 4), value))}, 4, {})
    return AdapterUse(AdapterKey(brand, f"broken-{layer}"), weights)


def test_an_adapter_that_does_not_fit_fails_its_own_request_only(sd15):
    bad = request("bad", 0, adapters=(broken_adapter(1.0, "no.such.layer"),))
    events = run(one_class(sd15), [bad, request("good", 1)])
    (failure,) = [event for event in events if isinstance(event, Failed)]
    assert (failure.request_id, type(failure.error)) == ("bad", AdapterRefused)
    assert [event.request_id for event in events if isinstance(event, Completed)] == ["good"]


def test_a_picture_that_is_not_finite_fails_its_own_request_only(sd15, make_adapter):
    """Finite weights may still overflow; neighbours must not see a bit of it."""
    use = make_adapter(sd15, brand="brand-0").use
    huge = {name: LayerWeights(layer.a * 1e30, layer.b * 1e30) for name, layer in use.weights.layers.items()}
    wild = AdapterUse(AdapterKey("brand-0", "wild"), replace(use.weights, layers=huge))
    good = request("good", 1)
    events = run(one_class(sd15), [request("wild", 0, adapters=(wild,)), good])
    (failure,) = [event for event in events if isinstance(event, Failed)]
    assert failure.request_id == "wild"
    assert "not finite" in failure.error.message
    (picture,) = [event for event in events if isinstance(event, FinishedImage)]
    assert torch.equal(picture.image_CHW, pictures(run(one_class(sd15), [good]))["good", 0])


def test_after_a_failure_the_slot_draws_the_next_brand_as_ever(sd15, make_adapter):
    engine = one_class(sd15, num_slots=1)
    use = make_adapter(sd15, brand="brand-1", seed=1).use
    mine = request("mine", 1, adapters=(use,))
    huge = {name: LayerWeights(layer.a * 1e30, layer.b * 1e30) for name, layer in use.weights.layers.items()}
    wild = AdapterUse(AdapterKey("brand-0", "wild"), replace(use.weights, layers=huge))
    run(engine, [request("wild", 0, adapters=(wild,))])
    drawn = pictures(run(engine, [mine]))
    assert torch.equal(drawn["mine", 0], pictures(run(one_class(sd15), [mine]))["mine", 0])


def test_a_row_whose_slot_was_written_again_is_failed_never_drawn(sd15, make_adapter):
    engine = one_class(sd15)
    engine.add(request("mine", 0, adapters=(make_adapter(sd15, brand="brand-0").use,)))
    engine.add(request("other", 1))
    engine.step()
    engine._slots.release(engine._jobs["mine"].lease.slot)
    events = run(engine)
    assert [event.request_id for event in events if isinstance(event, Failed)] == ["mine"]
    assert [event.request_id for event in events if isinstance(event, FinishedImage)] == ["other"]


def test_more_brands_than_slots_wait_for_one_and_all_are_drawn_right(sd15, make_adapter):
    uses = [make_adapter(sd15, seed=n, brand=f"brand-{n}").use for n in range(3)]
    requests = [request(str(n), n, num_inference_steps=2, adapters=(use,)) for n, use in enumerate(uses)]
    drawn = pictures(run(one_class(sd15, num_slots=1), [*requests, replace(requests[0], id="again")]))
    for each in requests:
        assert torch.equal(drawn[each.id, 0], pictures(run(one_class(sd15), [each]))[each.id, 0])
    assert torch.equal(drawn["again", 0], drawn["0", 0])


def test_two_adapters_of_a_brand_add_up(sd15, make_adapter):
    """Composition by concatenated ranks is the sum of both updates."""
    one, two = (make_adapter(sd15, rank, seed=rank, brand="brand-0", scale=s).use for rank, s in ((4, 0.5), (8, 0.8)))
    summed = {}
    for name, layer in one.weights.layers.items():
        other = two.weights.layers[name]
        summed[name] = LayerWeights(torch.cat([layer.a, other.a]), torch.cat([layer.b * 0.5, other.b * 0.8], dim=1))
    merged = AdapterUse(AdapterKey("brand-0", "sum"), AdapterWeights(summed, 12, {}))
    drawn = pictures(run(one_class(sd15), [request("both", adapters=(one, two)), request("sum", adapters=(merged,))]))
    assert largest_difference(drawn["both", 0], drawn["sum", 0]) < 1e-6


def test_a_receipt_says_how_to_draw_the_picture_again(sd15, make_adapter):
    use = make_adapter(sd15, brand="brand-0", scale=0.5).use
    events = run(Engine(sd15, max_batch=4), [request("r", 0, num_images=2, adapters=(use,))])
    receipt = [event.receipt for event in events if isinstance(event, FinishedImage)][1].as_json()
    assert receipt == {
        "brand_id": "brand-0",
        "family": "sd15",
        "adapters": [{"sha256": use.key.sha256, "scale": 0.5}],
        "cut": [],
        "base_revision": sd15.revision,
        "sampler": sd15.sampler.name,
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "true_cfg_scale": None,
        "seed": 101,
        "height": 64,
        "width": 64,
        "batch_sizes": [2],
        "slot_generation": 1,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [("height", 60), ("width", 4096), ("num_inference_steps", 0), ("guidance_scale", 99.0), ("num_images", 0)],
)
def test_a_number_out_of_bounds_is_refused_at_once_with_its_name(sd15, field, value):
    with pytest.raises(InvalidInput) as refusal:
        Engine(sd15).add(request("r", **{field: value}))
    assert refusal.value.param == field


def test_an_adapter_of_another_brand_is_refused_at_once(sd15, make_adapter):
    with pytest.raises(InvalidInput, match="brand"):
        Engine(sd15).add(request("r", 0, adapters=(make_adapter(sd15, brand="brand-1").use,)))


def test_a_full_queue_says_when_to_come_back(sd15):
    engine = Engine(sd15, max_batch=1, max_waiting_per_brand=2)
    engine.add(request("a", 0, num_images=2))
    with pytest.raises(TooManyRequests, match="this brand") as refusal:
        engine.add(request("b", 0))
    assert refusal.value.fields["retry_after"] >= 1


def test_a_queue_that_others_fill_has_room_for_a_brands_share(sd15):
    """A refusal names the brand's own images only, and reveals nothing of other brands."""
    engine = Engine(sd15, max_batch=1, max_waiting=6)
    engine.add(request("a", 0, num_images=4))
    engine.add(request("b", 1, num_images=2))
    with pytest.raises(TooManyRequests, match="4 pictures of this brand"):
        engine.add(request("c", 0))
    engine.add(request("d", 1))
    engine.add(request("e", 2, num_images=2))
    with pytest.raises(TooManyRequests, match="3 pictures of this brand"):
        engine.add(request("f", 1))
    assert engine.num_waiting == 9


def test_a_queue_that_many_brands_of_an_account_fill_has_room_for_anothers_share(sd15):
    engine = Engine(sd15, max_batch=1, max_waiting=8)
    for n in range(4):
        engine.add(request(f"{n}", n, num_images=2, account_id="many"))
    engine.add(request("first", 8, num_images=3))
    engine.add(request("second", 8))
    with pytest.raises(TooManyRequests, match="2 pictures of this brand"):
        engine.add(request("more", 0, account_id="many"))
    engine.add(request("another", 9, account_id="many"))  # a brand that has none waiting
    with pytest.raises(TooManyRequests, match="4 pictures of this brand"):
        engine.add(request("third", 8))


def test_one_id_is_drawn_once(sd15):
    engine = Engine(sd15)
    engine.add(request("r"))
    with pytest.raises(Conflict):
        engine.add(request("r"))


@pytest.mark.parametrize("schedule", range(2))
def test_any_schedule_of_joins_leaves_and_cancels_draws_every_picture_as_alone(sd15, make_adapter, schedule):
    chance = random.Random(schedule)
    engine = one_class(sd15, num_slots=2)
    requests = []
    for n in range(8):
        rank, scale = chance.choice([2, 8, 13, 40, 64]), chance.uniform(-1, 1.5)
        use = make_adapter(sd15, rank, seed=n % 5, brand=f"brand-{n}", scale=scale).use
        numbers = {"num_images": chance.randint(1, 2), "num_inference_steps": chance.randint(1, 4)}
        guidance = chance.choice([1.0, 2.5, 6.0])
        adapters = (use,) if chance.random() < 0.8 else ()
        requests.append(request(str(n), n, adapters=adapters, guidance_scale=guidance, **numbers))
    events, waiting = [], list(requests)
    canceled = set()
    while waiting or engine.has_work:
        if waiting and chance.random() < 0.5:
            engine.add(waiting.pop())
        if chance.random() < 0.1 and events:
            canceled.add(gone := chance.choice(requests).id)
            engine.cancel(gone)
        events += engine.step()
    drawn = pictures(events)
    for each in requests:
        if each.id not in canceled:
            alone = pictures(run(one_class(sd15), [each]))
            assert all(torch.equal(drawn[picture], image) for picture, image in alone.items())
