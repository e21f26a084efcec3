"""Retries a run that ran out of memory once, with more memory savings, from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ray.train

from onbrand.internal.client import SystemClient
from onbrand.training.ray.worker import Outcome

OUT_OF_MEMORY = "the machine's memory is not enough for this job; lower batch_size, rank or resolution and retry"


def fit_within_memory(client: SystemClient, fit: Callable[[int], Outcome | None]) -> Outcome | None:
    """The outcome of `fit`, with a second try if the first one ran out of memory.

    Args:
        fit: does the whole run from its last checkpoint; takes the number of memory-saving levels to go down.
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
    """`fit`'s outcome; "out_of_memory" also if a worker died of it, whatever errors that caused on the others."""
    try:
        return fit(steps_down)
    except ray.train.TrainingFailedError as problem:
        if any(is_out_of_memory(cause) for cause in causes_of(problem)):
            return "out_of_memory"
        raise


def is_out_of_memory(cause: BaseException) -> bool:
    """True if the error's class name says that memory ran out."""
    return type(cause).__name__ in ("OutOfMemoryError", "MemoryError", "RanOutOfMemory")


def causes_of(problem: BaseException) -> Iterator[BaseException]:
    """The root errors. Ray Train wraps each worker's exception in its own error, and keeps these by rank."""
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
    """The first root error."""
    return next(causes_of(problem))
