"""A request that overflows fails at that step, and the receipt lists what was cut from prompts."""

from __future__ import annotations

from dataclasses import replace

from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.engine import Engine
from onbrand.engine.request import Completed, Failed, FinishedImage, Preview, Progress
from onbrand.families.lora import LayerWeights
from tests.numerics.drawing import request, run


def test_a_request_that_overflows_ends_at_once_and_is_no_picture(sd15, make_adapter):
    """It takes no more steps, so neighbours pay for one pass of it; its progress and previews are not told."""
    use = make_adapter(sd15, brand="brand-0").use
    huge = {name: LayerWeights(layer.a * 1e30, layer.b * 1e30) for name, layer in use.weights.layers.items()}
    wild = AdapterUse(AdapterKey("brand-0", "wild"), replace(use.weights, layers=huge))
    engine = Engine(sd15, max_batch=4, batch_sizes=(4,))
    engine.add(request("wild", 0, adapters=(wild,), num_images=2, num_inference_steps=20, preview_every=1))
    engine.add(request("good", 1, num_inference_steps=20))
    events = engine.step()
    assert [(type(event), event.request_id) for event in events if not isinstance(event, Preview)] == [
        (Failed, "wild"),
        (Progress, "good"),
    ]
    assert [event.error.code for event in events if isinstance(event, Failed)] == ["picture_not_finite"]
    assert engine.residency.num_pins(wild.key) == 0
    assert [event.request_id for event in run(engine) if isinstance(event, Completed)] == ["good"]


def test_a_picture_whose_decoding_overflows_is_no_picture(sd15, monkeypatch):
    real = sd15.vae.decode

    def overflowing(latents, **given):
        made = real(latents, **given)
        made.sample[0, 0, 0, 0] = float("inf")
        return made

    monkeypatch.setattr(sd15.vae, "decode", overflowing)
    events = run(Engine(sd15, max_batch=4, batch_sizes=(4,)), [request("r", 0)])
    assert [event.error.code for event in events if isinstance(event, Failed)] == ["picture_not_finite"]
    assert not [event for event in events if isinstance(event, FinishedImage)]


def test_the_receipt_says_what_was_cut_of_the_prompts(family):
    long = "a red circle " * 30
    unguided = {"guidance_scale": 1.0, "true_cfg_scale": 1.0}
    whole, cut, alone = (
        request("whole", 0, prompt="a red circle", num_inference_steps=1),
        request("cut", 1, prompt=long, negative_prompt=long, true_cfg_scale=2.0, num_inference_steps=1),
        request("alone", 2, prompt="a red circle", negative_prompt=long, **unguided, num_inference_steps=1),
    )
    drawn = [event for event in run(Engine(family), [whole, cut, alone]) if isinstance(event, FinishedImage)]
    receipts = {event.request_id: event.receipt.as_json() for event in drawn}
    assert receipts["whole"]["cut"] == receipts["alone"]["cut"] == []
    names = ["tokenizer"] if family.spec.name == "sd15" else ["tokenizer", "tokenizer_2"]
    assert [(each["field"], each["tokenizer"], each["read"]) for each in receipts["cut"]["cut"]] == [
        (field, name, 32) for field in ("prompt", "negative_prompt") for name in names
    ]
    assert {each["tokens"] for each in receipts["cut"]["cut"]} <= {91, 92}
