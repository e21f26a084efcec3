"""Residency and the host cache: who holds what, what is evicted, one load however many wait."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
import torch
from torch import nn

from onbrand.engine.adapters import AdapterKey, AdapterUse, HostCache, Residency, composed
from onbrand.engine.slots import Slots
from onbrand.errors import AdapterRefused, NotFound
from onbrand.families.lora import AdapterWeights, LayerWeights


def weights(rank: int = 4, value: float = 1.0) -> AdapterWeights:
    return AdapterWeights({"0": LayerWeights(torch.full((rank, 6), value), torch.ones(5, rank))}, rank, {})


def key(name: str, brand: str = "acme") -> AdapterKey:
    return AdapterKey(brand, name)


@pytest.fixture
def residency() -> Residency:
    return Residency(Slots(nn.Sequential(nn.Linear(6, 5)).requires_grad_(False), num_slots=2))


def test_an_adapter_in_use_is_never_evicted(residency):
    residency.pin(key("a"), weights())
    residency.pin(key("b"), weights())
    assert residency.pin(key("c"), weights()) is None
    assert residency.resident == [key("a"), key("b")]


def test_the_least_recently_used_of_those_nobody_holds_makes_room(residency):
    a, b = residency.pin(key("a"), weights()), residency.pin(key("b"), weights())
    residency.unpin(a)
    residency.unpin(b)
    residency.unpin(residency.pin(key("a"), weights()))
    residency.pin(key("c"), weights())
    assert residency.resident == [key("a"), key("c")]


def test_every_pin_needs_its_unpin(residency):
    first, _ = residency.pin(key("a"), weights()), residency.pin(key("a"), weights())
    residency.unpin(first)
    assert residency.num_pins(key("a")) == 1
    residency.pin(key("b"), weights())
    assert residency.pin(key("c"), weights()) is None


def test_a_resident_adapter_is_not_written_again(residency):
    first = residency.pin(key("a"), weights())
    residency.unpin(first)
    assert residency.pin(key("a"), weights()) == first


def test_an_adapter_of_another_rank_class_evicts_nobody(residency):
    for name in "ab":
        residency.unpin(residency.pin(key(name), weights()))
    residency.pin(key("wide"), weights(rank=32))
    assert residency.resident == [key("a"), key("b"), key("wide")]


def test_an_adapter_that_does_not_fit_disturbs_no_slot(residency):
    for name in "ab":
        residency.unpin(residency.pin(key(name), weights()))
    strange = AdapterWeights({"attic": weights().layers["0"]}, 4, {})
    with pytest.raises(AdapterRefused):
        residency.pin(key("c"), strange)
    assert residency.resident == [key("a"), key("b")]


def test_the_same_file_of_two_brands_is_two_adapters(residency):
    ours = residency.pin(key("a", "acme"), weights())
    theirs = residency.pin(key("a", "globex"), weights())
    assert ours.slot != theirs.slot


def test_adapters_add_up_by_concatenated_ranks():
    one, two = AdapterUse(key("a"), weights(2, 3.0), 0.5), AdapterUse(key("b"), weights(3, 1.0), -1.0)
    both = composed([one, two])
    layer = both.weights.layers["0"]
    expected = 0.5 * torch.ones(5, 2) @ torch.full((2, 6), 3.0) - torch.ones(5, 3) @ torch.ones(3, 6)
    torch.testing.assert_close(layer.b @ layer.a, expected)
    assert (both.weights.rank, both.scale) == (5, 1.0)


def test_adapters_of_different_brands_never_add_up():
    with pytest.raises(AdapterRefused, match="different brands"):
        composed([AdapterUse(key("a"), weights()), AdapterUse(key("b", "globex"), weights())])


def test_however_many_wait_there_is_one_load():
    cache, started, release, num_loads = HostCache(2**20), Event(), Event(), []

    def load() -> AdapterWeights:
        num_loads.append(1)
        started.set()
        release.wait(10)
        return weights()

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(cache.get, key("a"), load) for _ in range(4)]
        assert started.wait(10)
        release.set()
        assert len({id(future.result(10)) for future in waiting}) == 1
    assert len(num_loads) == 1


def test_loads_of_different_adapters_overlap():
    cache, both_here = HostCache(2**20), Barrier(2, timeout=10)

    def load() -> AdapterWeights:
        both_here.wait()
        return weights()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(cache.get, key(name), load) for name in "ab"]:
            future.result(10)


def test_a_refused_file_is_remembered():
    cache = HostCache(2**20)

    def refuse() -> AdapterWeights:
        raise AdapterRefused("not for this base")

    with pytest.raises(AdapterRefused):
        cache.get(key("a"), refuse)
    with pytest.raises(AdapterRefused, match="not for this base"):
        cache.get(key("a"), weights)


def test_one_brands_failed_load_is_not_anothers():
    cache = HostCache(2**20)

    def refuse() -> AdapterWeights:
        raise AdapterRefused("not for this base")

    with pytest.raises(AdapterRefused):
        cache.get(key("a", "globex"), refuse)
    assert cache.get(key("a", "acme"), weights).rank == 4


def test_a_load_that_failed_for_another_reason_is_tried_again():
    cache = HostCache(2**20)

    def lost() -> AdapterWeights:
        raise NotFound("gone")

    with pytest.raises(NotFound):
        cache.get(key("a"), lost)
    assert cache.get(key("a"), weights).rank == 4


def test_who_waited_for_a_load_that_failed_loads_with_their_own_ticket():
    cache, started, release = HostCache(2**20), Event(), Event()

    def fails_late() -> AdapterWeights:
        started.set()
        release.wait(10)
        raise NotFound("this ticket's generation is gone")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, key("a"), fails_late)
        assert started.wait(10)
        second = pool.submit(cache.get, key("a"), weights)
        release.set()
        assert second.result(10).rank == 4
        assert isinstance(first.exception(10), NotFound)


def test_the_least_recently_used_leaves_host_memory_first():
    size = weights().num_bytes
    cache, loads = HostCache(2 * size), []

    def loader(name):
        def load() -> AdapterWeights:
            loads.append(name)
            return weights()

        return load

    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get(key(name), loader(name))
    assert loads == ["a", "b", "c", "b"]
