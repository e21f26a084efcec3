"""Exit codes, and their mapping from errors of the platform and the SDK."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onbrand.errors import OnbrandError

FAILED, USAGE, NOT_LOGGED_IN, NOT_FOUND, REFUSED, CONFLICT, UNAVAILABLE, FORBIDDEN, CONFIGURATION = range(1, 10)
INTERRUPTED = 130

EXIT_CODES_HELP = (
    "Exit codes: 0 ok, 1 failed, 2 usage, 3 not logged in, 4 not found, 5 input refused, 6 conflict, "
    "7 platform unavailable, 8 role too low, 9 cannot start as configured, 130 interrupted."
)

_BY_STATUS = {
    401: NOT_LOGGED_IN,
    403: FORBIDDEN,
    404: NOT_FOUND,
    409: CONFLICT,
    413: REFUSED,
    415: REFUSED,
    422: REFUSED,
    429: UNAVAILABLE,
    503: UNAVAILABLE,
}
_REMEDIES = {NOT_LOGGED_IN: "run 'onbrand login'", UNAVAILABLE: "is 'onbrand up' running?"}


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure as an exit code, a message for people, and a code with fields for programs."""

    exit_code: int
    code: str
    message: str
    fields: dict[str, Any] = field(default_factory=dict)


class Refused(Exception):
    """The command line refuses its input or result itself, without the platform."""

    def __init__(self, message: str, exit_code: int = REFUSED, code: str = "refused") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code


def failure_of(problem: Exception) -> Failure | None:
    """The failure for an expected error or an OSError; None for a bug."""
    if isinstance(problem, Refused):
        return Failure(problem.exit_code, problem.code, str(problem))
    if isinstance(problem, OSError):
        return Failure(FAILED, "file", _of_system(problem))
    from onbrand.client import errors as client
    from onbrand.errors import OnbrandError

    if isinstance(problem, client.OnbrandClientError):
        return _of_client(problem)
    if isinstance(problem, OnbrandError):
        return _of_platform(problem)
    return _of_library(problem)


def _of_library(problem: Exception) -> Failure | None:
    """The failure for a library's error, without its text, which may contain a secret; None for a bug."""
    if isinstance(problem, UnicodeError):
        return Failure(REFUSED, "not_utf8", "an argument, a variable or an input has bytes that are not UTF-8")
    psycopg = sys.modules.get("psycopg")  # the client does not import it
    if psycopg is None or not isinstance(problem, psycopg.Error):
        return None
    state = problem.sqlstate or type(problem).__name__
    if state[:2] in ("42", "3F"):
        message = f"the database has not the schema of this version ({state}); start the platform on it first"
        return Failure(CONFIGURATION, "configuration_error", message)
    return Failure(UNAVAILABLE, "unavailable", f"the database did not do what it was asked ({state}); its log says why")


def _of_platform(problem: OnbrandError) -> Failure:
    from onbrand.errors import BaseModelRefused, ConfigurationError

    is_setup = isinstance(problem, ConfigurationError | BaseModelRefused)
    exit_code = CONFIGURATION if is_setup else _BY_STATUS.get(problem.status, FAILED)
    return Failure(exit_code, problem.code, problem.message, _fields(param=problem.param))


def _of_system(problem: OSError) -> str:
    what = problem.strerror or type(problem).__name__
    if problem.filename is None:
        return f"the system refused a call: {what}; try again, or look at what it names"
    place = os.fsdecode(problem.filename) if isinstance(problem.filename, bytes | str) else str(problem.filename)
    return f"{place}: {what}; choose another place or fix its rights"


def _of_client(problem: Exception) -> Failure:
    from onbrand.client import errors as client

    if isinstance(problem, client.RequestRefused):
        exit_code = _BY_STATUS.get(problem.status, REFUSED if problem.status < 500 else FAILED)
        fields = _fields(status=problem.status, param=problem.param, request_id=problem.request_id)
        remedy = _REMEDIES.get(exit_code)
        message = f"{problem.message.rstrip('.')}; {remedy}" if remedy else problem.message
        return Failure(exit_code, problem.code or "refused", message, fields)
    if isinstance(problem, client.ConnectionFailed):
        return Failure(UNAVAILABLE, "unavailable", str(problem))
    if isinstance(problem, client.InvalidArgument):
        return Failure(REFUSED, "invalid_argument", str(problem))
    if isinstance(problem, client.JobFailed):
        return Failure(FAILED, "job_failed", str(problem), _fields(id=getattr(problem.job, "id", None)))
    return Failure(FAILED, "failed", str(problem))


def _fields(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
