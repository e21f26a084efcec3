"""The exceptions of the client. Those of a refusal have a class by HTTP status."""

from __future__ import annotations

from typing import Any


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


class NotLoggedIn(RequestRefused):
    """401: the token is missing, invalid or expired."""


class RoleTooLow(RequestRefused):
    """403: the caller's role or the key's scopes do not permit this."""


class NotFound(RequestRefused):
    """404: it does not exist, or belongs to another brand; the response is the same for both."""


class Conflict(RequestRefused):
    """409: the object's current state does not allow this."""


class InvalidInput(RequestRefused):
    """422, 400 and others below 500: a field is wrong; `param` names it."""


class TooLarge(InvalidInput):
    """413: the input exceeds a limit on bytes, pixels or files."""


class UnsupportedMedia(InvalidInput):
    """415: the file cannot be decoded as an accepted type."""


class TooManyRequests(RequestRefused):
    """429: a rate or capacity limit was reached; `retry_after` holds seconds."""


class PlatformFailed(RequestRefused):
    """500 and above: an error inside the platform; quote `request_id` to the operator."""


class Unavailable(PlatformFailed):
    """503: a part of the platform cannot answer now; retry later."""


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
