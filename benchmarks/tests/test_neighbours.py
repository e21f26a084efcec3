"""Tests of `benchmarks.neighbours`: every attack gets its expected responses, and results are judged."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from benchmarks import neighbours
from benchmarks.lib import attacks
from benchmarks.lib.attacks import ATTACKS, Attacker, Orders
from benchmarks.neighbours import Heard, Ordinary, compared, is_borne
from tools.harness.in_process_platform import Platform


@pytest.fixture
async def caller(platform: Platform) -> AsyncIterator[Ordinary]:
    """The ordinary caller."""
    name = f"ordinary-{uuid.uuid4().hex[:8]}"
    async with neighbours.somebody(platform.url, name) as http:
        yield await neighbours.with_a_brand(http, name)


@pytest.fixture
async def orders(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Orders]:
    """Orders of the hostile caller for two brands and one second."""
    name = f"hostile-{uuid.uuid4().hex[:8]}"
    monkeypatch.setattr(neighbours, "NUM_BRANDS", 2)
    monkeypatch.setattr(neighbours, "HOSTILE", name)
    async with neighbours.somebody(platform.url, name) as http:
        yield await neighbours.orders_of(http, 1.0)


async def answered(name: str, orders: Orders) -> Counter[str]:
    """The attack until it has been answered: of connections that are held, all that are wanted."""
    attacker = Attacker(orders)
    attacking = asyncio.create_task(ATTACKS[name](attacker))
    wanted = attacks.NUM_OPEN if name in ("one_byte", "slow_headers", "slow_bodies") else 1
    try:
        async with asyncio.timeout(60):
            while attacker.answers.total() < wanted and not attacking.done():
                await asyncio.wait([attacking], timeout=0.1)
    finally:
        attacking.cancel()
        await asyncio.wait([attacking])
    return attacker.answers


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_is_made(platform: Platform, orders, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A small one, in this process; each of its answers is one that it is meant to get."""
    few = {"NUM_KEYS": 500, "NUM_CONNECTIONS": 2, "NUM_OPEN": 20, "NUM_LOGINS": 4, "NUM_STREAMS": 12}
    for what, number in {**few, "NUM_UPLOADS": 2, "NUM_CHECKS": 2, "NUM_READS": 2}.items():
        monkeypatch.setattr(attacks, what, number)
    answers = await answered(name, orders)
    meant = {
        "bodies_without_credential": {"401", "422"},
        "bodies_with_credential": {"422"},
        "wrong_logins": {"401", "429"},
        "plain_reads": {"200"},
        "many_brands": {"201", "202"},
        "event_streams": {"429"},
        "uploads": {"201"},
        "checks": {"200"},
    }
    assert answers.keys() <= meant.get(name, {"connected"})


async def test_the_ordinary_caller_reads_and_draws_and_is_told_no_lie(caller: Ordinary) -> None:
    heard = await caller.lives(0.5)
    assert (heard.refused, len(heard.read) >= 4, len(heard.picture)) == ([], True, 1)
    assert await neighbours.is_healthy(caller)


async def test_what_is_no_answer_is_counted(caller: Ordinary) -> None:
    caller.brand_id = "of-nobody"
    assert set((await caller.lives(0.25)).refused) == {"404"}
    assert not await neighbours.is_healthy(caller)


def test_figures_say_what_was_borne() -> None:
    alone = Heard(read=[0.1] * 100, picture=[1.0])
    borne = compared(alone, Heard(read=[0.1] * 99 + [9.0], picture=[2.9])) | {"healthy": True}
    assert (borne["read"]["ratio"], borne["ratio"], is_borne(borne)) == (1.0, 2.9, True)
    slow = compared(alone, Heard(read=[0.1] * 90 + [0.31] * 10, picture=[1.0])) | {"healthy": True}
    refused = compared(alone, Heard(read=[0.1], picture=[1.0], refused=["429"])) | {"healthy": True}
    assert [is_borne(each) for each in (slow, refused, borne | {"healthy": False})] == [False] * 3
    assert (refused["refused"], refused["refusals"]) == (1, ["429"])
