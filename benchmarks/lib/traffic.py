"""Traffic for an engine in simulated time, so that other load on the machine does not affect results.

The engine, its steps, its encoding and its decoding are real. A `World`'s clock advances by the processor time of its
engine's thread. Encoding and decoding run in `Workers`, whose processor time is counted separately, as if they had
their own cores. Worlds under comparison run in turns, step by step.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lib.workload import random_adapter
from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.batch import default_batch_sizes
from onbrand.engine.engine import Engine
from onbrand.engine.request import Completed, Event, Failed, Request
from onbrand.errors import TooManyRequests
from onbrand.families.bases import base_source
from onbrand.families.family import Family
from onbrand.families.loading import load_family
from onbrand.families.lora import read_adapter

MAX_BATCH = 8
BATCH_SIZES = {"fixed": (MAX_BATCH,), "doubling": default_batch_sizes(MAX_BATCH)}
"""Possible batch sizes: a single one, as for compiled graphs, or each twice the one before."""


@dataclass(frozen=True)
class Arrival:
    """A request and its arrival time, in seconds of its world."""

    at: float
    request: Request


@dataclass(frozen=True)
class Brands:
    """Brands with one adapter each, on a tiny base."""

    family_name: str
    files: tuple[bytes, ...]

    @classmethod
    def new(cls, family_name: str, num: int) -> Brands:
        """`num` brands with random adapters."""
        family = base(family_name)
        return cls(family_name, tuple(random_adapter(family, 8, seed, "strong") for seed in range(num)))

    def use(self, family: Family, n: int) -> AdapterUse:
        """The adapter of brand n for a request."""
        return AdapterUse(AdapterKey(f"brand-{n}", str(n)), read_adapter(self.files[n], family))


def base(family_name: str) -> Family:
    """A new copy of the tiny base, as each world needs its own."""
    return load_family(family_name, Path(base_source(family_name, {})))


class Workers(Executor):
    """Simulated cores beside the engine's: work is done on submission, but finishes when a worker would have done it.

    Args:
        now: returns the world's time.
    """

    def __init__(self, num: int, now: Callable[[], float]) -> None:
        self._now, self._free, self._numbers = now, [0.0] * num, itertools.count()
        self._held: list[tuple[float, int, Future[Any], Any, BaseException | None]] = []
        self.seconds = 0.0

    def submit(self, work: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
        future: Future[Any] = Future()
        outcome, problem, submitted, began = None, None, self._now(), time.thread_time()
        try:
            outcome = work(*args, **more)
        except BaseException as raised:
            problem = raised
        seconds = time.thread_time() - began
        self.seconds += seconds
        through = max(heapq.heappop(self._free), submitted) + seconds
        heapq.heappush(self._free, through)
        heapq.heappush(self._held, (through, next(self._numbers), future, outcome, problem))
        return future

    @property
    def next_outcome(self) -> float:
        """Time of the next result; infinity if no work is pending."""
        return self._held[0][0] if self._held else math.inf

    def tell(self, now: float) -> None:
        """Set the results of all futures that are finished by `now`."""
        while self.next_outcome <= now:
            _, _, future, outcome, problem = heapq.heappop(self._held)
            if problem is not None:
                future.set_exception(problem)
            else:
                future.set_result(outcome)


@dataclass
class World:
    """An engine under traffic.

    Args:
        arrivals: in the order of their times.
        num_at_once: request-level batching: as many requests are admitted together, and the next ones after all of
            them are finished. None: requests join and leave at any step.
        watch: its `before` gets the engine before each step, its `after` the step's events.
    """

    engine: Engine
    arrivals: Sequence[Arrival]
    num_at_once: int | None = None
    num_workers: int = 2
    watch: Any = None
    now: float = 0.0
    told: dict[str, float] = field(default_factory=dict)
    num_refused: int = 0
    num_steps: int = 0

    def __post_init__(self) -> None:
        self._workers = Workers(self.num_workers, self._live)
        self.engine.use(self._workers)
        self._coming = deque(self.arrivals)
        self._gate: deque[Request] = deque()
        self._since: float | None = None

    @property
    def is_over(self) -> bool:
        """True if no request is left, neither coming nor in the engine."""
        return not (self._coming or self._gate or self.engine.has_work)

    def latencies(self, names: Callable[[Request], bool] = lambda request: True) -> list[float]:
        """Seconds from arrival to completion, of completed requests."""
        wanted = [arrival for arrival in self.arrivals if names(arrival.request)]
        return [self.told[each.request.id] - each.at for each in wanted if each.request.id in self.told]

    def step(self) -> None:
        """Admit requests that have arrived and advance the engine by one step. If idle, advance the clock to the next
        arrival or result."""
        self._workers.tell(self.now)
        self._timed(self._let_in)
        self._note(self._timed(self.engine.collect))
        if self.engine.can_step:
            if self.watch:
                self.watch.before(self.engine)
            events = self._timed(self.engine.step)
            self.num_steps += 1
            if self.watch:
                self.watch.after(events)
            self._note(events)
        elif self.engine.has_work or not self._gate:
            arrival = self._coming[0].at if self._coming else math.inf
            wake = min(arrival, self._workers.next_outcome)
            self.now = max(self.now, wake) if wake < math.inf else self.now

    def _let_in(self) -> None:
        while self._coming and self._coming[0].at <= self.now:
            self._gate.append(self._coming.popleft().request)
        if self.num_at_once is not None and self.engine.has_work:
            return
        for _ in range(min(len(self._gate), self.num_at_once or len(self._gate))):
            try:
                self.engine.add(self._gate.popleft())
            except TooManyRequests:
                self.num_refused += 1

    def _timed(self, act: Callable[[], Any]) -> Any:
        """Call `act`, and advance the clock by its processor time without the workers'."""
        self._since, self._beside = time.thread_time(), self._workers.seconds
        outcome = act()
        self.now, self._since = self._live(), None
        return outcome

    def _live(self) -> float:
        if self._since is None:
            return self.now
        return self.now + (time.thread_time() - self._since) - (self._workers.seconds - self._beside)

    def _note(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Completed):
                self.told[event.request_id] = self.now


def run_together(worlds: Sequence[World], until: Callable[[], bool] = lambda: False) -> None:
    """Step all worlds in turns until all are over, or `until` returns True."""
    while not until() and not all(world.is_over for world in worlds):
        for world in worlds:
            if not world.is_over:
                world.step()


def poisson(dice: random.Random, rate: float, requests: Iterable[Request]) -> Iterator[Arrival]:
    """Arrivals of `requests` with exponential gaps, `rate` per second on average."""
    at = 0.0
    for request in requests:
        at += dice.expovariate(rate)
        yield Arrival(at, request)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def capacity(engine: Engine, requests: Sequence[Request], num_at_once: int | None = None) -> float:
    """Throughput in requests per second if all arrive at the beginning."""
    world = World(engine, [Arrival(0.0, request) for request in requests], num_at_once)
    run_together([world])
    return len(world.told) / max(world.told.values())
