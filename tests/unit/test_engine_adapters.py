"""Residency and the host cache: holders, eviction, and one load for any number of waiting requests."""

from __future__ import annotations

import gc
import random
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
import torch
from torch import nn

from onbrand.adapter import combined_sha256, routing_id
from onbrand.engine.adapters import AdapterKey, AdapterUse, merge_adapters
from onbrand.engine.host_cache import HostCache
from onbrand.engine.residency import AdapterResidency, Lease
from onbrand.engine.slots import Slots
from onbrand.errors import AdapterRefused, NotAsPublished, NotFound
from onbrand.families.lora import AdapterWeights, LayerWeights


def weights(rank: int = 4, value: float = 1.0) -> AdapterWeights:
    return AdapterWeights({"0": LayerWeights(torch.full((rank, 6), value), torch.ones(5, rank))}, rank, {})


def key(name: str, brand: str = "acme") -> AdapterKey:
    return AdapterKey(brand, name)


@pytest.fixture
def residency() -> AdapterResidency:
    return AdapterResidency(Slots(nn.Sequential(nn.Linear(6, 5)).requires_grad_(False), num_slots=2))


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


class Clock:
    """A clock that a test advances."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def house(num_slots: int) -> tuple[AdapterResidency, Clock]:
    clock = Clock()
    return AdapterResidency(Slots(nn.Sequential(nn.Linear(6, 5)).requires_grad_(False), num_slots), clock), clock


def use(residency: AdapterResidency, *keys: AdapterKey, quota: int | None = None) -> None:
    """Hold each adapter for a moment."""
    for each in keys:
        lease = residency.pin(each, weights(), quota)
        assert lease is not None
        residency.unpin(lease)


def brands(residency: AdapterResidency) -> list[str]:
    return sorted(each.brand_id for each in residency.resident)


def test_adapters_that_are_used_now_and_then_do_not_flush_those_in_daily_use():
    residency, _ = house(4)
    daily = [key(f"daily-{n}") for n in range(3)]
    for _ in range(4):
        use(residency, *daily)
    use(residency, *(key(f"once-{n}") for n in range(20)))
    assert set(daily) <= set(residency.resident)


def test_what_is_no_longer_in_daily_use_goes():
    residency, _ = house(2)
    for _ in range(10):
        use(residency, key("old"))
    for _ in range(200):
        use(residency, key("new"), key("newer"))
    assert set(residency.resident) == {key("new"), key("newer")}


def test_a_brand_borrows_slots_that_nobody_needs():
    residency, _ = house(4)
    assert [residency.pin(key(f"a{n}"), weights(), quota=2) for n in range(4)].count(None) == 0


def test_borrowed_slots_go_first():
    residency, _ = house(4)
    use(residency, key("g0", "globex"), quota=2)
    for _ in range(3):
        use(residency, *(key(f"a{n}") for n in range(3)), quota=1)  # used more than GLOBEX's, and two above the quota
    use(residency, key("i0", "initech"), quota=2)
    use(residency, key("i1", "initech"), quota=2)
    assert brands(residency) == ["acme", "globex", "initech", "initech"]


def test_one_brands_many_adapters_do_not_flush_the_others():
    residency, _ = house(4)
    use(residency, key("g0", "globex"), key("g1", "globex"), quota=2)
    use(residency, *(key(f"a{n}") for n in range(30)), quota=2)
    assert brands(residency) == ["acme", "acme", "globex", "globex"]


def test_a_brand_within_its_quota_takes_any_slot_that_nobody_holds():
    residency, _ = house(2)
    use(residency, key("a0"), key("a1"), quota=None)
    use(residency, key("g0", "globex"), quota=1)
    assert "globex" in brands(residency)


def test_a_brand_at_its_quota_gets_a_slot_that_nobody_used_for_long():
    residency, clock = house(2)
    use(residency, key("g0", "globex"), quota=2)
    held = residency.pin(key("a0"), weights(), quota=1)
    assert residency.pin(key("a1"), weights(), quota=1) is None
    clock.now = 3600.0
    assert residency.pin(key("a1"), weights(), quota=1) is not None
    residency.unpin(held)


def test_quotas_are_counted_in_each_rank_class():
    residency, _ = house(2)
    use(residency, key("g0", "globex"), key("g1", "globex"), quota=2)
    residency.unpin(residency.pin(key("a-wide"), weights(rank=32), quota=1))
    assert residency.pin(key("a0"), weights(), quota=1) is not None


def test_who_waits_gets_the_borrowed_slot_although_it_is_always_in_use():
    residency, _ = house(2)
    residency.pin(key("a0"), weights(), quota=1)
    borrowed = residency.pin(key("a1"), weights(), quota=1)
    waiting = key("g0", "globex")
    assert residency.pin(waiting, weights(), quota=1) is None
    (drained,) = [each for each in (key("a0"), key("a1")) if residency.pin(each, weights(), quota=1) is None]
    assert drained == key("a0")  # seated longest of a brand above its quota
    assert residency.pin(waiting, weights(), quota=1) is None
    residency.unpin(next(lease for lease in residency._leases.values() if lease.key == drained))
    assert residency.pin(key("h0", "hooli"), weights(), quota=1) is None  # it is kept for who came first
    assert residency.pin(waiting, weights(), quota=1) is not None
    assert residency.num_pins(borrowed.key) == 2


def test_more_hot_adapters_than_slots_take_turns():
    """Each is wanted all the time and held for three rounds: without turns the first two would never leave."""
    residency, _ = house(2)
    hot = [key(f"hot-{n}") for n in range(3)]
    held: list[tuple[int, Lease]] = []
    turns = dict.fromkeys(hot, 0)
    for now in range(300):
        for until, lease in [each for each in held if each[0] <= now]:
            residency.unpin(lease)
            held.remove((until, lease))
        for each in hot:
            lease = residency.pin(each, weights())
            if lease is not None:
                held.append((now + 3, lease))
                turns[each] += 1
    assert min(turns.values()) > 60


def test_who_no_longer_waits_leaves_the_slot_to_its_adapter():
    residency, _ = house(1)
    residency.pin(key("a"), weights())
    assert residency.pin(key("b"), weights()) is None
    assert residency.pin(key("a"), weights()) is None
    residency.withdraw(key("b"))
    assert residency.pin(key("a"), weights()) is not None


def test_a_claim_that_is_not_renewed_lapses():
    residency, clock = house(1)
    residency.pin(key("a"), weights())
    assert residency.pin(key("b"), weights()) is None
    clock.now = 60.0
    assert residency.pin(key("a"), weights()) is not None


def test_a_brand_at_its_quota_drains_its_own_slot_and_no_others():
    residency, _ = house(2)
    residency.pin(key("g0", "globex"), weights(), quota=2)
    residency.pin(key("a0"), weights(), quota=1)
    assert residency.pin(key("a1"), weights(), quota=1) is None
    assert residency.pin(key("g0", "globex"), weights(), quota=2) is not None
    assert residency.pin(key("a0"), weights(), quota=1) is None


def test_a_slot_that_could_not_be_written_is_free_again(monkeypatch):
    slots = Slots(nn.Sequential(nn.Linear(6, 5)).requires_grad_(False), 1)
    residency = AdapterResidency(slots)

    def broken(*_: object) -> int:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(slots, "write", broken)
        with pytest.raises(MemoryError):
            residency.pin(key("a"), weights())
    assert residency.holdings() == []
    assert residency.pin(key("a"), weights()) is not None


@pytest.mark.parametrize(("broken", "problem"), [("allocating", ZeroDivisionError), ("copying", NotImplementedError)])
def test_an_adapter_that_breaks_off_half_way_takes_nothing_from_its_neighbours(monkeypatch, broken, problem):
    """No memory at the second of three layers: the slot is free again and clean, others are drawn as before."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)).requires_grad_(False)
    slots = Slots(base, 2)
    residency = AdapterResidency(slots)

    def of(*names: str) -> AdapterWeights:
        return AdapterWeights({n: LayerWeights(torch.randn(4, 6), torch.randn(6, 4)) for n in names}, 4, {})

    def seen(lease: Lease) -> torch.Tensor:
        with slots.bind([lease.row(1.0)]):
            return base(torch.ones(1, 6))

    neighbour = residency.pin(key("a"), of("2") if broken == "allocating" else of("0", "1", "2"))
    before = seen(neighbour)
    weights_of_three = of("0", "1", "2")
    if broken == "copying":
        layers = weights_of_three.layers
        layers["1"] = LayerWeights(layers["1"].a, torch.empty(6, 4, device="meta"))  # there is nothing to copy
    with monkeypatch.context() as patched:
        if broken == "allocating":
            real = slots._stack
            patched.setattr(
                slots, "_stack", lambda group, size, name: 1 / 0 if name == "1" else real(group, size, name)
            )
        with pytest.raises(problem):
            residency.pin(key("b"), weights_of_three)
    assert torch.equal(seen(neighbour), before)
    small = AdapterWeights({"0": LayerWeights(torch.ones(1, 6), torch.ones(6, 1))}, 1, {})
    lease = residency.pin(key("c"), small)
    assert lease is not None
    torch.testing.assert_close(seen(lease), base[2](base[1](base[0](torch.ones(1, 6)) + 6.0)))


def test_a_replica_publishes_digests_of_what_is_in_slots():
    residency, _ = house(2)
    use(residency, key("a"), key("b"), key("c"))
    assert residency.holdings() == [each.routing_id for each in residency.resident]
    assert residency.holdings() == [routing_id("acme", each.sha256) for each in residency.resident]
    assert not any("acme" in told or told == "a" for told in residency.holdings())


def test_whatever_happens_slots_and_leases_agree():
    """Random pins, unpins and withdrawals: quotas hold, nothing held is lost, every lease's slot is still its own."""
    dice = random.Random(11)
    for _ in range(30):
        residency, clock = house(dice.randint(1, 5))
        held: list[Lease] = []
        keys = [key(f"{n}", f"brand-{n % 3}") for n in range(9)]
        for _ in range(200):
            clock.now += dice.random()
            match dice.choice(("pin", "pin", "unpin", "withdraw")):
                case "pin":
                    lease = residency.pin(dice.choice(keys), weights(), quota=dice.choice((None, 1, 2)))
                    held += [lease] if lease else []
                case "unpin" if held:
                    residency.unpin(held.pop(dice.randrange(len(held))))
                case _:
                    residency.withdraw(dice.choice(keys))
            assert {lease.key for lease in held} <= set(residency.resident)
            assert all(residency._slots.version(lease.slot) == lease.version for lease in held)
            places = [lease.slot for lease in residency._leases.values()]
            assert len(places) == len(set(places)) <= residency._slots.num_slots
            assert sum(residency.num_pins(each) for each in keys) == len(held)


def test_adapters_add_up_by_concatenated_ranks():
    one, two = AdapterUse(key("a"), weights(2, 3.0), 0.5), AdapterUse(key("b"), weights(3, 1.0), -1.0)
    both = merge_adapters([one, two])
    layer = both.weights.layers["0"]
    expected = 0.5 * torch.ones(5, 2) @ torch.full((2, 6), 3.0) - torch.ones(5, 3) @ torch.ones(3, 6)
    torch.testing.assert_close(layer.b @ layer.a, expected)
    assert (both.weights.rank, both.scale) == (5, 1.0)


def test_several_adapters_go_by_one_id_that_depends_on_their_scales():
    one, two = AdapterUse(key("a"), weights(2), 0.5), AdapterUse(key("b"), weights(3), -1.0)
    assert merge_adapters([one, two]).key == key(combined_sha256([("a", 0.5), ("b", -1.0)]))
    assert merge_adapters([one]).key == key(combined_sha256([("a", 2.0)])) == key("a")
    assert combined_sha256([("a", 1), ("b", 1)]) == combined_sha256([("a", 1.0), ("b", 1.0)])
    assert combined_sha256([("a", 1), ("b", 2)]) != combined_sha256([("a", 2), ("b", 1)])


def test_adapters_of_different_brands_never_add_up():
    with pytest.raises(AdapterRefused, match="different brands"):
        merge_adapters([AdapterUse(key("a"), weights()), AdapterUse(key("b", "globex"), weights())])


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


def test_a_remembered_refusal_holds_nothing_of_those_it_was_told():
    cache, kept = HostCache(2**20), []

    class Bytes:
        pass

    def refuse() -> AdapterWeights:
        data = Bytes()
        kept.append(weakref.ref(data))
        raise AdapterRefused("not for this base", param="model")

    def lengths() -> list[int]:
        with pytest.raises(AdapterRefused) as told:
            cache.get(key("a"), refuse)
        assert told.value.param == "model"
        return len(traceback.extract_tb(told.value.__traceback__))

    lengths()
    gc.collect()
    assert [each() for each in kept] == [None]
    assert len({lengths() for _ in range(5)}) == 1


def test_what_only_the_store_has_wrong_is_looked_at_again():
    cache = HostCache(2**20)

    def changed() -> AdapterWeights:
        raise NotAsPublished("the weights are not those that were published")

    with pytest.raises(NotAsPublished):
        cache.get(key("a"), changed)
    assert cache.get(key("a"), weights) is not None


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
