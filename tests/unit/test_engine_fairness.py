"""The fair queue without a model: shares, weights, returning brands, accounts, keys, the bound of one batch step."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from onbrand.engine.batch import EngineJob, batch_size_for, default_batch_sizes
from onbrand.engine.fair_queue import FairQueue
from onbrand.engine.request import Plan
from tools.harness.engine_requests import engine_request


def job(
    brand: str = "acme", num_images: int = 1, size: int = 64, cfg: float = 3.0, steps: int = 4, **more
) -> EngineJob:
    """A job that can step, as its conditioning is ready."""
    request = engine_request(f"{brand}-request", brand, "a prompt", 0, num_images=num_images, **more)
    return EngineJob(request, Plan(size, size, steps, cfg, cfg), prepared=SimpleNamespace(use=None))


@dataclass
class Simulation:
    """The queue with rows that only count, and a separate ledger of each brand's service.

    `gap_steps` is by how much a brand was ever ahead of another, in its own batch steps, while both were left something
    to wait for.

    Args:
        whose: in whose ledger a job counts; accounts instead of brands with `account_of`.
    """

    max_batch: int = 4
    batch_sizes: tuple[int, ...] = ()
    even_passes: bool = False
    refused: set[str] = field(default_factory=set)
    whose: Callable[[EngineJob], str] = lambda each: each.brand_id

    def __post_init__(self) -> None:
        self.batch_sizes = self.batch_sizes or default_batch_sizes(self.max_batch)
        self.queue = FairQueue(self.max_batch, self.batch_sizes, self.even_passes)
        self.jobs: list[EngineJob] = []
        self.steps: Counter[tuple[EngineJob, int]] = Counter()
        self.ledger: Counter[str] = Counter()
        self.batch_step: dict[str, float] = {}
        self.floor = 0.0
        self.gap_steps = 0.0

    def add(self, *jobs: EngineJob) -> None:
        for each in jobs:
            self.jobs.append(each)
            self.queue.push(each)

    def leave(self, brand: str) -> None:
        for each in [each for each in self.jobs if each.brand_id == brand]:
            self._end(each)

    def step(self) -> list[str]:
        """One pass; the brands of its rows."""
        could = {each: each.num_to_step for each in self.jobs if each.brand_id not in self.refused}
        chosen = self.queue.next_batch(lambda each: each.brand_id not in self.refused)
        assert len(chosen) <= self.max_batch
        assert len({each.key for each in chosen}) <= 1
        for brand in {self.whose(each) for each in self.jobs}:
            self.ledger[brand] = max(self.ledger[brand], self.floor)
        for each, num in Counter(chosen).items():
            self._advance(each, num)
        if chosen:
            dummies = batch_size_for(len(chosen), self.batch_sizes) - len(chosen)
            self.ledger[self.whose(chosen[0])] += dummies * chosen[0].step_charge
            self._compare({self.whose(each) for each, num in could.items() if num > chosen.count(each)})
        for each in [each for each in self.jobs if each.num_stepped == each.request.parameters.num_images]:
            self._end(each)
        return [each.brand_id for each in chosen]

    def brands(self, num_passes: int) -> Counter[str]:
        return Counter(brand for _ in range(num_passes) for brand in self.step())

    def _advance(self, each: EngineJob, num: int) -> None:
        num_images = each.request.parameters.num_images
        going = [n for n in range(num_images) if self.steps[each, n] < each.plan.num_steps][:num]
        assert len(going) == num
        each.num_started = max(each.num_started, going[-1] + 1)
        for n in going:
            self.steps[each, n] += 1
            each.num_stepped += self.steps[each, n] == each.plan.num_steps
        whose = self.whose(each)
        self.ledger[whose] += num * each.step_charge
        known = self.batch_step.get(whose, 0.0)
        self.batch_step[whose] = max(known, self.max_batch * each.step_charge)

    def _compare(self, left: set[str]) -> None:
        """Compare the brands that still had waiting rows in this pass."""
        lowest = min((self.ledger[brand] for brand in left), default=max(self.ledger.values()))
        for brand in left & set(self.batch_step):
            self.gap_steps = max(self.gap_steps, (self.ledger[brand] - lowest) / self.batch_step[brand])
        self.floor = max(self.floor, lowest)

    def _end(self, each: EngineJob) -> None:
        each.num_stepped = each.request.parameters.num_images
        self.jobs.remove(each)
        self.queue.remove(each)


@pytest.fixture
def simulation() -> Simulation:
    return Simulation()


def test_brands_get_equal_places_however_much_one_sends(simulation):
    simulation.add(*(job("flood", num_images=8) for _ in range(9)), job("quiet", num_images=4, steps=20))
    assert simulation.brands(12) == {"flood": 24, "quiet": 24}


def test_rows_of_who_is_ahead_pause_between_steps(simulation):
    simulation.add(job("early", num_images=4, steps=9))
    assert simulation.step() == ["early"] * 4
    simulation.add(job("late", num_images=4, steps=9))
    assert sorted(simulation.step()) == ["early", "early", "late", "late"]


def test_no_place_stays_empty_while_somebody_wants_it(simulation):
    simulation.add(job("flood", num_images=9, steps=50), job("one", steps=50))
    for _ in range(10):
        assert Counter(simulation.step()) == {"flood": 3, "one": 1}


def test_twice_the_weight_is_twice_the_service(simulation):
    simulation.add(job("half", num_images=8, steps=99), job("double", num_images=8, steps=99, weight=2.0))
    served = simulation.brands(30)
    assert abs(served["double"] - 2 * served["half"]) <= 2


def test_work_counts_not_steps(simulation):
    simulation.add(job("guided", num_images=8, steps=99), job("plain", num_images=8, steps=99, cfg=1.0))
    served = simulation.brands(30)
    assert abs(served["plain"] - 2 * served["guided"]) <= simulation.max_batch * 2


def test_within_a_brand_who_came_first_is_done_first(simulation):
    first, second = job("acme", num_images=6, steps=3), job("acme", num_images=2, steps=3)
    simulation.add(first, second)
    order = []
    while simulation.jobs:
        before = list(simulation.jobs)
        simulation.step()
        order += [each for each in before if each not in simulation.jobs]
    assert order == [first, second]


def test_a_brand_that_returns_from_idle_has_no_credit(simulation):
    simulation.add(job("busy", num_images=8, steps=200))
    simulation.brands(50)
    simulation.add(job("back", num_images=8, steps=200))
    assert simulation.brands(10) == {"busy": 20, "back": 20}


def test_a_brand_alone_owes_nothing_when_another_comes(simulation):
    simulation.add(job("busy", num_images=4, steps=50))
    simulation.brands(50)
    simulation.add(job("busy", num_images=8, steps=50), job("new", num_images=8, steps=50))
    assert simulation.brands(10) == {"busy": 20, "new": 20}


def test_a_brand_that_wants_little_saves_up_no_credit(simulation):
    simulation.add(job("flood", num_images=8, steps=999), job("modest", steps=100))
    simulation.brands(100)
    simulation.add(job("modest", num_images=8, steps=100))
    assert simulation.brands(10) == {"flood": 20, "modest": 20}


def test_a_brand_cannot_shed_what_it_owes_by_leaving_for_a_moment(simulation):
    """`hasty` got a whole pass; that it came anew does not put it level with who waited meanwhile."""
    simulation.add(job("steady", num_images=8, steps=99, size=128), job("hasty", num_images=4, steps=1))
    simulation.step()
    for _ in range(6):
        simulation.step()
        if not any(each.brand_id == "hasty" for each in simulation.jobs):
            simulation.add(job("hasty", num_images=4, steps=1))
    assert simulation.gap_steps <= 1


def test_shapes_take_turns_and_none_starves(simulation):
    for n, size in enumerate((64, 128, 192, 256)):
        simulation.add(*(job(f"brand-{n}", num_images=8, size=size, steps=99) for _ in range(2)))
    served = simulation.brands(400)
    assert set(served) == {f"brand-{n}" for n in range(4)}
    assert simulation.gap_steps <= 1


def test_who_rides_along_with_anothers_shape_gets_no_more_than_a_batch_step_ahead(simulation):
    """`modest` asks for one row of the large shape again and again; `rider` would fill each of its passes."""
    simulation.add(job("rider", num_images=9, size=256, steps=999), job("other", num_images=9, steps=999))
    for _ in range(300):
        if not any(each.brand_id == "modest" for each in simulation.jobs):
            simulation.add(job("modest", size=256, steps=1))
        simulation.step()
    assert simulation.gap_steps <= 1


def test_who_wishes_to_be_alone_pays_for_the_whole_pass():
    simulation = Simulation(4, batch_sizes=(4,))
    simulation.add(job("alone", exclusive=True, steps=999), job("many", num_images=8, steps=999))
    served = simulation.brands(40)
    assert served == {"alone": 20, "many": 80}


def test_who_cannot_have_a_slot_holds_up_nobody_and_is_first_when_it_can(simulation):
    simulation.add(job("blocked", num_images=4, steps=9), job("other", num_images=4, steps=9))
    simulation.refused.add("blocked")
    assert simulation.step() == ["other"] * 4
    simulation.refused.clear()
    assert Counter(simulation.step())["blocked"] == 2


def test_a_job_whose_conditioning_is_not_there_is_passed_over(simulation):
    unprepared, ready = job("acme"), job("acme")
    unprepared.prepared = None
    simulation.add(unprepared, ready)
    assert simulation.step() == ["acme"]
    assert ready.num_started == 1


def test_of_every_brand_the_first_jobs_are_prepared_and_not_all_of_a_flood(simulation):
    jobs = [job("flood") for _ in range(99)] + [job("quiet")]
    for each in jobs:
        each.prepared = None
    simulation.add(*jobs)
    wanted = list(simulation.queue.unprepared())
    assert wanted[0] is jobs[0]
    assert jobs[-1] in wanted
    assert len(wanted) < 20


def test_pictures_waiting_are_counted_by_brand_and_in_all(simulation):
    simulation.add(job("acme", num_images=3), job("globex", num_images=2))
    counts = [simulation.queue.num_images(account) for account in ("acme", None, "nobody")]
    assert counts == [3, 5, 0]
    simulation.step()
    assert simulation.queue.num_images() == 1


def test_brands_that_are_gone_are_forgotten(simulation):
    for n in range(50):
        simulation.add(job(f"brand-{n}", steps=1))
        simulation.brands(2)
    simulation.add(job("last", steps=1))
    simulation.step()
    assert len(simulation.queue._accounts) < 5


@pytest.mark.parametrize("seed", range(12))
def test_of_brands_that_wait_none_is_ever_more_than_a_batch_step_ahead(seed):
    """Any mix of shapes, guidance, weights, steps, comings and goings; every brand is served all the time."""
    dice = random.Random(seed)
    simulation = Simulation(max_batch=dice.choice([2, 4, 8]))
    kinds = [{"size": size, "cfg": cfg} for size in (64, 128) for cfg in (1.0, 3.0)]
    for n in range(6):
        weight, kind = dice.choice([0.5, 1.0, 1.0, 3.0]), dice.choice(kinds)
        simulation.add(job(f"steady-{n}", num_images=16, steps=10_000, weight=weight, **kind))
    for _ in range(400):
        if dice.random() < 0.3:
            brand = f"guest-{dice.randrange(5)}"
            kind = {**dice.choice(kinds), "exclusive": dice.random() < 0.2}
            simulation.add(job(brand, num_images=dice.randint(1, 9), steps=dice.randint(1, 9), **kind))
        if dice.random() < 0.05:
            simulation.leave(f"guest-{dice.randrange(5)}")
        simulation.step()
    assert min(simulation.ledger[f"steady-{n}"] for n in range(6)) > 0
    assert 0.5 < simulation.gap_steps <= 1 + 1e-9  # thirds are rounded


# accounts of several brands


def account_of(each: EngineJob) -> str:
    return each.account_id


def test_forty_brands_of_one_account_get_as_much_as_one_brand_of_another(simulation):
    simulation.add(*(job(f"many-{n}", num_images=8, steps=99, account_id="many") for n in range(40)))
    simulation.add(job("quiet", num_images=8, steps=99, account_id="single"))
    served = simulation.brands(60)
    assert served.pop("quiet") == 120
    assert served.total() == 120


def test_the_brands_of_an_account_share_its_share_evenly(simulation):
    simulation.add(*(job(f"many-{n}", num_images=8, steps=99, account_id="many") for n in range(4)))
    simulation.add(job("quiet", num_images=8, steps=99))
    served = simulation.brands(80)
    del served["quiet"]
    assert served == {f"many-{n}": 40 for n in range(4)}


def test_a_picture_that_comes_among_forty_brands_of_an_account_steps_in_the_next_pass(simulation):
    simulation.add(*(job(f"many-{n}", num_images=8, steps=99, account_id="many") for n in range(40)))
    simulation.brands(50)
    simulation.add(job("quiet", steps=9))
    assert [simulation.step().count("quiet") for _ in range(9)] == [1] * 9


def test_an_account_without_a_name_is_the_brands_own(simulation):
    simulation.add(*(job(f"brand-{n}", num_images=8, steps=99) for n in range(4)))
    assert simulation.brands(20) == {f"brand-{n}": 20 for n in range(4)}


def test_a_brands_weight_counts_within_its_account_and_against_others(simulation):
    large = {"account_id": "many", "num_images": 8, "steps": 999}
    simulation.add(job("double", weight=2.0, **large), job("half", **large), job("quiet", num_images=8, steps=999))
    served = simulation.brands(100)
    assert abs(served["double"] - 2 * served["half"]) <= 3
    assert abs(served["double"] + served["half"] - 1.5 * served["quiet"]) <= 6


def test_an_account_that_returns_with_a_new_brand_has_no_credit(simulation):
    simulation.add(job("busy", num_images=8, steps=400), job("first", steps=1, account_id="many"))
    simulation.brands(50)
    simulation.add(*(job(f"later-{n}", num_images=8, steps=200, account_id="many") for n in range(3)))
    served = simulation.brands(12)
    assert served.pop("busy") == 24
    assert served == {f"later-{n}": 8 for n in range(3)}


def test_an_account_cannot_shed_what_it_owes_by_taking_another_brand(simulation):
    """`hasty` gets whole passes of another shape; each time with a brand that was never seen."""
    simulation.whose = account_of
    simulation.add(job("steady", num_images=8, steps=99, size=128))
    for n in range(12):
        if not any(each.account_id == "hasty" for each in simulation.jobs):
            simulation.add(job(f"hasty-{n}", num_images=4, steps=1, account_id="hasty"))
        simulation.step()
    assert simulation.gap_steps <= 1


def test_of_an_account_with_many_brands_no_more_is_prepared_than_of_another(simulation):
    jobs = [job(f"many-{n}", num_images=2, account_id="many") for n in range(40)] + [job("quiet", num_images=2)]
    for each in jobs:
        each.prepared = None
    simulation.add(*jobs)
    wanted = list(simulation.queue.unprepared())
    assert jobs[-1] in wanted
    assert len(wanted) == 1 + 4  # of two accounts, each has 4 * 4 / 2 pictures


def test_of_an_account_every_brands_first_job_is_prepared_before_any_second(simulation):
    jobs = [job("first", account_id="many") for _ in range(9)] + [job("second", account_id="many")]
    for each in jobs:
        each.prepared = None
    simulation.add(*jobs)
    assert [each.brand_id for each in simulation.queue.unprepared()][:2] == ["first", "second"]


def test_accounts_that_are_gone_are_forgotten_with_their_brands(simulation):
    for n in range(50):
        simulation.add(job(f"brand-{n}", steps=1, account_id=f"account-{n // 5}"))
        simulation.brands(2)
    simulation.add(job("last", steps=1))
    simulation.step()
    assert len(simulation.queue._accounts) < 5


def test_even_passes_have_as_many_rows_of_each_account_as_the_least_has_to_step():
    simulation = Simulation(max_batch=8, even_passes=True)
    simulation.add(*(job(f"many-{n}", num_images=8, steps=99, account_id="many") for n in range(40)))
    assert len(simulation.step()) == 8  # nobody else is there
    simulation.add(job("quiet", steps=3))
    passes = [simulation.step() for _ in range(4)]
    assert [(len(rows), rows.count("quiet")) for rows in passes] == [(2, 1), (2, 1), (2, 1), (8, 0)]


def test_even_passes_are_full_when_two_accounts_can_fill_them():
    simulation = Simulation(max_batch=8, even_passes=True)
    simulation.add(job("one", num_images=8, steps=9), job("other", num_images=8, steps=9))
    assert Counter(simulation.step()) == {"one": 4, "other": 4}


def test_even_passes_keep_the_weights_of_those_who_wait():
    simulation = Simulation(max_batch=8, even_passes=True)
    simulation.add(job("double", num_images=9, steps=999, weight=2.0), job("half", num_images=9, steps=999))
    simulation.add(job("quiet", steps=999))
    served = simulation.brands(200)
    assert abs(served["double"] - 2 * served["half"]) <= 16


@pytest.mark.parametrize("even_passes", [False, True])
@pytest.mark.parametrize("whose", [account_of, lambda each: each.brand_id], ids=["accounts", "brands of one account"])
@pytest.mark.parametrize("seed", range(8))
def test_the_bound_of_a_batch_step_holds_for_accounts_and_for_the_brands_of_one(seed, whose, even_passes):
    """Any mix of shapes, guidance, steps, comings and goings, of accounts with one to nine brands."""
    dice = random.Random(seed)
    simulation = Simulation(max_batch=dice.choice([2, 4, 8]), whose=whose, even_passes=even_passes)
    kinds = [{"size": size, "cfg": cfg} for size in (64, 128) for cfg in (1.0, 3.0)]
    accounts = [f"account-{n}" for n in range(4)] if whose is account_of else ["account-0"]
    for account in accounts:
        for n in range(dice.randint(1, 9)):
            more = {"account_id": account, **dice.choice(kinds)}
            simulation.add(job(f"{account}-steady-{n}", num_images=16, steps=10_000, **more))
    for _ in range(400):
        if dice.random() < 0.3:
            account = dice.choice(accounts)
            kind = {**dice.choice(kinds), "exclusive": dice.random() < 0.2, "account_id": account}
            brand = f"{account}-guest-{dice.randrange(5)}"
            simulation.add(job(brand, num_images=dice.randint(1, 9), steps=dice.randint(1, 9), **kind))
        if dice.random() < 0.05:
            simulation.leave(f"{dice.choice(accounts)}-guest-{dice.randrange(5)}")
        simulation.step()
    assert 0.5 < simulation.gap_steps <= 1 + 1e-9
