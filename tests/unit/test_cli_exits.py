"""The exit code of each error."""

from __future__ import annotations

import pytest

from onbrand import client, errors
from onbrand.cli import exits
from onbrand.cli.exits import Refused, failure_of


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (client.NotLoggedIn("who are you", 401), exits.NOT_LOGGED_IN),
        (client.RoleTooLow("admins only", 403), exits.FORBIDDEN),
        (client.NotFound("not found", 404), exits.NOT_FOUND),
        (client.Conflict("busy", 409), exits.CONFLICT),
        (client.TooLarge("20 MiB", 413), exits.REFUSED),
        (client.InvalidInput("steps", 422, param="steps"), exits.REFUSED),
        (client.Unavailable("later", 503), exits.UNAVAILABLE),
        (client.PlatformFailed("oops", 500), exits.FAILED),
        (client.ConnectionFailed("nobody"), exits.UNAVAILABLE),
        (client.InvalidArgument("which brand"), exits.REFUSED),
        (client.JobFailed("no", None), exits.FAILED),
        (errors.ConfigurationError("port 80"), exits.CONFIGURATION),
        (errors.BaseModelRefused("no index"), exits.CONFIGURATION),
        (errors.InvalidInput("images", param="images"), exits.REFUSED),
        (FileNotFoundError(2, "No such file", "pictures"), exits.FAILED),
        (Refused("no", exits.USAGE), exits.USAGE),
    ],
)
def test_an_error_leaves_with_its_exit_code(problem: Exception, code: int) -> None:
    failure = failure_of(problem)
    assert failure is not None
    assert failure.exit_code == code


def test_a_bug_is_not_hidden() -> None:
    assert failure_of(ZeroDivisionError()) is None


def test_the_field_that_was_wrong_is_kept_for_programs() -> None:
    failure = failure_of(client.InvalidInput("steps must be at most 20000", 422, "invalid_input", "steps"))
    assert failure is not None
    assert failure.fields == {"status": 422, "param": "steps"}
