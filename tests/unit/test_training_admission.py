"""Whose turn it is."""

import random
from collections import Counter

import pytest

from onbrand.training.admission import Bounds, admit, fair_order
from onbrand.training.providers.provider import Capacity
from tests.unit.test_training_dispatcher import job

PLENTY = Capacity(100, 100, 100)


def told(waiting, running=(), bounds=Bounds(4, 2), capacity=PLENTY):
    turns = admit(waiting, running, bounds, capacity)
    return [each.job_id for each in turns.begin], {each.job_id: reason for each, reason in turns.wait}


def test_no_more_jobs_begin_than_may_run_and_the_others_are_told_why():
    waiting = [job("a1"), job("a2"), job("a3"), job("b1", "bolt"), job("c1", "cask"), job("d1", "dune")]
    begin, wait = told(waiting)
    assert begin == ["a1", "b1", "c1", "d1"]
    assert wait == {"a2": "platform", "a3": "platform"}


def test_a_brand_has_no_more_than_its_bound_while_the_platform_has_room():
    begin, wait = told([job("a1"), job("a2"), job("a3")])
    assert begin == ["a1", "a2"]
    assert wait == {"a3": "brand"}


def test_a_brands_own_number_goes_before_the_platforms():
    begin, wait = told([job("a1", max_running=1), job("a2", max_running=1)])
    assert (begin, wait) == (["a1"], {"a2": "brand"})
    begin, wait = told([job(f"a{n}", max_running=3) for n in range(4)])
    assert (len(begin), wait) == (3, {"a3": "brand"})


def test_running_jobs_count():
    begin, wait = told([job("a3"), job("b1", "bolt")], running=[job("a1"), job("a2")], bounds=Bounds(3, 2))
    assert (begin, wait) == (["b1"], {"a3": "brand"})


def test_with_no_jobs_allowed_all_wait_for_the_operator():
    assert told([job("a1")], bounds=Bounds(0, 2)) == ([], {"a1": "operator"})


def test_a_job_larger_than_all_machines_waits_and_keeps_nobody_waiting():
    begin, wait = told([job("huge", num_workers=9), job("b1", "bolt")], capacity=Capacity(4, 8, 8))
    assert (begin, wait) == (["b1"], {"huge": "resources"})


def test_nobody_takes_the_place_of_a_job_that_waits_for_busy_machines():
    waiting = [job("large", num_workers=4), job("b1", "bolt")]
    assert told(waiting, capacity=Capacity(3, 8, 8)) == ([], {"large": "resources", "b1": "resources"})


def test_machines_that_the_autoscaler_can_bring_are_room():
    assert told([job("a1", num_workers=4)], capacity=Capacity(0, 0, 8)) == (["a1"], {})
    assert told([job("a1", num_workers=4)], capacity=Capacity(0, 8, 8)) == ([], {"a1": "resources"})


def test_jobs_that_begin_together_share_the_room():
    waiting = [job("a1", num_workers=2), job("b1", "bolt", num_workers=2), job("c1", "cask", num_workers=2)]
    assert told(waiting, capacity=Capacity(4, 4, 4)) == (["a1", "b1"], {"c1": "resources"})


def test_without_knowledge_of_the_machines_jobs_begin():
    assert told([job("a1", num_workers=64)], capacity=None) == (["a1"], {})


@pytest.mark.parametrize("seed", range(20))
def test_at_any_moment_no_waiting_brand_has_less_for_its_weight_than_another_by_more_than_one_job(seed):
    """Whatever the arrivals: the bound of weighted fair sharing with whole jobs."""
    dice = random.Random(seed)
    weights = {brand: dice.choice((0.5, 1.0, 2.0, 4.0)) for brand in "abcde"}
    brands = [dice.choice("abcde") for _ in range(60)]
    order = fair_order([job(f"j{n}", brand, weight=weights[brand]) for n, brand in enumerate(brands)], [])
    begun: Counter[str] = Counter()
    left = Counter(brands)
    for each in order:
        begun[each.brand_id] += 1
        left[each.brand_id] -= 1
        share = {brand: begun[brand] / weights[brand] for brand in weights}
        for poor in (brand for brand in weights if left[brand]):
            assert all(share[rich] <= share[poor] + 1 / weights[rich] for rich in weights if begun[rich])
    assert sorted(each.job_id for each in order) == sorted(f"j{n}" for n in range(60))
