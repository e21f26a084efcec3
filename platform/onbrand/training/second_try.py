"""A run that goes out of memory is tried once more, one step more thrifty, from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ray.train

from onbrand.system_client import SystemClient
from onbrand.training.worker import Outcome

OUT_OF_MEMORY = "the machine's memory is not enough for this job; lower batch_size, rank or resolution and retry"


def fit_within_memory(client: SystemClient, fit: Callable[[int], Outcome | None]) -> Outcome | None:
    """What `fit` comes to, with a second try where the first one ran out of memory.

    Args:
        fit: the whole run, so many steps down; goes on from the last checkpoint of the run before.
    """
    outcome = _outcome(fit, 0)
    if outcome == "out_of_memory":
        client.report(lines=[{"code": "out_of_memory", "facts": {}}])
        outcome = _outcome(fit, 1)
    if outcome == "out_of_memory":
        client.fail("out_of_memory", OUT_OF_MEMORY)
        return "failed"
    return outcome


def _outcome(fit: Callable[[int], Outcome | None], steps_down: int) -> Outcome | None:
    """Workers agree on it where they can; where one died of it, the others' errors are its consequence."""
    try:
        return fit(steps_down)
    except ray.train.TrainingFailedError as problem:
        if any(is_out_of_memory(cause) for cause in causes_of(problem)):
            return "out_of_memory"
        raise


def is_out_of_memory(cause: BaseException) -> bool:
    return type(cause).__name__ in ("OutOfMemoryError", "MemoryError", "RanOutOfMemory")


def causes_of(problem: BaseException) -> Iterator[BaseException]:
    """The errors at the root of it: Ray Train wraps each worker's exception in its own, and keeps them by rank."""
    failures = getattr(problem, "worker_failures", None)
    if failures:
        for failure in failures.values():
            yield from causes_of(failure)
        return
    inner = getattr(problem, "_base_exc", None) or getattr(problem, "controller_failure", None)
    inner = inner or getattr(problem, "cause", None)
    if isinstance(inner, BaseException):
        yield from causes_of(inner)
        return
    yield problem


def root_of(problem: BaseException) -> BaseException:
    """The error that began it."""
    return next(causes_of(problem))
