"""When a call of the internal routes is repeated, and the error that it raises otherwise."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import httpx

from onbrand import errors

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 5.0
_PROBLEM = "application/problem+json"


def retry_delays(patience: float) -> Iterator[float]:
    """Waits between attempts: doubling, jittered, ending when `patience` seconds have passed."""
    end = time.monotonic() + patience
    delay = _FIRST_DELAY
    while (left := end - time.monotonic()) > 0:
        yield min(left, delay * random.uniform(0.7, 1.3))
        delay = min(delay * 2, _LONGEST_DELAY)


def _is_ours(answer: httpx.Response) -> bool:
    return answer.headers.get("content-type", "").startswith(_PROBLEM)


def may_try_again(answer: httpx.Response) -> bool:
    """Whether to retry: our 429 or 503, or a proxy's for a missing replica (404 or 5xx without a problem body)."""
    if _is_ours(answer):
        return answer.status_code in (429, 503)
    return answer.status_code == 404 or answer.status_code >= 500


def wait_after(outcome: httpx.Response | httpx.TransportError, delays: Iterator[float]) -> float | None:
    """Seconds to wait before the call is repeated; None after a successful response.

    Args:
        delays: the waits that are left (`retry_delays`). When they have ended, the error of `outcome` is raised.
    """
    if isinstance(outcome, httpx.Response) and not may_try_again(outcome):
        if outcome.is_success:
            return None
        raise as_error(outcome)
    if (delay := next(delays, None)) is not None:
        return delay
    if isinstance(outcome, httpx.Response):
        raise as_error(outcome)
    raise errors.Unavailable(f"the platform's internal routes cannot be reached ({type(outcome).__name__})")


def as_error(answer: httpx.Response) -> errors.OnbrandError:
    """The error that the platform raised, rebuilt from its problem body; else Unavailable."""
    if not _is_ours(answer):
        return errors.Unavailable(f"the platform's internal routes answered {answer.status_code}; is it starting?")
    body = answer.json()
    fields = {"param": body["param"]} if body.get("param") else {}
    message = body.get("detail") or body.get("title") or "the platform refused"
    return errors.of_code(body.get("code", ""), message, **fields)
