"""Preemption of a node: all workers ask for it together, at intervals, and the run's state is saved."""

from __future__ import annotations

from ray.train import PreemptionInfo

from onbrand.training.ray.preemption import PreemptionWatcher


def leaving(*nodes: str) -> PreemptionInfo:
    return PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={node: [0] for node in nodes})


def test_only_a_node_that_was_not_named_before_is_news():
    told = iter([None, leaving("a"), leaving("a"), leaving("a", "b")])
    preemption = PreemptionWatcher(lambda: next(told), interval=0)
    assert [preemption.heard() for _ in range(4)] == [False, True, False, True]


def test_it_is_time_to_ask_when_the_last_answer_is_old():
    preemption = PreemptionWatcher(lambda: None, interval=1000)
    assert not preemption.due
    assert PreemptionWatcher(lambda: None, interval=0).due
