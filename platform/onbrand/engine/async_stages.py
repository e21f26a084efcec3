"""Run text encoding and image decoding in the step itself, or in an executor beside the denoising loop."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Stages(Generic[T]):
    """Runs work that the engine's thread submits; that thread takes the outcomes.

    Args:
        executor: if None, work runs at once, in the order of submission.
        on_done: called in any thread when an outcome is ready.
    """

    def __init__(self, executor: Executor | None, on_done: Callable[[], object] = lambda: None) -> None:
        self._executor, self._on_done = executor, on_done
        self._done: queue.SimpleQueue[tuple[Future[Any], Callable[[Future[Any]], T]]] = queue.SimpleQueue()
        self._num_out = 0

    @property
    def num_out(self) -> int:
        """Submitted work whose outcome was not taken yet."""
        return self._num_out

    @property
    def has_outcomes(self) -> bool:
        return not self._done.empty()

    def submit(self, work: Callable[[], Any], then: Callable[[Future[Any]], T]) -> None:
        """Run `work`; `outcomes` then yields `then(future)`."""
        self._num_out += 1
        if self._executor is None:
            future: Future[Any] = Future()
            try:
                future.set_result(work())
            except Exception as problem:
                future.set_exception(problem)
        else:
            future = self._executor.submit(_without_gradients, work)
        future.add_done_callback(lambda done: self._put_outcome(done, then))

    def outcomes(self) -> Iterator[T]:
        """The ready outcomes, in order of completion."""
        while not self._done.empty():
            future, then = self._done.get()
            self._num_out -= 1
            yield then(future)

    def _put_outcome(self, done: Future[Any], then: Callable[[Future[Any]], T]) -> None:
        self._done.put((done, then))
        self._on_done()


def _without_gradients(work: Callable[[], Any]) -> Any:
    """Run `work` in inference mode, which is set per thread."""
    with torch.inference_mode():
        return work()
