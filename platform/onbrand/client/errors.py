"""What can go wrong when talking to Onbrand.

The tree::

    OnbrandClientError
    ├── ConnectionFailed           nobody answered, or the connection broke (after retries)
    ├── WaitTimeout                `.wait(timeout=...)` ended before the job did
    ├── InvalidArgument            refused before anything was sent
    ├── JobFailed                  a training job or generation ended as failed or canceled; `.job` holds it
    └── RequestRefused             the platform answered with a problem; `.status .code .param .request_id`
        ├── NotLoggedIn            401
        ├── RoleTooLow             403
        ├── NotFound               404: not there, or not yours
        ├── Conflict               409
        ├── InvalidInput           422, and 400, 405
        │   ├── TooLarge           413
        │   └── UnsupportedMedia   415
        ├── TooManyRequests        429; `.retry_after` holds seconds
        └── PlatformFailed         5xx
            └── Unavailable        503: a part of the platform cannot answer now
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "Conflict",
    "ConnectionFailed",
    "InvalidArgument",
    "InvalidInput",
    "JobFailed",
    "NotFound",
    "NotLoggedIn",
    "OnbrandClientError",
    "PlatformFailed",
    "RequestRefused",
    "RoleTooLow",
    "TooLarge",
    "TooManyRequests",
    "Unavailable",
    "UnsupportedMedia",
    "WaitTimeout",
]


class OnbrandClientError(Exception):
    """Everything this client raises on purpose."""


class ConnectionFailed(OnbrandClientError):
    """Nobody answered at the platform's address, or the connection broke."""


class WaitTimeout(OnbrandClientError):
    """The job is not done yet; it goes on, and `.wait()` may be called again."""


class InvalidArgument(OnbrandClientError, ValueError):
    """An argument that cannot be sent as it is."""


class JobFailed(OnbrandClientError):
    """The job ended without a result; `job` is its last state and `job.error` the reason."""

    def __init__(self, message: str, job: Any) -> None:
        super().__init__(message)
        self.job = job

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.job))


class RequestRefused(OnbrandClientError):
    """The platform answered with a problem.

    Args:
        status: the HTTP status.
        code: a stable word for programs, e.g. ``invalid_input``.
        param: the input field that was wrong, or None.
        request_id: what to quote to the operator.
        retry_after: seconds, where the platform named them.
    """

    def __init__(
        self,
        message: str,
        status: int = 0,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.message, self.status, self.code, self.param, self.request_id, self.retry_after)
        return (type(self), fields)


class NotLoggedIn(RequestRefused):
    """No token, or one that is not (or no longer) good."""


class RoleTooLow(RequestRefused):
    """Own brand, but the role is too low for this verb."""


class NotFound(RequestRefused):
    """Not there, or another brand's: the same answer for both."""


class Conflict(RequestRefused):
    """The state of the thing does not allow this now."""


class InvalidInput(RequestRefused):
    """A field is wrong; `param` names it."""


class TooLarge(InvalidInput):
    """More bytes, pixels or files than the limit."""


class UnsupportedMedia(InvalidInput):
    """Not a decodable file of an accepted type."""


class TooManyRequests(RequestRefused):
    """A limit in time; `retry_after` holds seconds."""


class PlatformFailed(RequestRefused):
    """The platform's own fault; quote `request_id`."""


class Unavailable(PlatformFailed):
    """A part of the platform cannot answer now; trying later is right."""


_BY_STATUS: dict[int, type[RequestRefused]] = {
    401: NotLoggedIn,
    403: RoleTooLow,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedMedia,
    429: TooManyRequests,
    503: Unavailable,
}


def kind_for(status: int) -> type[RequestRefused]:
    """The class that stands for an HTTP status."""
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return PlatformFailed if status >= 500 else InvalidInput
