"""Routing of requests: home replicas, bounded work, queues against cache misses, hot adapters, reports of replicas."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from onbrand.engine.decayed_counts import DecayedCounts
from onbrand.serving.placement import Placement, PlacementOptions, below_bound, rendezvous

REPLICAS = [f"replica-{n}" for n in range(8)]
IDLE = dict.fromkeys(REPLICAS, 0.0)
FULL = PlacementOptions().capacity


def ids(num: int) -> list[str]:
    return [f"{n:024x}" for n in range(num)]


def send(placement: Placement, routing_id: str, loads: dict[str, float], now: float = 0.0) -> str:
    """Send the request; returns its replica."""
    chosen = placement.ranked(routing_id, loads, now)[0]
    placement.sent(routing_id, chosen, now)
    return chosen


def test_routers_agree_without_a_word():
    for routing_id in ids(50):
        assert len({Placement().ranked(routing_id, IDLE, 0.0)[0] for _ in range(3)}) == 1
        assert rendezvous(routing_id, REPLICAS) == rendezvous(routing_id, reversed(REPLICAS))


def test_homes_are_spread_over_all_replicas():
    homes = Counter(rendezvous(routing_id, REPLICAS)[0] for routing_id in ids(4000))
    assert min(homes.values()) > 400
    assert max(homes.values()) < 600


def test_a_replica_that_leaves_moves_only_its_own_adapters():
    for routing_id in ids(300):
        before, after = rendezvous(routing_id, REPLICAS), rendezvous(routing_id, REPLICAS[1:])
        assert [name for name in before if name != REPLICAS[0]] == after


def test_every_replica_is_named_once():
    loads = {name: float(n * 3) for n, name in enumerate(REPLICAS)}
    placement = Placement()
    for routing_id in ["", *ids(40)] * 3:
        assert sorted(placement.ranked(routing_id, loads, 0.0)) == REPLICAS
        send(placement, routing_id, loads)


def test_the_base_goes_to_the_least_loaded():
    loads = IDLE | {name: 3.0 for name in REPLICAS if name != "replica-5"}
    assert Placement().ranked("", loads, 0.0)[0] == "replica-5"


def test_an_adapter_stays_at_home_while_rows_are_free_there():
    placement = Placement()
    (routing_id,) = ids(1)
    home = send(placement, routing_id, IDLE)
    assert [send(placement, routing_id, IDLE | {home: float(n)}) for n in range(FULL)] == [home] * FULL


def test_a_home_with_its_rows_taken_and_its_share_had_sends_on():
    placement = Placement()
    (routing_id,) = ids(1)
    home = send(placement, routing_id, IDLE)
    for _ in range(20):
        placement.sent(routing_id, home, 0.0)
    second = send(placement, routing_id, IDLE | {home: float(FULL)})
    assert second != home
    assert second == rendezvous(routing_id, REPLICAS)[1]


def test_a_short_line_at_home_is_better_than_a_fetch_elsewhere():
    placement = Placement()
    routing_id, *others = ids(200)
    for other in others:
        send(placement, other, IDLE)
    home = rendezvous(routing_id, REPLICAS)[0]
    placement.publish(home, [routing_id])
    assert placement.ranked(routing_id, IDLE | {home: FULL - 1.0}, 0.0)[0] == home


def test_a_long_line_at_home_is_not():
    placement = Placement()
    (routing_id,) = ids(1)
    home, second = rendezvous(routing_id, REPLICAS)[:2]
    placement.publish(home, [routing_id])
    assert placement.ranked(routing_id, IDLE | {home: 60.0}, 0.0)[0] == second


def test_of_replicas_that_would_miss_the_one_with_it_in_memory_is_better():
    placement = Placement(PlacementOptions(away_cost=0.0))
    (routing_id,) = ids(1)
    home, second = rendezvous(routing_id, REPLICAS)[:2]
    assert placement.ranked(routing_id, IDLE | {second: 1.0}, 0.0)[0] == home
    placement.publish(second, [], [routing_id])
    assert placement.ranked(routing_id, IDLE | {second: 1.0}, 0.0)[0] == second


def test_a_replica_that_told_it_lost_the_adapter_is_no_longer_believed_to_have_it():
    options = PlacementOptions(away_cost=0.25, believed_seconds=5.0)
    placement = Placement(options)
    (routing_id,) = ids(1)
    home, _, third = rendezvous(routing_id, REPLICAS)[:3]
    placement.publish(third, [routing_id])
    assert placement.ranked(routing_id, IDLE | {home: 1.0}, 0.0)[0] == third
    placement.publish(third, [])
    assert placement.ranked(routing_id, IDLE | {home: 1.0}, 0.0)[0] == home


def test_what_was_just_sent_is_believed_before_it_is_published():
    placement = Placement(PlacementOptions(away_cost=0.25, believed_seconds=5.0, hot_share=100.0))
    (routing_id,) = ids(1)
    home, _, third = rendezvous(routing_id, REPLICAS)[:3]
    placement.sent(routing_id, third, 10.0)
    placement.publish(third, [])  # told before the request came
    assert placement.ranked(routing_id, IDLE | {home: 1.0}, 12.0)[0] == third
    assert placement.ranked(routing_id, IDLE | {home: 1.0}, 16.0)[0] == home


def test_a_replica_that_is_gone_is_forgotten():
    placement = Placement(PlacementOptions(away_cost=0.0))
    (routing_id,) = ids(1)
    home, second = rendezvous(routing_id, REPLICAS)[:2]
    placement.publish(second, [routing_id])
    placement.keep_only({home})
    assert placement.ranked(routing_id, IDLE, 0.0)[0] == home


def test_a_hot_adapter_gets_more_homes_with_its_traffic_and_loses_them_again():
    placement = Placement(PlacementOptions(half_life=10.0))
    hot, *others = ids(400)
    for n, other in enumerate(others):
        placement.sent(other, REPLICAS[n % 8], 0.0)
    homes = [placement.num_homes(hot, 8)]
    for _ in range(4):
        for _ in range(60):
            placement.sent(hot, REPLICAS[0], 0.0)
        homes.append(placement.num_homes(hot, 8))
    assert homes == sorted(homes)
    assert (homes[0], homes[-1]) == (1, 7)
    for n, other in enumerate(others * 2):
        placement.sent(other, REPLICAS[n % 8], 60.0)
    assert placement.num_homes(hot, 8) == 1


def test_there_is_always_one_below_the_bound():
    dice = random.Random(4)
    for _ in range(2000):
        loads = {name: float(dice.choice((0, 1, 2, 5, 40))) for name in REPLICAS[: dice.randint(1, 8)]}
        assert below_bound(loads, dice.choice((1.0, 1.25, 2.0)))


@pytest.mark.parametrize("routers", [1, 3])
def test_no_replica_gets_more_than_the_bound_when_all_have_their_rows_taken(routers):
    """Each router bounds what it sends itself, and so the sum: also of traffic that would all go to one home."""
    placements = [Placement(PlacementOptions(half_life=1e6)) for _ in range(routers)]
    busy = dict.fromkeys(REPLICAS, float(FULL))
    skewed = [routing_id for routing_id in ids(4000) if rendezvous(routing_id, REPLICAS)[0] == "replica-3"]
    dice, served = random.Random(5), Counter()
    for _ in range(4000):
        served[send(dice.choice(placements), dice.choice(skewed), busy)] += 1
    assert max(served.values()) <= 1.25 * 4000 / 8 + 2 * routers


def test_usage_counts_older_uses_less():
    usage: DecayedCounts[str] = DecayedCounts(half_life=10.0)
    usage.count("a", 0.0)
    usage.count("b", 10.0)
    assert usage.of("a") == pytest.approx(0.5)
    assert usage.share("b") == pytest.approx(2 / 3)
    assert usage.total == pytest.approx(1.5)


def test_usage_stays_finite_and_bounded():
    usage: DecayedCounts[int] = DecayedCounts(half_life=1.0, max_names=100)
    for n in range(5000):
        usage.count(n % 700, float(n))
    usage.count(1, 1e9)
    assert usage.of(1) == pytest.approx(1.0)
    assert usage.total == pytest.approx(1.0)
    assert len(usage._counts) <= 101
