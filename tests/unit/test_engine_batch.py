"""Which requests may share a forward pass, and the batch sizes, without a model."""

from __future__ import annotations

import pytest
import torch

from onbrand.engine.batch import EngineJob, Row, batch_size_for, default_batch_sizes
from onbrand.engine.request import Plan
from tools.harness.engine_requests import engine_request


def job(brand: str = "acme", size: int = 64, cfg: float = 3.0, **more) -> EngineJob:
    request = engine_request(f"{brand}-request", brand, "a secret prompt", 0, **more)
    return EngineJob(request, Plan(size, size, 4, cfg, cfg))


@pytest.mark.parametrize(("most", "batch_sizes"), [(1, (1,)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_the_default_batch_sizes_double_up_to_the_largest_batch(most, batch_sizes):
    assert default_batch_sizes(most) == batch_sizes


def test_a_batch_is_filled_up_to_the_next_batch_size():
    assert [batch_size_for(num, (1, 2, 4, 8)) for num in (1, 2, 3, 5, 8)] == [1, 2, 4, 8, 8]


def test_brands_of_one_shape_share_a_pass():
    assert job("acme").key == job("globex").key


@pytest.mark.parametrize("other", [{"size": 128}, {"cfg": 1.0}, {"exclusive": True}])
def test_another_shape_or_guidance_or_wish_to_be_alone_does_not_share_it(other):
    assert job("acme", **other).key != job("globex").key


def test_two_brands_that_wish_to_be_alone_are_each_alone():
    assert job("acme", exclusive=True).key != job("globex", exclusive=True).key


def test_a_step_costs_more_with_guidance_and_less_with_weight():
    assert job(cfg=3.0).step_charge == 2 * job(cfg=1.0).step_charge == 2 * job(cfg=3.0, weight=2.0).step_charge


def test_no_repr_shows_a_prompt():
    secretive = job(negative_prompt="another secret")
    row = Row(secretive, 0, torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8))
    assert "secret" not in repr(secretive) + repr(row) + str(secretive.request)
