"""Weighted fair queueing over accounts, and over the brands of each account, decided anew at every step.

A ledger counts service: denoised pixels divided by the brand's weight. Each place of a batch goes to the account with
the lowest ledger, and in it to the brand with the lowest (after Sheng et al. 2024, algorithm 4). Rows of those ahead
pause until the others catch up. With c the ledgers, w the weights and U the work of the largest batch step, accounts a
and b that both have images left out keep

    c_a - c_b <= U / w_a

So none is ever more than one batch step ahead of another. The same holds for two brands of one account. An account gets
one share, however many brands it has.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest

from onbrand.engine.batch import BatchKey, EngineJob, batch_size_for


@dataclass(slots=True, eq=False)
class _Ledger:
    """The service that an account or a brand got.

    Args:
        last_turn: number of the pass that served it last; of equal ledgers, the one served longest ago goes first.
    """

    served: float
    last_turn: int = 0

    @property
    def sort_key(self) -> tuple[float, int]:
        """The lowest goes first."""
        return self.served, self.last_turn


@dataclass(slots=True, eq=False)
class _Brand(_Ledger):
    """A brand's jobs in order of arrival, and its ledger."""

    jobs: dict[EngineJob, None] = field(default_factory=dict)

    def has_more(self, taken: Counter[EngineJob], refused: set[EngineJob]) -> bool:
        """Whether it has an image that could step but was not taken."""
        return any(job.num_to_step > taken[job] for job in self.jobs if job not in refused)

    def first(self, key: BatchKey | None, taken: Counter[EngineJob], refused: set[EngineJob]) -> EngineJob | None:
        """Its oldest job with an image to step, of `key` if one is given; else None."""
        for job in self.jobs:
            if job.num_to_step > taken[job] and job not in refused and key in (None, job.key):
                return job
        return None


@dataclass(slots=True, eq=False)
class _Account(_Ledger):
    """The brands of one account, and their common ledger.

    Args:
        floor: lowest ledger of its brands with images left out; brands below it are raised to it.
    """

    brands: dict[str, _Brand] = field(default_factory=dict)
    floor: float = 0.0

    @property
    def num_to_step(self) -> int:
        """Number of images of all its brands that could take part in a pass now."""
        return sum(job.num_to_step for brand in self.brands.values() for job in brand.jobs)

    @property
    def busy(self) -> list[_Brand]:
        """Its brands with jobs."""
        return [brand for brand in self.brands.values() if brand.jobs]

    def has_more(self, taken: Counter[EngineJob], refused: set[EngineJob]) -> bool:
        return any(brand.has_more(taken, refused) for brand in self.brands.values())

    def raise_to_floor(self) -> None:
        """Raise every brand's ledger to the floor, so that none saves up credit."""
        for brand in self.brands.values():
            brand.served = max(brand.served, self.floor)

    def forget_the_idle(self) -> None:
        """Drop brands without jobs, except those ahead of the floor."""
        kept = {name: each for name, each in self.brands.items() if each.jobs or each.served > self.floor}
        self.brands = kept

    def first_jobs(self, num_images: int) -> Iterator[EngineJob]:
        """The first jobs with waiting images, brands in turns, until they hold `num_images` images."""
        lines = [
            list(islice((job for job in brand.jobs if job.num_waiting), num_images))
            for brand in sorted(self.busy, key=lambda brand: brand.sort_key)
        ]
        num_found = 0
        for job in filter(None, chain.from_iterable(zip_longest(*lines))):
            if num_found >= num_images:
                return
            num_found += job.num_waiting
            yield job


class FairQueue:
    """All jobs of an engine, and the order in which they are served.

    - The floor is the lowest ledger of the accounts with images left out. An account that returns starts at the floor,
      so its absence earns no credit. If every image is served, all ledgers become equal, so nobody pays for service
      that no other account wanted. The same holds among an account's brands.
    - A pass has one `BatchKey`: that of the account with the lowest ledger. Others of the same key fill the batch, but
      get at most one batch step ahead of those whose key has to wait. Dummy rows are charged to the leader.
    - Within a brand: first come, first served.

    Args:
        batch_sizes: as of `Engine`.
        even_passes: an account gets no more rows of a pass than the smallest number of images that another account has
            to step. Small requests then wait little where the time of a pass grows with its rows, as on a CPU.
    """

    def __init__(self, max_batch: int, batch_sizes: Sequence[int], even_passes: bool = False) -> None:
        self._max_batch, self._batch_sizes, self._even_passes = max_batch, batch_sizes, even_passes
        self._accounts: dict[str, _Account] = {}
        self._floor = 0.0
        self._num_turns = 0

    def push(self, job: EngineJob) -> None:
        """Put a job at the end of its brand's line."""
        account = self._accounts.get(job.account_id)
        if account is None:
            account = self._accounts[job.account_id] = _Account(self._floor)
        brand = account.brands.get(job.brand_id)
        if brand is None:
            brand = account.brands[job.brand_id] = _Brand(account.floor)
        brand.jobs[job] = None

    def remove(self, job: EngineJob) -> None:
        """Remove a job; no effect if it is not in. Its brand keeps its ledger until the others reach it."""
        brand = self._brand_of(job)
        if brand is not None:
            brand.jobs.pop(job, None)

    def served(self, job: EngineJob) -> tuple[float, float]:
        """The ledgers of the job's account and brand: the higher, the later their turn."""
        account, brand = self._accounts.get(job.account_id), self._brand_of(job)
        if account is None or brand is None:
            return self._floor, 0.0
        return max(account.served, self._floor), max(brand.served, account.floor)

    def accounts(self) -> set[str]:
        """The accounts with jobs here."""
        return {account_id for account_id, account in self._accounts.items() if account.busy}

    def brands(self, account_id: str) -> set[str]:
        """The account's brands with jobs here."""
        account = self._accounts.get(account_id)
        return set() if account is None else {name for name, brand in account.brands.items() if brand.jobs}

    def num_images(self, account_id: str | None = None, brand_id: str | None = None) -> int:
        """Number of images not yet started: of all accounts, of one, or of one brand of it."""
        accounts = self._accounts.values() if account_id is None else filter(None, [self._accounts.get(account_id)])
        return sum(
            job.num_waiting
            for account in accounts
            for name, brand in account.brands.items()
            if brand_id in (None, name)
            for job in brand.jobs
        )

    def unprepared(self) -> Iterator[EngineJob]:
        """Jobs to prepare now: enough of each account for a whole pass, but few enough to fit device memory."""
        busy = [account for account in self._accounts.values() if account.busy]
        ahead = max(self._max_batch, 4 * self._max_batch // max(1, len(busy)))
        for account in busy:
            for job in account.first_jobs(ahead):
                if not job.prepared and not job.preparing:
                    yield job

    def next_batch(self, admit: Callable[[EngineJob], bool]) -> list[EngineJob]:
        """The jobs that step an image now, one entry per image; all of one key.

        Args:
            admit: called once for each job before its first image is taken; False skips the job.
        """
        self._forget_the_idle()
        self._num_turns += 1
        busy = [account for account in self._accounts.values() if account.busy]
        for account in busy:
            account.served = max(account.served, self._floor)
            account.raise_to_floor()
        most = _even_rows(busy) if self._even_passes else [self._max_batch] * len(busy)
        choice = _BatchChoice(busy, most, self._max_batch, self._batch_sizes, self._num_turns, admit)
        chosen = choice.chosen()
        if chosen:
            choice.charge_dummies()
            self._floor = max(self._floor, choice.floor_of(busy))
            for account in busy:
                account.floor = max(account.floor, choice.floor_of(account.busy))
        return chosen

    def _brand_of(self, job: EngineJob) -> _Brand | None:
        account = self._accounts.get(job.account_id)
        return None if account is None else account.brands.get(job.brand_id)

    def _forget_the_idle(self) -> None:
        for account in self._accounts.values():
            account.forget_the_idle()
        self._accounts = {name: each for name, each in self._accounts.items() if each.busy or each.served > self._floor}


def _even_rows(accounts: Sequence[_Account]) -> list[int]:
    """The most rows of each account in a pass: the fewest that any other account has to step."""
    totals = [account.num_to_step for account in accounts]
    lowest = sorted(total for total in totals if total)[:2]
    if len(lowest) < 2:
        return [max(totals, default=0)] * len(totals)
    return [lowest[1] if total == lowest[0] else lowest[0] for total in totals]


class _BatchChoice:
    """The choice of one batch.

    Args:
        most: most rows of each account.
    """

    def __init__(
        self,
        accounts: Sequence[_Account],
        most: Sequence[int],
        max_batch: int,
        batch_sizes: Sequence[int],
        number: int,
        admit: Callable[[EngineJob], bool],
    ) -> None:
        self._accounts, self._most, self._max_batch, self._batch_sizes = accounts, most, max_batch, batch_sizes
        self._chosen: list[EngineJob] = []
        self._num_rows: Counter[int] = Counter()
        self._number, self._admit = number, admit
        self._taken: Counter[EngineJob] = Counter()
        self._refused: set[EngineJob] = set()
        self._leader: tuple[_Account, _Brand, EngineJob] | None = None

    def chosen(self) -> list[EngineJob]:
        """The jobs of the pass. Any account may fill the places that would be dummy rows."""
        self._fill(self._max_batch, self._most)
        if self._chosen:
            size = batch_size_for(len(self._chosen), self._batch_sizes)
            self._fill(min(size, self._max_batch), [self._max_batch] * len(self._accounts))
        return self._chosen

    def _fill(self, num: int, most: Sequence[int]) -> None:
        heap = [(*account.sort_key, n) for n, account in enumerate(self._accounts)]
        heapq.heapify(heap)
        lowest_left_out = math.inf
        while heap and len(self._chosen) < num:
            _, _, n = heapq.heappop(heap)
            account = self._accounts[n]
            found = self._next_of(account) if self._num_rows[n] < most[n] else None
            if found is None:
                if account.has_more(self._taken, self._refused):
                    lowest_left_out = min(lowest_left_out, account.served)
                continue
            brand, job = found
            if self._is_too_far_ahead(account.served, job, lowest_left_out):
                continue
            if self._is_admitted(job):
                self._take(job, account, brand)
                self._num_rows[n] += 1
                self._chosen.append(job)
            heapq.heappush(heap, (*account.sort_key, n))

    def _next_of(self, account: _Account) -> tuple[_Brand, EngineJob] | None:
        """The account's next brand and its job; None when no brand may have a row of this pass."""
        lowest_left_out = math.inf
        for brand in sorted(account.busy, key=lambda brand: brand.sort_key):
            job = brand.first(self._leader[2].key if self._leader else None, self._taken, self._refused)
            if job is None:
                if brand.has_more(self._taken, self._refused):
                    lowest_left_out = min(lowest_left_out, brand.served)
            elif not self._is_too_far_ahead(brand.served, job, lowest_left_out):
                return brand, job
        return None

    def _is_too_far_ahead(self, served: float, job: EngineJob, lowest_left_out: float) -> bool:
        """Whether one more row would put it over one batch step ahead of those waiting for another key."""
        return served + job.step_charge > lowest_left_out + self._max_batch * job.step_charge

    def _is_admitted(self, job: EngineJob) -> bool:
        if job not in self._taken and not self._admit(job):
            self._refused.add(job)
        return job not in self._refused

    def _take(self, job: EngineJob, account: _Account, brand: _Brand) -> None:
        self._leader = self._leader or (account, brand, job)
        self._taken[job] += 1
        for each in (account, brand):
            each.served += job.step_charge
            each.last_turn = self._number

    def charge_dummies(self) -> None:
        """Charge the dummy rows to the leader: the batch was opened for it, and no other job could fill them."""
        assert self._leader is not None
        size = batch_size_for(len(self._chosen), self._batch_sizes)
        account, brand, job = self._leader
        for each in (account, brand):
            each.served += (size - len(self._chosen)) * job.step_charge

    def floor_of(self, ledgers: Sequence[_Account] | Sequence[_Brand]) -> float:
        """The lowest ledger with images left out; without any, the highest ledger, which makes all equal."""
        waiting = [each.served for each in ledgers if each.has_more(self._taken, self._refused)]
        return min(waiting) if waiting else max(each.served for each in ledgers)
