"""A run that is out of memory is retried once with the next thrifty setting; other failures are not retried."""

from __future__ import annotations

from typing import Any

import pytest
import ray.train
import torch

from onbrand.training.ray.oom_retry import fit_within_memory


class Row:
    """The job's row, as the driver uses it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.failed: list[str] = []

    def report(self, lines: list[dict[str, Any]]) -> None:
        self.said += [line["code"] for line in lines]

    def fail(self, code: str, message: str) -> None:
        self.failed.append(code)


def fitted(*outcomes: object) -> tuple[Row, list[int], object]:
    """The result of runs that end like this, one after the other."""
    row, tries, left = Row(), [], list(outcomes)

    def fit(steps_down: int) -> Any:
        tries.append(steps_down)
        outcome = left.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return row, tries, fit_within_memory(row, fit)  # type: ignore[arg-type]


def died(*failures: Exception) -> ray.train.WorkerGroupError:
    return ray.train.WorkerGroupError("workers died", dict(enumerate(failures)))


def test_a_run_that_fits_is_tried_once():
    row, tries, outcome = fitted("completed")
    assert (row.said, row.failed, tries, outcome) == ([], [], [0], "completed")


def test_a_run_that_all_workers_left_for_lack_of_memory_is_tried_one_step_down():
    row, tries, outcome = fitted("out_of_memory", "completed")
    assert (row.said, row.failed, tries, outcome) == (["out_of_memory"], [], [0, 1], "completed")


def test_so_is_one_whose_worker_died_of_it_while_the_others_lost_their_connection():
    lost = RuntimeError("Connection closed by peer")
    _, tries, outcome = fitted(died(lost, torch.OutOfMemoryError("CUDA out of memory")), "completed")
    assert (tries, outcome) == ([0, 1], "completed")


def test_a_second_lack_of_memory_ends_the_job():
    row, tries, outcome = fitted("out_of_memory", died(MemoryError()))
    assert (row.failed, tries, outcome) == (["out_of_memory"], [0, 1], "failed")


def test_another_failure_is_not_tried_again():
    with pytest.raises(ray.train.TrainingFailedError):
        fitted(died(ValueError("broken")))
