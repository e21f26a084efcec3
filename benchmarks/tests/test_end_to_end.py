"""The figures of `benchmarks.end_to_end`, from made-up measurements."""

from __future__ import annotations

import asyncio
import os

import pytest

from benchmarks.end_to_end import Load, Timed, ask, compared, gap_between, loads_of
from benchmarks.lib.processor_time import seconds_of


def timed(seconds: float, *each: float, **more: object) -> Timed:
    return Timed(seconds, list(each), more)


def test_the_ratios_are_those_of_the_same_load() -> None:
    alone = {
        "brands_c1": timed(1, 0.1, 0.1, gap=0.001, core_seconds=0.1),
        "brands_c8": timed(1, 0.2, 0.2, gap=0.001, core_seconds=0.1),
        "brands_c32": timed(1, 0.4, 0.4, gap=0.001, core_seconds=0.1),
    }
    spent = {"engine": 0.11, "ingress": 0.02}
    ours = {
        "brands_c1": timed(1, 0.12, 0.12, gap=0.001, core_seconds=spent, transactions=6, client=0.001),
        "brands_c8": timed(2, 0.3, 0.3, gap=0.001, core_seconds=spent, transactions=7, client=0.001),
        "brands_c32": timed(4, 0.5, 0.5, 1.0, gap=0.0011, core_seconds=spent, transactions=6, client=0.001),
    }
    figures = compared(ours, alone)
    assert (figures["over_engine_c8"], figures["over_engine_c32"]) == (0.5, 0.375)
    assert figures["single_over_engine"] == 1.2
    assert figures["overhead_core_seconds"] == pytest.approx(0.03)
    assert figures["transactions_per_picture"] == 7
    assert figures["p99_over_p50_c32"] == 2
    assert figures["step_gap_over_engine_c32"] == 1.1


def test_the_loads_are_few_at_concurrency_1_and_many_otherwise() -> None:
    loads = loads_of(64, 8, [1, 8], with_base=True)
    assert [(load.name, load.num) for load in loads] == [
        ("brands_c1", 16), ("brands_c8", 64), ("base_c1", 16), ("base_c8", 64),
    ]  # fmt: skip


async def test_every_request_is_sent_once_and_no_more_at_once_than_wanted() -> None:
    sent, now, most = [], 0, 0

    async def draw(number: int) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        sent.append(number)

    done = await ask(Load(3, 20, 0), draw)
    assert (sorted(sent), most, len(done.each)) == (list(range(20)), 3, 20)


def test_a_gap_is_a_mean_and_a_process_has_a_time() -> None:
    before, after = {"num_gaps": 10, "gap_seconds": 1.0}, {"num_gaps": 20, "gap_seconds": 2.0}
    assert gap_between(before, after) == 0.1
    assert seconds_of(os.getpid()) > 0
    assert seconds_of(2**22 + 1) == 0
