"""Threads shared by accounts in turns."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

Work = Callable[[], object]


class FairThreadPool:
    """Threads that load adapters. Accounts take turns, and one account uses at most half of the threads.

    So an account with many or hanging loads does not delay other accounts. Submitted work must not raise.
    """

    def __init__(self, num_threads: int) -> None:
        self._most_of_an_account = max(1, num_threads // 2)
        self._num_free = num_threads
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="adapter")
        self._waiting: OrderedDict[str, deque[Work]] = OrderedDict()
        self._num_running: Counter[str] = Counter()
        self._closed = False
        self._lock = Lock()

    def submit(self, account_id: str, work: Work) -> bool:
        """Run `work` in a thread when it is the account's turn. False: closed; it will not run."""
        with self._lock:
            if not self._closed:
                self._waiting.setdefault(account_id, deque()).append(work)
                self._begin()
            return not self._closed

    def close(self) -> list[Work]:
        """Start no more work; returns the work that was not started."""
        with self._lock:
            self._closed = True
            left = [work for waiting in self._waiting.values() for work in waiting]
            self._waiting.clear()
        self._threads.shutdown(wait=False)
        return left

    def _begin(self) -> None:
        """Start the work that may start now; the lock is held."""
        while self._num_free and not self._closed:
            account_id = next(
                (each for each in self._waiting if self._num_running[each] < self._most_of_an_account), None
            )
            if account_id is None:
                return
            work = self._waiting[account_id].popleft()
            self._waiting.move_to_end(account_id)
            if not self._waiting[account_id]:
                del self._waiting[account_id]
            self._num_free -= 1
            self._num_running[account_id] += 1
            self._threads.submit(self._do, account_id, work)

    def _do(self, account_id: str, work: Work) -> None:
        try:
            work()
        finally:
            with self._lock:
                self._num_free += 1
                self._num_running[account_id] -= 1
                self._num_running += Counter()  # drops those at zero
                self._begin()
