"""The order in which waiting training jobs start."""

import random
from collections import Counter

import pytest

from onbrand.training.dispatch.admission import Bounds, admit, fair_order
from onbrand.training.dispatch.providers.provider import Capacity
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
    """The bound of weighted fair sharing with whole jobs holds for any arrivals."""
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


# accounts of several brands, and room for others


@pytest.mark.parametrize("num_jobs", [2, 3, 8])
def test_one_account_leaves_a_job_to_others_though_nobody_asks(num_jobs):
    waiting = [job(f"a{n}", f"brand-{n}", account_id="many") for n in range(9)]
    begin, wait = told(waiting, bounds=Bounds(num_jobs, 9))
    assert len(begin) == num_jobs - 1
    assert set(wait.values()) == {"platform"}
    assert told([job("b1", "bolt")], running=waiting[: num_jobs - 1], bounds=Bounds(num_jobs, 9)) == (["b1"], {})


def test_a_platform_for_one_job_gives_it_to_whoever_asks():
    assert told([job("a1"), job("a2")], bounds=Bounds(1, 9)) == (["a1"], {"a2": "platform"})


def test_a_brand_alone_in_its_account_is_told_that_it_waits_for_itself():
    assert told([job("a1"), job("a2")], bounds=Bounds(2, 9)) == (["a1"], {"a2": "brand"})


def test_one_account_leaves_a_worker_to_others():
    waiting = [job("a1", num_workers=2), job("a2", "bolt", num_workers=2), job("a3", "bolt", num_workers=1)]
    large = [each.model_copy(update={"account_id": "many"}) for each in waiting]
    begin, wait = told(large, bounds=Bounds(9, 9), capacity=Capacity(4, 4, 4))
    assert (begin, wait) == (["a1", "a3"], {"a2": "platform"})


def test_a_job_that_needs_all_machines_begins_when_it_is_the_accounts_first():
    assert told([job("a1", num_workers=4)], capacity=Capacity(4, 4, 4)) == (["a1"], {})


def test_the_operators_numbers_go_before_the_room_for_others():
    begin, _ = told([job(f"a{n}") for n in range(4)], bounds=Bounds(4, 9, 4), capacity=Capacity(4, 4, 4))
    assert len(begin) == 4
    begin, _ = told([job(f"a{n}", max_running=4) for n in range(4)], bounds=Bounds(4, 2))
    assert len(begin) == 4


def test_an_accounts_turn_comes_once_however_many_brands_it_has():
    waiting = [job(f"a{n}", f"brand-{n}", account_id="many") for n in range(5)] + [
        job("b1", "bolt"),
        job("b2", "bolt"),
    ]
    order = [each.job_id for each in fair_order(waiting, [])]
    assert order == ["a0", "b1", "a1", "b2", "a2", "a3", "a4"]


def test_the_brands_of_an_account_take_turns():
    large = {"account_id": "many"}
    waiting = [job("a1", "acme", **large), job("a2", "acme", **large), job("b1", "bolt", **large)]
    assert [each.job_id for each in fair_order(waiting, [])] == ["a1", "b1", "a2"]
