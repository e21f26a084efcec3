"""Random schedules of joining, leaving, cancelling and publishing. Every image equals the one drawn alone.

`ONBRAND_TEST_SCHEDULES=100` runs that many schedules of each family (default 1). A failure names its seed.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch

from onbrand.engine.adapters import AdapterUse
from onbrand.engine.engine import Engine
from onbrand.engine.request import Canceled, Completed, Event, FinishedImage, Preview, Request
from onbrand.families.family import Family
from tests.numerics.drawing import Pictures, largest_difference, pictures, request, run

NUM_SCHEDULES = int(os.environ.get("ONBRAND_TEST_SCHEDULES", "1"))
BATCH_SIZE = 3
NUM_BRANDS = 4
RANKS = (2, 3, 8, 13, 16, 40, 64)
TOLERANCE = 1e-5


@dataclass
class Schedule:
    """One random schedule of an engine with few slots, and its images."""

    family: Family
    dice: random.Random
    make_adapter: Callable[..., object]
    requests: dict[str, Request] = field(default_factory=dict)
    canceled: set[str] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ranks = {brand: self.dice.sample(RANKS, 2) for brand in range(NUM_BRANDS)}
        self.versions = Counter(range(NUM_BRANDS))

    def play(self, num_requests: int) -> None:
        engine = Engine(self.family, max_batch=BATCH_SIZE, batch_sizes=(BATCH_SIZE,), num_slots=2)
        while len(self.requests) < num_requests or engine.has_work:
            if len(self.requests) < num_requests and self.dice.random() < 0.5:
                self._join(engine)
            if self.requests and self.dice.random() < 0.04:
                self._cancel(engine)
            if self.dice.random() < 0.2:
                self._publish()
            self.events += engine.step()
        assert not engine.residency._num_pins, "every lease was given back"
        leave_the_base(engine)

    def _join(self, engine: Engine) -> None:
        number = len(self.requests)
        brand = self.dice.randrange(NUM_BRANDS)
        sampler = self.dice.choice([None, *self.family.spec.samplers])
        guidance = self.dice.choice([1.0, 2.5, 6.0])
        new = request(
            str(number),
            number,
            brand_id=f"brand-{brand}",
            adapters=self._adapters(brand),
            num_images=self.dice.choice([1, 1, 2]),
            num_inference_steps=self.dice.randint(1, 4),
            width=self.dice.choice([64, 64, 64, 96]),
            guidance_scale=guidance,
            true_cfg_scale=guidance,
            sampler=sampler,
            exclusive=self.dice.random() < 0.15,
            weight=self.dice.choice([0.5, 1.0, 3.0]),
            slot_quota=self.dice.choice([None, 1]),
            preview_every=self.dice.choice([0, 2]),
        )
        self.requests[engine.add(new)] = new

    def _adapters(self, brand: int) -> tuple[AdapterUse, ...]:
        """None, one, or several of the brand's adapters in their newest version, each with a scale of its own."""
        return tuple(
            self.make_adapter(
                self.family,
                rank,
                seed=100 * brand + self.versions[brand],
                brand=f"brand-{brand}",
                scale=self.dice.uniform(-1, 1.5),
                strength=0.5,
            ).use
            for rank in self.ranks[brand][: self.dice.choice([0, 1, 1, 1, 2])]
        )

    def _publish(self) -> None:
        """New weights under a brand's name; running requests keep theirs."""
        self.versions[self.dice.randrange(NUM_BRANDS)] += 1

    def _cancel(self, engine: Engine) -> None:
        gone = self.dice.choice(sorted(self.requests))
        if gone in engine._jobs:
            self.canceled.add(gone)
        engine.cancel(gone)


def alone(family: Family, each: Request, size: int) -> Pictures:
    """The request's image from an engine of its own, in passes of `size` rows."""
    engine = Engine(family, max_batch=size, batch_sizes=(size,), num_slots=1)
    drawn = pictures(run(engine, [replace(each, parameters=replace(each.parameters, preview_every=0))]))
    leave_the_base(engine)
    return drawn


def leave_the_base(engine: Engine) -> None:
    """Remove the engine's hooks and stacks from the base, which many engines share here."""
    for lease in engine.residency._leases.values():
        engine._slots.release(lease.slot)
    assert not any(layer.num_users for layer in engine._slots._layers.values())


@pytest.mark.parametrize("seed", range(NUM_SCHEDULES))
def test_every_picture_of_any_schedule_is_the_one_drawn_alone(family, make_adapter, seed):
    story = Schedule(family, random.Random(f"{family.spec.name}-{seed}"), make_adapter)
    story.play(num_requests=6)
    drawn = pictures(story.events)
    ends = Counter(event.request_id for event in story.events if isinstance(event, Completed | Canceled))
    assert ends == dict.fromkeys(story.requests, 1)
    assert {event.request_id for event in story.events if isinstance(event, Canceled)} == story.canceled
    for name, each in story.requests.items():
        told = {key: image for key, image in drawn.items() if key[0] == name}
        if name not in story.canceled:
            assert len(told) == each.parameters.num_images
        same_class, single = alone(family, each, BATCH_SIZE), alone(family, each, 1)
        for key, image in told.items():
            assert torch.equal(image, same_class[key]), f"request {name} depends on its neighbours"
            assert largest_difference(image, single[key]) < TOLERANCE
    must_be_previews_as_asked(story)


def must_be_previews_as_asked(story: Schedule) -> None:
    through: set[tuple[str, int]] = set()
    for event in story.events:
        if isinstance(event, FinishedImage):
            through.add((event.request_id, event.index))
        if isinstance(event, Preview):
            assert (event.request_id, event.index) not in through
            assert event.step % story.requests[event.request_id].parameters.preview_every == 0
    for name, each in story.requests.items():
        steps = [event.step for event in story.events if isinstance(event, Preview) and event.request_id == name]
        if name not in story.canceled:
            assert len(steps) == each.parameters.num_images * _num_previews(each)


def _num_previews(each: Request) -> int:
    """At every n-th step but the last, at which the image itself is there."""
    every = each.parameters.preview_every
    return (each.parameters.num_inference_steps - 1) // every if every else 0
