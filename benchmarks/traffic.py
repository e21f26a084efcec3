"""Traffic for one engine in a time of its own, so that a busy machine changes no figure.

The engine, its steps, its encoding and its decoding are real. A `World`'s clock advances by the processor time that its
engine's thread took; encoding and decoding happen in `Workers` whose processor time is counted beside it, as if they
had cores of their own. Worlds that are compared take turns step by step.
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

from benchmarks.workload import random_adapter
from onbrand.engine.adapters import AdapterKey, AdapterUse
from onbrand.engine.batch import size_classes
from onbrand.engine.engine import Engine
from onbrand.engine.request import Completed, Event, Failed, Request
from onbrand.errors import TooManyRequests
from onbrand.families.bases import base_source
from onbrand.families.family import Family, load_family
from onbrand.families.lora import read_adapter

MAX_BATCH = 8
CLASSES = {"fixed": (MAX_BATCH,), "doubling": size_classes(MAX_BATCH)}
"""The sizes that batches come in: one, as compiled graphs have, or each twice the one before."""


@dataclass(frozen=True)
class Arrival:
    """A request, and when it comes, in seconds of its world."""

    at: float
    request: Request


@dataclass(frozen=True)
class Brands:
    """Brands with an adapter each, on a tiny base."""

    family_name: str
    files: tuple[bytes, ...]

    @classmethod
    def new(cls, family_name: str, num: int) -> Brands:
        family = base(family_name)
        return cls(family_name, tuple(random_adapter(family, 8, seed, "strong") for seed in range(num)))

    def use(self, family: Family, n: int) -> AdapterUse:
        return AdapterUse(AdapterKey(f"brand-{n}", str(n)), read_adapter(self.files[n], family))


def base(family_name: str) -> Family:
    """The tiny base: each world has one of its own."""
    return load_family(family_name, Path(base_source(family_name, {})))


class Workers(Executor):
    """Cores beside the engine's: what is submitted is done at once, but told when a worker would have been through.

    Args:
        now: the world's time.
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
        return self._held[0][0] if self._held else math.inf

    def tell(self, now: float) -> None:
        """Set the futures whose time has come."""
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
        num_at_once: request-level batching: as many requests are let in together, and none before all of them are
            told. None: they join and leave at any step.
        watch: told the engine before each step, and the engine and the step's events after it.
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
        return not (self._coming or self._gate or self.engine.has_work)

    def latencies(self, names: Callable[[Request], bool] = lambda request: True) -> list[float]:
        """Seconds from arrival to the last picture, of those that were told."""
        wanted = [arrival for arrival in self.arrivals if names(arrival.request)]
        return [self.told[each.request.id] - each.at for each in wanted if each.request.id in self.told]

    def step(self) -> None:
        """Let in who has come, and advance the engine by one step; when it has nothing to do, go to when it has."""
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
        """Do it; the clock advances by the processor time it took, without the workers'."""
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
    """Until all are over (or `until` says so), a step of each in turn."""
    while not until() and not all(world.is_over for world in worlds):
        for world in worlds:
            if not world.is_over:
                world.step()


def poisson(dice: random.Random, rate: float, requests: Iterable[Request]) -> Iterator[Arrival]:
    """Arrivals of `requests` with exponential gaps, `rate` a second."""
    at = 0.0
    for request in requests:
        at += dice.expovariate(rate)
        yield Arrival(at, request)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def capacity(engine: Engine, requests: Sequence[Request], num_at_once: int | None = None) -> float:
    """Requests a second when all are there from the beginning."""
    world = World(engine, [Arrival(0.0, request) for request in requests], num_at_once)
    run_together([world])
    return len(world.told) / max(world.told.values())
