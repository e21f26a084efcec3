"""A run's heartbeat: reports progress to the platform about once a second and learns whether to stop.

It has its own thread, so that no training step waits for the network. Newer metrics replace unsent ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from onbrand.errors import Conflict, NotFound, OnbrandError, TicketRefused
from onbrand.internal.client import SystemClient
from onbrand.internal.log_lines import AT_ONCE_MAX, Line

INTERVAL_SECONDS = 1.0
_JOIN_SECONDS = 10.0
LINES_MAX = 1000
"""Maximum of log lines that wait for the platform; beyond it the oldest are dropped."""

log = logging.getLogger(__name__)


class Heartbeat:
    """Runs inside a `with` block.

    Args:
        client: shared with the run; its ticket is renewed here.
        renew_seconds: interval of renewals.
        reread: returns the newest token, in case ours expired while the platform was unavailable.
    """

    def __init__(
        self,
        client: SystemClient,
        renew_seconds: float,
        reread: Callable[[], str],
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._client, self._reread, self._interval, self._renew_seconds = client, reread, interval, renew_seconds
        self._facts: tuple[int, Mapping[str, Any]] = (0, {})
        self._told: tuple[int, Mapping[str, Any]] | None = None
        self._lines: deque[Line] = deque(maxlen=LINES_MAX)
        self._sending: list[Line] = []
        self._closing = threading.Event()
        self._renew_at = time.monotonic() + renew_seconds
        self.cancel_requested = False
        self.finish_requested = False
        self.gone = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join(_JOIN_SECONDS)

    @property
    def stop(self) -> bool:
        """True if the run should end without a result: the owner canceled it, or the job is gone."""
        return self.cancel_requested or self.gone

    def tell(self, progress: int, metrics: Mapping[str, Any]) -> None:
        """Set the newest progress (percent) and metrics; never blocks."""
        self._facts = (progress, metrics)

    def say(self, code: str, **facts: float | str) -> None:
        """Queue a line for the run's log (`services.logs`); never blocks. Only lines beyond `LINES_MAX` are lost."""
        self._lines.append(Line(code=code, facts=facts))

    def _run(self) -> None:
        while not self.gone:
            self._beat()
            if self._closing.wait(self._interval):
                break
        while not self.gone and self._has_news and self._beat():
            pass

    @property
    def _has_news(self) -> bool:
        return self._facts != self._told or bool(self._sending or self._lines)

    def _beat(self) -> bool:
        """Report metrics and lines once; True if the platform took them."""
        facts = self._facts
        while self._lines and len(self._sending) < AT_ONCE_MAX:
            self._sending.append(self._lines.popleft())
        try:
            if time.monotonic() >= self._renew_at:
                self._client.renew()
                self._renew_at = time.monotonic() + self._renew_seconds
            heard = self._client.report(facts[0], facts[1], [line.model_dump() for line in self._sending])
            self._told, self._sending = facts, []
            self.cancel_requested = self.cancel_requested or heard.cancel_requested
            self.finish_requested = self.finish_requested or heard.stop_requested
            return True
        except (NotFound, Conflict):
            self.gone = True
        except TicketRefused:
            self._take_up_newest_ticket()
        except OnbrandError as problem:
            log.warning("the platform did not take a report (%s); trying again", problem.code)
        return False

    def _take_up_newest_ticket(self) -> None:
        try:
            self._client.token = self._reread()
        except OnbrandError:
            log.warning("the ticket ran out and there is no newer one yet")
