"""The exceptions of the client.

The hierarchy::

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
    """Base class of the client's exceptions."""


class ConnectionFailed(OnbrandClientError):
    """The platform's address did not respond, or the connection broke."""


class WaitTimeout(OnbrandClientError):
    """The job has not ended within the timeout; it continues, and `.wait()` may be called again."""


class InvalidArgument(OnbrandClientError, ValueError):
    """An argument is invalid; nothing was sent."""


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
        code: a stable code for programs, e.g. ``invalid_input``.
        param: the input field that was wrong, or None.
        request_id: the request's id; quote it to the operator.
        retry_after: seconds, if the platform gave them.
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
    """The token is missing, invalid or expired."""


class RoleTooLow(RequestRefused):
    """The caller's role or the key's scopes do not permit this."""


class NotFound(RequestRefused):
    """It does not exist, or belongs to another brand; the response is the same for both."""


class Conflict(RequestRefused):
    """The object's current state does not allow this."""


class InvalidInput(RequestRefused):
    """A field is wrong; `param` names it."""


class TooLarge(InvalidInput):
    """The input exceeds a limit on bytes, pixels or files."""


class UnsupportedMedia(InvalidInput):
    """The file cannot be decoded as an accepted type."""


class TooManyRequests(RequestRefused):
    """A rate or capacity limit was reached; `retry_after` holds seconds."""


class PlatformFailed(RequestRefused):
    """An error inside the platform; quote `request_id` to the operator."""


class Unavailable(PlatformFailed):
    """A part of the platform cannot answer now; retry later."""


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
    """The exception class for an HTTP status."""
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return PlatformFailed if status >= 500 else InvalidInput
