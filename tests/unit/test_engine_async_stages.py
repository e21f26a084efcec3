"""Work beside the engine's thread: results and errors return to the thread in order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from onbrand.engine.async_stages import Stages


def broken() -> None:
    raise ValueError("no")


def test_without_an_executor_work_is_done_at_once_and_in_order():
    stages, order = Stages(None), []
    stages.submit(lambda: order.append("first"), lambda done: "told first")
    stages.submit(lambda: order.append("second"), lambda done: "told second")
    assert order == ["first", "second"]
    assert list(stages.outcomes()) == ["told first", "told second"]


def test_nothing_is_told_before_it_is_asked_for():
    stages, told = Stages(None), []
    stages.submit(lambda: 1, told.append)
    assert (told, stages.num_out, stages.has_outcomes) == ([], 1, True)
    list(stages.outcomes())
    assert ([future.result() for future in told], stages.num_out, stages.has_outcomes) == ([1], 0, False)


@pytest.mark.parametrize("threads", [0, 1])
def test_what_the_work_raised_is_the_outcome(threads):
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        stages = Stages(pool if threads else None, done.set)
        stages.submit(broken, lambda outcome: type(outcome.exception()))
        assert done.wait(10)
        assert list(stages.outcomes()) == [ValueError]


def test_work_of_an_executor_keeps_no_gradients_and_wakes_who_waits():
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        stages = Stages(pool, done.set)
        stages.submit(torch.is_inference_mode_enabled, lambda outcome: outcome.result())
        assert done.wait(10)
        assert list(stages.outcomes()) == [True]


def test_work_submitted_while_outcomes_are_taken_is_told_as_well():
    stages = Stages(None)
    stages.submit(lambda: 1, lambda first: stages.submit(lambda: 2, lambda second: "second"))
    assert list(stages.outcomes()) == [None, "second"]
