"""Token buckets: a burst, then a rate, separately for each key."""

from __future__ import annotations

from onbrand.api.http.rate_limits import Rates


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_key_has_a_burst_then_its_rate() -> None:
    clock = Clock()
    rates = Rates(2, 3, clock)
    assert [rates.take("a") for _ in range(5)] == [True, True, True, False, False]
    clock.time = 0.5
    assert [rates.take("a") for _ in range(2)] == [True, False]
    clock.time = 100
    assert [rates.take("a") for _ in range(4)] == [True, True, True, False]


def test_keys_do_not_use_up_one_another() -> None:
    rates = Rates(1, 1, Clock())
    assert rates.take("a")
    assert rates.take("b")
    assert not rates.take("a")


def test_what_is_remembered_is_bounded() -> None:
    clock = Clock()
    rates = Rates(1, 2, clock)
    for number in range(10_000):
        rates.take(number)
    clock.time = 0.5
    rates.take(10_000)
    assert len(rates) == 1  # nobody has refilled yet: all are forgotten
    clock.time = 60
    for number in range(10_001, 20_000):
        rates.take(number)
    rates.take("next")
    assert len(rates) == 10_000
