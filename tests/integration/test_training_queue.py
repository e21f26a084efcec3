"""The dispatcher with real rows and a provider that only records calls: each tick starts from the table."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from onbrand.brand import Ticket
from onbrand.config import Limits, Settings
from onbrand.db.limits import set_limits
from onbrand.errors import Conflict, TicketRefused, TooManyRequests, Unavailable
from onbrand.families.spec import with_family_defaults
from onbrand.services import (
    asset_checks,
    brands,
    generation_parameters,
    generations,
    job_validation,
    jobs,
    training_job,
    training_worker,
)
from onbrand.training.dispatch.admission import Bounds
from onbrand.training.dispatch.dispatcher import MAX_ATTEMPTS, Dispatcher
from onbrand.training.dispatch.providers.provider import Capacity, ProviderStatus
from onbrand.training.dispatch.submission import offered
from onbrand.training.dispatch.tickets import read_ticket, ticket_folder
from tests.integration.training_queue import fail_all_open_jobs
from tests.stored_assets import store_assets


@dataclass
class Memory:
    """A provider whose submissions have the states that a test sets."""

    name: str = "ray"
    statuses: dict[str, ProviderStatus] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    away: bool = False
    stubborn: bool = False
    room: Capacity | None = None

    strangers: dict[str, str] = field(default_factory=dict)

    def is_of(self, ticket: Ticket, submission: str) -> bool:
        return self.strangers.get(submission) == ticket.job_id

    def capacity(self) -> Capacity | None:
        return self.room

    def submit(self, ticket: Ticket, attempt: int) -> str:
        if self.away:
            raise Unavailable("away")
        submission = f"{ticket.job_id}-{attempt}"
        self.statuses.setdefault(submission, "running")
        return submission

    def status(self, provider_job_id: str) -> ProviderStatus:
        return self.statuses.get(provider_job_id, "lost")

    def stop(self, provider_job_id: str) -> None:
        if self.stubborn:
            raise Unavailable("away")
        self.stopped.append(provider_job_id)


@pytest.fixture
def settings_here(settings: Settings, tmp_path) -> Settings:
    return settings.model_copy(update={"run_storage": str(tmp_path / "runs")})


@pytest.fixture
def owner_connection(database):
    """The database's owner, each of whose statements is committed."""
    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def ray() -> Memory:
    return Memory()


@pytest.fixture
async def dispatcher(settings_here, secrets, db, ray) -> AsyncIterator[Dispatcher]:
    """Runs three jobs at a time, and ignores jobs that other tests left open."""
    await fail_all_open_jobs(db)
    leading = Dispatcher(settings_here, secrets, db, [ray], Bounds(3, 2))
    yield leading
    await leading.resign()


@pytest.fixture
async def create(db, store, make_brand, pictures, settings):
    """`await create()`: (brand, job id) of a new pending job; `brand=` for a second one of the same brand."""
    kept: dict[str, list[str]] = {}

    async def make(brand=None, **config: object):
        brand = brand or await make_brand("queued")
        async with db.user_session(brand.member.scope) as session:
            if brand.id not in kept:
                files = [asset_checks.Upload("a.png", pictures(1), "photo of [brand] logo")]
                of_brand = store.brand(brand.id)
                stored = await store_assets(session, of_brand, brand.id, brand.member.user_id, files, settings.limits)
                kept[brand.id] = [asset.id for asset in stored]
            new = job_validation.NewJob(
                name="a job", model_type="sd15", training_config=config, training_asset_ids=kept[brand.id]
            )
            job = await jobs.create_job(session, brand.id, brand.member.user_id, new)
        return brand, job.id

    return make


@pytest.fixture
async def row(db):
    """`await row(brand, job_id)`: the job as its members see it."""

    async def read(brand, job_id: str) -> training_job.TrainingJob:
        async with db.user_session(brand.member.scope) as session:
            return await jobs.get_job(session, brand.id, job_id)

    return read


async def test_a_pending_job_gets_a_ticket_and_is_submitted_once(dispatcher, create, row, ray, settings_here, secrets):
    brand, job_id = await create()
    await dispatcher.tick()
    await dispatcher.tick()
    assert list(ray.statuses) == [f"{job_id}-1"]
    assert (await row(brand, job_id)).provider_job_id == f"{job_id}-1"
    ticket = Ticket.verify(read_ticket(settings_here, brand.id, job_id), secrets.tickets)
    assert (ticket.brand_id, ticket.job_id, ticket.kind) == (brand.id, job_id, "training")
    assert ticket.on_behalf_of == brand.member.user_id


async def test_the_tickets_file_is_only_ours_and_goes_when_the_job_has_ended(
    dispatcher, create, db, settings_here, tmp_path
):
    brand, job_id = await create()
    await dispatcher.tick()
    [file] = tmp_path.rglob("ticket")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    async with db.system_session(brand.ticket(job_id)) as session:
        await training_worker.fail(session, brand.ticket(job_id), "any", "any reason")
    await dispatcher.tick()
    with pytest.raises(TicketRefused):
        read_ticket(settings_here, brand.id, job_id)


async def test_no_more_jobs_run_than_may_and_no_brand_keeps_the_others_waiting(dispatcher, create, ray):
    busy, first = await create()
    more = [(await create(brand=busy))[1] for _ in range(3)]
    _, other = await create()
    await dispatcher.tick()
    assert len(ray.statuses) == 3
    assert {f"{first}-1", f"{other}-1"} < set(ray.statuses)
    ray.statuses[f"{first}-1"] = "running"
    await dispatcher.tick()
    assert sum(f"{job_id}-1" in ray.statuses for job_id in more) == 1


async def test_a_job_that_ended_without_a_word_is_tried_three_times_and_then_honestly_failed(
    dispatcher, create, row, ray
):
    brand, job_id = await create()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        await dispatcher.tick()
        ray.statuses[f"{job_id}-{attempt}"] = "failed"
        await dispatcher.tick()
    await dispatcher.tick()
    job = await row(brand, job_id)
    assert (job.status, job.error["code"]) == ("failed", "training_lost")
    assert len(ray.statuses) == MAX_ATTEMPTS


async def test_after_a_restart_a_running_job_is_submitted_again(dispatcher, create, row, ray, db):
    brand, job_id = await create()
    await dispatcher.tick()
    async with db.system_session(brand.ticket(job_id)) as session:
        await training_worker.report(session, brand.ticket(job_id), 40, {"step": 4})
    ray.statuses.clear()
    await dispatcher.tick()
    await dispatcher.tick()
    assert (await row(brand, job_id)).provider_job_id == f"{job_id}-2"


async def test_a_canceled_job_whose_worker_is_gone_is_canceled(dispatcher, create, row, ray, db):
    brand, job_id = await create()
    await dispatcher.tick()
    async with db.user_session(brand.member.scope) as session:
        await jobs.request_cancel(session, brand.id, job_id)
    ray.statuses[f"{job_id}-1"] = "stopped"
    await dispatcher.tick()
    await dispatcher.tick()
    assert (await row(brand, job_id)).status == "canceled"


async def test_a_provider_that_is_away_costs_waiting_and_no_attempt(dispatcher, create, row, ray):
    brand, job_id = await create()
    ray.away = True
    await dispatcher.tick()
    assert (await row(brand, job_id)).provider_job_id is None
    ray.away = False
    await dispatcher.tick()
    assert (await row(brand, job_id)).provider_job_id == f"{job_id}-1"


async def test_a_job_for_a_provider_that_is_not_here_is_refused_by_name(settings_here, secrets, db, create, row):
    brand, job_id = await create()
    elsewhere = Dispatcher(settings_here, secrets, db, [Memory(name="elsewhere")])
    await elsewhere.tick()
    await elsewhere.resign()
    job = await row(brand, job_id)
    assert job.status == "failed"
    assert "'ray'" in job.error["message"]


async def remove(db, brand, person) -> None:
    async with db.user_session(brand.admin.scope) as session:
        await brands.remove_member(session, brand.id, person.user_id)


async def test_a_removed_members_job_is_stopped_and_failed_and_an_admin_can_retry_it(
    dispatcher, create, ray, db, settings_here
):
    brand, job_id = await create()
    await dispatcher.tick()
    async with db.system_session(brand.ticket(job_id)) as session:
        await training_worker.report(session, brand.ticket(job_id), 40, {"step": 4})
    await remove(db, brand, brand.member)
    await dispatcher.tick()
    await dispatcher.tick()
    async with db.user_session(brand.admin.scope) as session:
        job = await jobs.get_job(session, brand.id, job_id)
        [*_, last] = await jobs.events(session, brand.id, job_id)
        again = await jobs.retry(session, brand.id, brand.admin.user_id, job_id)
    assert (job.status, job.error["code"]) == ("failed", "member_removed")
    assert (last.kind, last.data["status"]) == ("status", "failed")
    assert ray.stopped == [f"{job_id}-1"]
    with pytest.raises(TicketRefused):
        read_ticket(settings_here, brand.id, job_id)
    await dispatcher.tick()
    assert f"{again.id}-1" in ray.statuses
    ticket = brand.ticket(again.id, on_behalf_of=brand.admin.user_id)
    async with db.system_session(ticket) as session:
        assert (await training_worker.spec_for_worker(session, ticket)).user_id == brand.admin.user_id


async def test_a_removed_members_job_that_waits_never_starts(dispatcher, create, ray, db):
    brand, job_id = await create()
    await remove(db, brand, brand.member)
    await dispatcher.tick()
    async with db.user_session(brand.admin.scope) as session:
        assert (await jobs.get_job(session, brand.id, job_id)).error["code"] == "member_removed"
    assert ray.statuses == {}


async def test_a_removed_members_generation_is_ended(dispatcher, db, make_brand):
    brand = await make_brand("drawn")
    new = generation_parameters.NewGeneration(prompt="a picture", model_type="sd15")
    bases = {"sd15": with_family_defaults("sd15", {"resolution": 64})}
    async with db.user_session(brand.member.scope) as session:
        made = await generations.create_generation(session, brand.id, brand.member.user_id, new, bases, Limits())
    await remove(db, brand, brand.member)
    await dispatcher.tick()
    async with db.user_session(brand.admin.scope) as session:
        ended = await generations.get_generation(session, brand.id, made.id)
    assert (ended.status, ended.error["code"]) == ("failed", "member_removed")


async def test_the_jobs_of_those_who_stay_go_on(dispatcher, create, row, db):
    brand, job_id = await create()
    await remove(db, brand, brand.member2)
    await dispatcher.tick()
    assert (await row(brand, job_id)).provider_job_id == f"{job_id}-1"


async def test_a_provider_that_does_not_stop_a_job_keeps_nothing_from_ending(dispatcher, create, ray, db):
    brand, job_id = await create()
    await dispatcher.tick()
    ray.stubborn = True
    await remove(db, brand, brand.member)
    await dispatcher.tick()
    async with db.user_session(brand.admin.scope) as session:
        assert (await jobs.get_job(session, brand.id, job_id)).status == "failed"


@pytest.fixture
async def other(settings_here, secrets, db, ray) -> AsyncIterator[Dispatcher]:
    """A second dispatcher of the same platform."""
    second = Dispatcher(settings_here, secrets, db, [ray], Bounds(3, 2))
    yield second
    await second.resign()


async def test_of_two_dispatchers_one_acts_and_the_other_takes_over_when_it_is_gone(
    dispatcher, other, create, row, ray, owner_connection
):
    brand, first = await create()
    await dispatcher.tick()
    _, second = await create()
    await other.tick()
    assert list(ray.statuses) == [f"{first}-1"]
    owner_connection.execute("update app.dispatch_lease set until = clock_timestamp()")
    await other.tick()
    await dispatcher.tick()
    assert list(ray.statuses) == [f"{first}-1", f"{second}-1"]
    assert (await row(brand, first)).attempts == 1


async def test_two_dispatchers_at_once_start_each_job_once_and_no_more_than_may_run(
    settings_here, secrets, db, create, ray, row
):
    """Each is made to believe that it leads, as after a pause of one for longer than its lease."""
    await fail_all_open_jobs(db)
    made = [await create() for _ in range(4)]
    several = [Dispatcher(settings_here, secrets, db, [ray], Bounds(3, 2)) for _ in range(3)]
    for each in several:
        each._lead = always_leads(each)
    await asyncio.gather(*(each.tick() for each in several))
    jobs_now = [await row(brand, job_id) for brand, job_id in made]
    assert sorted(job.attempts for job in jobs_now) == [0, 1, 1, 1]
    assert len(ray.statuses) == 3
    for submission in list(ray.statuses):
        ray.statuses[submission] = "failed"
    for _ in range(2):
        await asyncio.gather(*(each.tick() for each in several))
    assert max([(await row(brand, job_id)).attempts for brand, job_id in made]) == 2


def always_leads(dispatcher: Dispatcher):
    async def lead(session: object, seconds: float) -> bool:
        dispatcher._leads_until = time.monotonic() + 60
        return True

    return lead


async def test_an_attempt_that_a_late_dispatcher_reports_again_counts_once(dispatcher, create, row, db):
    brand, job_id = await create()
    await dispatcher.tick()
    ticket = brand.ticket(job_id)
    async with db.system_session(ticket) as session:
        await training_worker.submitted(session, ticket, f"{job_id}-1", 1)
    assert (await row(brand, job_id)).attempts == 1
    async with db.system_session(ticket) as session:
        await training_worker.submitted(session, ticket, f"{job_id}-2", 2)
    with pytest.raises(Conflict):
        async with db.system_session(ticket) as session:
            await training_worker.submitted(session, ticket, f"{job_id}-1", 1)


async def test_owners_are_told_what_their_jobs_wait_for_and_how_many_of_theirs_are_ahead(
    dispatcher, create, row, ray, db
):
    brand, first = await create()
    waiting = [(await create(brand=brand))[1] for _ in range(3)]
    await dispatcher.tick()
    await dispatcher.tick()
    seen = [await row(brand, job_id) for job_id in (first, *waiting)]
    assert [(job.waiting_for, job.num_ahead is not None) for job in seen] == [
        (None, True),
        (None, True),
        ("brand", True),
        ("brand", True),
    ]
    assert [job.num_ahead for job in seen] == [0, 1, 2, 3]
    async with db.user_session(brand.member.scope) as session:
        told = await jobs.events(session, brand.id, waiting[1])
    assert [(event.kind, event.data) for event in told] == [("waiting", {"for": "brand"})]
    ray.statuses[f"{first}-1"] = "lost"
    async with db.system_session(brand.ticket(first)) as session:
        await training_worker.fail(session, brand.ticket(first), "any", "any reason")
    await dispatcher.tick()
    now = await row(brand, waiting[1])
    assert (now.provider_job_id, now.waiting_for) == (f"{waiting[1]}-1", None)


async def test_a_job_that_fits_on_no_machine_waits_and_then_fails_honestly(
    dispatcher, create, row, ray, owner_connection
):
    ray.room = Capacity(2, 2, 2)
    brand, job_id = await create(num_workers=4)
    _, small = await create()
    await dispatcher.tick()
    await dispatcher.tick()
    assert (await row(brand, job_id)).waiting_for == "resources"
    assert list(ray.statuses) == [f"{small}-1"]
    owner_connection.execute(
        "update app.lora_training_jobs set waiting_since = waiting_since - interval '2 hours' where id = %s", [job_id]
    )
    await dispatcher.tick()
    job = await row(brand, job_id)
    assert (job.status, job.error["code"]) == ("failed", "no_resources")
    assert "4 workers" in job.error["message"]


async def test_the_operator_gives_a_brand_more_and_less(dispatcher, create, ray, database):
    brand, _ = await create()
    for _ in range(4):
        await create(brand=brand)
    set_limits(database.owner_url, brand.id, {"max_running_trainings": 1})
    await dispatcher.tick()
    assert len(ray.statuses) == 1
    set_limits(database.owner_url, brand.id, {"max_running_trainings": 3})
    await dispatcher.tick()
    assert len(ray.statuses) == 3


async def test_a_brand_with_too_many_open_jobs_is_told_to_wait_and_another_is_not(create, database, db):
    brand, first = await create()
    set_limits(database.owner_url, brand.id, {"max_open_trainings": 1})
    with pytest.raises(TooManyRequests) as refused:
        await create(brand=brand)
    assert refused.value.fields["retry_after"] > 0
    await create()
    async with db.system_session(brand.ticket(first)) as session:
        await training_worker.fail(session, brand.ticket(first), "any", "any reason")
    await create(brand=brand)


async def test_a_submission_that_somebody_made_of_a_pending_job_becomes_its_first_attempt(
    dispatcher, create, row, ray, settings_here
):
    brand, job_id = await create()
    folder = Path(ticket_folder(settings_here, brand.id, job_id))
    with offered(folder, "raysubmit_1"):
        ray.strangers["raysubmit_1"] = job_id
        await dispatcher.tick()
    job = await row(brand, job_id)
    assert (job.provider_job_id, job.attempts) == ("raysubmit_1", 1)
    assert ray.statuses == {}
    await dispatcher.tick()
    await dispatcher.tick()
    assert (await row(brand, job_id)).provider_job_id == f"{job_id}-2"


async def test_a_note_that_names_another_jobs_submission_changes_nothing(dispatcher, create, row, ray, settings_here):
    brand, job_id = await create()
    with offered(Path(ticket_folder(settings_here, brand.id, job_id)), "raysubmit_2"):
        ray.strangers["raysubmit_2"] = "another"
        await dispatcher.tick()
    assert (await row(brand, job_id)).provider_job_id == f"{job_id}-1"
