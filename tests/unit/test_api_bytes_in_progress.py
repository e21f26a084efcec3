"""The limit of request bytes in progress: a maximum for each account, with room left for the others."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from onbrand.api.http.bytes_in_progress import BytesInProgress
from onbrand.config import Limits
from onbrand.errors import TooManyRequests


def under_way(account: int = 100, together: int = 400) -> BytesInProgress:
    return BytesInProgress(Limits(account_body_bytes=account, body_bytes=together))


def take_all(open_ones: ExitStack, bodies: BytesInProgress, account: str) -> None:
    """Take bytes until it is refused."""
    while True:
        open_ones.enter_context(bodies.held(account, 10))


def test_an_account_has_so_many_and_another_its_own() -> None:
    bodies = under_way()
    with bodies.held("a", 60):
        with bodies.held("a", 40), pytest.raises(TooManyRequests, match=r"101 bytes .*account_body_bytes") as refused:
            bodies.held("a", 1).__enter__()
        assert refused.value.fields["retry_after"] > 0
        with bodies.held("a", 40), bodies.held("b", 100):
            assert len(bodies) == 200
    assert len(bodies) == 0


def test_those_who_have_most_leave_room_for_who_comes() -> None:
    """Without the rule two accounts hold all, and the third is refused everything."""
    bodies = under_way(account=1000)
    with ExitStack() as open_ones:
        for account in ("a", "b"):
            with pytest.raises(TooManyRequests, match="body_bytes"):
                take_all(open_ones, bodies, account)
        with bodies.held("c", 90), bodies.held("c", 0):
            assert len(bodies) < 400


def test_what_has_no_body_is_never_refused() -> None:
    bodies = under_way(account=100, together=100)
    with bodies.held("a", 50), bodies.held("a", 0), bodies.held("b", 0):
        assert len(bodies) == 50
