"""A caller that got 429 gets it again for a second; other callers do not."""

from __future__ import annotations

import time

import pytest

from onbrand.api.http.refusal_cache import SECONDS, Refusals
from onbrand.errors import TooManyRequests

FULL = TooManyRequests("the account is full", retry_after=5, of_account=True)
BUSY = TooManyRequests("the brand is full", retry_after=7)


@pytest.fixture
def refusals() -> Refusals:
    return Refusals()


def test_a_refusal_is_repeated_with_its_words_and_its_time(refusals: Refusals) -> None:
    refusals.note("ada", "acme", "account", 2, BUSY)
    with pytest.raises(TooManyRequests, match="the brand is full") as refused:
        refusals.must_not_be_refused("ada", "acme", 2)
    assert refused.value.fields["retry_after"] == 7


def test_one_of_a_brand_holds_for_that_caller_there_alone(refusals: Refusals) -> None:
    refusals.note("ada", "acme", "account", 2, BUSY)
    refusals.must_not_be_refused("bob", "acme", 2)
    refusals.must_not_be_refused("ada", "globex", 2)


def test_one_of_an_account_holds_in_its_brands_for_who_was_refused_in_them(refusals: Refusals) -> None:
    refusals.note("ada", "acme", "account", 2, BUSY)
    refusals.note("ada", "globex", "account", 2, FULL)
    with pytest.raises(TooManyRequests, match="the account is full"):
        refusals.must_not_be_refused("ada", "acme", 2)


def test_a_stranger_is_told_nothing_of_an_account_that_is_full(refusals: Refusals) -> None:
    refusals.note("ada", "acme", "account", 2, FULL)
    refusals.must_not_be_refused("stranger", "acme", 2)


def test_who_asks_for_less_than_was_refused_is_not_told_so(refusals: Refusals) -> None:
    refusals.note("ada", "acme", "account", 2, BUSY)
    refusals.must_not_be_refused("ada", "acme", 1)


def test_it_is_over_after_a_second(refusals: Refusals, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals.note("ada", "acme", "account", 2, FULL)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + SECONDS + 0.01)
    refusals.must_not_be_refused("ada", "acme", 2)


def test_it_remembers_a_bounded_number(refusals: Refusals) -> None:
    for number in range(10_001):
        refusals.note("ada", f"brand-{number}", f"account-{number}", 2, BUSY)
    refusals.must_not_be_refused("ada", "brand-0", 2)
    with pytest.raises(TooManyRequests):
        refusals.must_not_be_refused("ada", "brand-10000", 2)
