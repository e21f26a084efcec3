"""Whose pictures step now: weighted fair queueing over brands, decided anew for every denoising step.

An account is what a brand was served: denoised pixels over its weight. Each place of a batch goes to the brand with the
lowest account (after Sheng et al. 2024, algorithm 4); rows of a brand that is ahead pause until the others caught up.
With c the accounts, w the weights and U the work of the largest batch step, brands a and b that both have pictures left
out keep

    c_a - c_b <= U / w_a

that is, none is ever more than one batch step ahead of another.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from onbrand.engine.batch import BatchKey, Job, size_class


@dataclass(slots=True)
class _Account:
    """A brand's jobs in the order they came, and what it was served.

    Args:
        last_turn: number of the pass that served it last; of equal accounts, who waited longer goes first.
    """

    served: float
    jobs: dict[Job, None] = field(default_factory=dict)
    last_turn: int = 0

    def has_more(self, taken: Counter[Job], refused: set[Job]) -> bool:
        """Whether it has a picture that could step and does not."""
        return any(job.num_to_step > taken[job] for job in self.jobs if job not in refused)

    def first(self, key: BatchKey | None, taken: Counter[Job], refused: set[Job]) -> Job | None:
        """Its oldest job with a picture to step, of `key` if one is given."""
        for job in self.jobs:
            if job.num_to_step > taken[job] and job not in refused and key in (None, job.key):
                return job
        return None


class FairQueue:
    """All jobs of an engine, and the order in which they are served.

    - A brand that comes back, or that got all it wanted so far, is lifted to the minimum of the brands that were left
      something to wait for: nobody saves up credit, and nobody owes for what nobody else wanted.
    - A pass has one `BatchKey`: that of the brand with the lowest account. Others of the same key fill the batch, but
      not beyond one batch step ahead of those whose key has to wait. Dummy rows are charged to the brand that leads.
    - Within a brand: first come, first served.

    Args:
        classes: the sizes that batches come in.
    """

    def __init__(self, max_batch: int, classes: Sequence[int]) -> None:
        self._max_batch, self._classes = max_batch, classes
        self._accounts: dict[str, _Account] = {}
        self._floor = 0.0
        self._num_turns = 0

    def push(self, job: Job) -> None:
        """Put a job at the end of its brand's line."""
        account = self._accounts.get(job.brand_id)
        if account is None:
            account = self._accounts[job.brand_id] = _Account(self._floor)
        account.jobs[job] = None

    def remove(self, job: Job) -> None:
        """Take a job out; nothing happens if it is not in. Its brand keeps what it owes until the others are there."""
        account = self._accounts.get(job.brand_id)
        if account is not None:
            account.jobs.pop(job, None)

    def served(self, brand_id: str) -> float:
        """The brand's account."""
        account = self._accounts.get(brand_id)
        return self._floor if account is None else max(account.served, self._floor)

    def brands(self) -> set[str]:
        """Those with jobs here."""
        return {brand_id for brand_id, account in self._accounts.items() if account.jobs}

    def num_pictures(self, brand_id: str | None = None) -> int:
        """Pictures that have not begun, of one brand or of all."""
        accounts = self._accounts.values() if brand_id is None else filter(None, [self._accounts.get(brand_id)])
        return sum(job.num_waiting for account in accounts for job in account.jobs)

    def unprepared(self) -> Iterator[Job]:
        """Jobs to prepare now: enough of every brand's for a whole pass, few enough that device memory lasts."""
        busy = [account for account in self._accounts.values() if account.jobs]
        ahead = max(self._max_batch, 4 * self._max_batch // max(1, len(busy)))
        for account in busy:
            near = islice((job for job in account.jobs if job.num_waiting), ahead)
            num_pictures = 0
            for job in near:
                if num_pictures >= ahead:
                    break
                num_pictures += job.num_waiting
                if not job.prepared and not job.preparing:
                    yield job

    def next_batch(self, admit: Callable[[Job], bool]) -> list[Job]:
        """The jobs of which a picture steps now, once per picture; all of one key.

        Args:
            admit: asked once for each job before its first picture is taken; False passes it over.
        """
        self._forget_the_idle()
        self._num_turns += 1
        turn = _Turn(self._accounts.values(), self._floor, self._max_batch, self._num_turns)
        chosen = turn.chosen(admit)
        if chosen:
            turn.charge_dummies(size_class(len(chosen), self._classes))
            self._floor = max(self._floor, turn.floor_after())
        return chosen

    def _forget_the_idle(self) -> None:
        """Brands without jobs stay for as long as they are ahead."""
        gone = [b for b, account in self._accounts.items() if not account.jobs and account.served <= self._floor]
        for brand in gone:
            del self._accounts[brand]


class _Turn:
    """The choice of one batch."""

    def __init__(self, accounts: Iterable[_Account], floor: float, max_batch: int, number: int) -> None:
        self._accounts = [account for account in accounts if account.jobs]
        self._max_batch, self._number = max_batch, number
        self._taken: Counter[Job] = Counter()
        self._refused: set[Job] = set()
        self._leader: tuple[_Account, Job] | None = None
        for account in self._accounts:
            account.served = max(account.served, floor)

    def chosen(self, admit: Callable[[Job], bool]) -> list[Job]:
        heap = [(account.served, account.last_turn, n) for n, account in enumerate(self._accounts)]
        heapq.heapify(heap)
        left_behind = math.inf
        chosen: list[Job] = []
        while heap and len(chosen) < self._max_batch:
            _, _, n = heapq.heappop(heap)
            account = self._accounts[n]
            job = account.first(self._leader[1].key if self._leader else None, self._taken, self._refused)
            if job is None:
                if account.has_more(self._taken, self._refused):
                    left_behind = min(left_behind, account.served)
                continue
            if account.served + job.step_charge > left_behind + self._max_batch * job.step_charge:
                continue
            if job in self._taken or admit(job):
                self._take(job, account)
                chosen.append(job)
            else:
                self._refused.add(job)
            heapq.heappush(heap, (account.served, account.last_turn, n))
        return chosen

    def _take(self, job: Job, account: _Account) -> None:
        self._leader = self._leader or (account, job)
        self._taken[job] += 1
        account.served += job.step_charge
        account.last_turn = self._number

    def charge_dummies(self, size: int) -> None:
        """The rest of the batch was opened for the leader's brand, and nobody else could use it."""
        assert self._leader is not None
        account, job = self._leader
        account.served += (size - self._taken.total()) * job.step_charge

    def floor_after(self) -> float:
        """The lowest account of those who wait for more; when nobody does, all are quits."""
        waiting = [account.served for account in self._accounts if account.has_more(self._taken, self._refused)]
        return min(waiting) if waiting else max(account.served for account in self._accounts)
