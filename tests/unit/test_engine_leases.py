"""A paused job's slot goes to the next brand; the slot of a running job does not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.batch import EngineJob
from onbrand.engine.leases import Leases
from onbrand.engine.request import Plan
from onbrand.engine.residency import AdapterResidency
from onbrand.engine.slots import Slots
from onbrand.errors import AdapterRefused
from onbrand.families.lora import AdapterWeights, LayerWeights
from tools.harness.engine_requests import engine_request

SERVED = {"ahead": 3.0, "even": 2.0, "behind": 1.0}


def job(brand: str, rank: int = 4, layer: str = "0") -> EngineJob:
    weights = AdapterWeights({layer: LayerWeights(torch.ones(rank, 6), torch.ones(5, rank))}, rank, {})
    use = AdapterUse(AdapterKey(brand, f"{brand}-{rank}"), weights)
    plan = Plan(64, 64, 4, 3.0, 3.0)
    return EngineJob(engine_request(brand, brand, "a prompt", 0), plan, prepared=SimpleNamespace(use=use))


@pytest.fixture
def residency() -> AdapterResidency:
    return AdapterResidency(Slots(nn.Sequential(nn.Linear(6, 5)).requires_grad_(False), num_slots=2))


@pytest.fixture
def leases(residency: AdapterResidency) -> Leases:
    return Leases(residency, lambda each: (SERVED[each.brand_id], 0.0))


def test_a_slot_is_recalled_from_who_is_farthest_ahead(leases):
    ahead, even, behind = job("ahead"), job("even"), job("behind")
    assert leases.take(even, ())
    assert leases.take(ahead, ())
    assert leases.take(behind, ())
    assert (ahead.lease, even.lease is None) == (None, False)


def test_a_slot_is_never_recalled_from_who_steps(leases):
    ahead, even, behind = job("ahead"), job("even"), job("behind")
    for each in (ahead, even):
        leases.take(each, ())
    assert not leases.take(behind, {ahead, even})
    assert leases.take(behind, {ahead})
    assert (ahead.lease is None, even.lease) == (False, None)


def test_who_lost_a_slot_takes_one_again(leases):
    ahead, even, behind = job("ahead"), job("even"), job("behind")
    for each in (ahead, even, behind, ahead):
        assert leases.take(each, ())
    assert ahead.lease is not None


def test_a_slot_of_another_rank_class_is_left_alone(leases):
    wide, ahead, even, behind = job("ahead", rank=32), job("ahead"), job("even"), job("behind")
    for each in (wide, ahead, even, behind):
        leases.take(each, ())
    assert wide.lease is not None


def test_all_leases_given_back_leave_nothing_pinned(leases, residency):
    jobs = [job(brand) for brand in SERVED]
    for each in jobs:
        leases.take(each, ())
    for each in jobs:
        leases.give_back(each)
        leases.give_back(each)  # a second time changes nothing
    assert [residency.num_pins(key) for key in residency.resident] == [0, 0]


def test_who_was_refused_and_ends_waits_for_no_slot_any_more(leases, residency):
    ahead, even, behind = job("ahead"), job("even"), job("behind")
    for each in (ahead, even):
        leases.take(each, ())
    leases.take(behind, {ahead, even})
    assert residency._claims
    leases.give_back(behind)
    assert not residency._claims


def test_an_adapter_that_does_not_fit_takes_nobodys_slot(leases):
    ahead, even = job("ahead"), job("even")
    for each in (ahead, even):
        leases.take(each, ())
    with pytest.raises(AdapterRefused):
        leases.take(job("behind", layer="attic"), ())
    assert ahead.lease is not None
    assert even.lease is not None


def test_the_base_alone_needs_no_slot(leases):
    plain = job("ahead")
    plain.prepared = SimpleNamespace(use=None)
    assert leases.take(plain, ())
    assert plain.lease is None


def test_nothing_is_recalled_that_would_help_nobody(leases, residency):
    """A brand at its quota is not given another's slot, so nobody loses theirs for it."""
    mine, other = job("behind"), job("ahead")
    leases.take(mine, ())
    leases.take(other, ())
    second = job("behind")
    second.request = replace(second.request, slot_quota=1)
    second.prepared.use = replace(second.prepared.use, key=AdapterKey("behind", "second"))
    assert not leases.take(second, {mine})
    assert other.lease is not None


def test_all_who_share_a_slot_are_recalled_together_or_none(leases):
    first, second, even, behind = job("ahead"), job("ahead"), job("even"), job("behind")
    for each in (first, second, even):
        leases.take(each, ())
    assert leases.take(behind, {first})
    assert [each.lease is None for each in (first, second, even)] == [False, False, True]
    leases.give_back(behind)
    leases.take(even, {first, second})
    assert leases.take(behind, {even})
    assert [each.lease is None for each in (first, second, even)] == [True, True, False]
