"""Base classes of the API's objects: frozen, ignore unknown fields, know their client, and can be waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from onbrand.client.errors import InvalidArgument, JobFailed, WaitTimeout

if TYPE_CHECKING:
    from onbrand.client.client import Onbrand

_FIRST_POLL, _LONGEST_POLL = 0.1, 2.0


class ApiModel(BaseModel):
    """An object of the API: it is frozen and ignores unknown fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Attached(ApiModel):
    """An object that keeps a reference to its client."""

    _client: Onbrand | None = PrivateAttr(default=None)

    def attach(self, client: Onbrand) -> Self:
        self._client = client
        return self

    def _must_have_client(self) -> Onbrand:
        if self._client is None:
            raise InvalidArgument(f"this {type(self).__name__} did not come from a client; use client.<resource>.get()")
        return self._client


class Owned(Attached):
    """An object of a brand, and the member who made it."""

    id: str
    brand_id: str
    user_id: str | None = None
    created_at: datetime | None = None


class Waitable(Owned):
    """A job or generation on the platform, which ends as completed, failed or canceled."""

    status: str
    progress: int = 0
    error: dict[str, Any] | None = None

    @property
    def done(self) -> bool:
        return self.status in ("completed", "failed", "canceled")

    def refresh(self) -> Self:
        """Its current state, as a new object."""
        raise NotImplementedError

    def wait(
        self,
        progress: Callable[[Self], object] | None = None,
        *,
        timeout: float | None = None,
        every_look: bool = False,
    ) -> Self:
        """Wait for the end and return the completed object.

        Args:
            progress: called with the object whenever its status or progress has changed.
            timeout: seconds; None waits without limit.
            every_look: call `progress` at every poll (every two seconds or more often), to show other fields too.

        Raises JobFailed if it failed or was canceled, WaitTimeout after `timeout`.
        """
        end = None if timeout is None else time.monotonic() + timeout
        delay, now, told = _FIRST_POLL, self, None
        while True:
            if progress is not None and (every_look or told != (now.status, now.progress)):
                progress(now)
                told = (now.status, now.progress)
            if now.status == "completed":
                return now
            if now.done:
                reason = (now.error or {}).get("message") or "no reason was given"
                raise JobFailed(f"{type(now).__name__} {now.id} {now.status}: {reason}", now)
            if end is not None and time.monotonic() >= end:
                raise WaitTimeout(f"{type(self).__name__} {self.id} is still {now.status} after {timeout} s")
            time.sleep(delay)
            delay = min(_LONGEST_POLL, delay * 1.3)
            now = now.refresh()
