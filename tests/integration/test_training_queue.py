"""The dispatcher on real rows, with a provider that only remembers: each tick begins from the table."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

import pytest

from onbrand.brand import Ticket
from onbrand.config import Limits, Settings
from onbrand.errors import TicketRefused, Unavailable
from onbrand.families.spec import with_family_defaults
from onbrand.services import assets, brands, images, jobs, training
from onbrand.training.dispatcher import MAX_ATTEMPTS, Dispatcher
from onbrand.training.providers.provider import ProviderStatus
from onbrand.training.tickets import read_ticket
from tests.integration.training_queue import fail_all_open_jobs


@dataclass
class Memory:
    """A provider whose submissions are what a test says they are."""

    name: str = "ray"
    statuses: dict[str, ProviderStatus] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    away: bool = False
    stubborn: bool = False

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
def ray() -> Memory:
    return Memory()


@pytest.fixture
async def dispatcher(settings_here, secrets, doors, ray) -> Dispatcher:
    """Runs three jobs at a time; jobs that other tests left open are none of its."""
    await fail_all_open_jobs(doors)
    return Dispatcher(settings_here, secrets, doors, [ray], max_running=3)


@pytest.fixture
async def create(doors, store, make_brand, pictures, settings):
    """`await create()`: (brand, job id) of a new pending job; `brand=` for a second one of the same brand."""
    kept: dict[str, list[str]] = {}

    async def make(brand=None, provider: str = "ray"):
        brand = brand or await make_brand("queued")
        async with doors.user_session(brand.member.scope) as session:
            if brand.id not in kept:
                files = [assets.Upload("a.png", pictures(1), "photo of [brand] logo")]
                of_brand = store.brand(brand.id)
                stored = await assets.upload(session, of_brand, brand.id, brand.member.user_id, files, settings.limits)
                kept[brand.id] = [asset.id for asset in stored]
            new = jobs.NewJob(name="a job", model_type="sd15", training_asset_ids=kept[brand.id])
            job = await jobs.create_job(session, brand.id, brand.member.user_id, new)
        return brand, job.id

    return make


@pytest.fixture
async def row(doors):
    """`await row(brand, job_id)`: the job as its members see it."""

    async def read(brand, job_id: str) -> jobs.TrainingJob:
        async with doors.user_session(brand.member.scope) as session:
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
    dispatcher, create, doors, settings_here, tmp_path
):
    brand, job_id = await create()
    await dispatcher.tick()
    [file] = tmp_path.rglob("ticket")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    async with doors.system_session(brand.ticket(job_id)) as session:
        await training.fail(session, brand.ticket(job_id), "any", "any reason")
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


async def test_after_a_restart_a_running_job_is_submitted_again(dispatcher, create, row, ray, doors):
    brand, job_id = await create()
    await dispatcher.tick()
    async with doors.system_session(brand.ticket(job_id)) as session:
        await training.report(session, brand.ticket(job_id), 40, {"step": 4})
    ray.statuses.clear()
    await dispatcher.tick()
    await dispatcher.tick()
    assert (await row(brand, job_id)).provider_job_id == f"{job_id}-2"


async def test_a_canceled_job_whose_worker_is_gone_is_canceled(dispatcher, create, row, ray, doors):
    brand, job_id = await create()
    await dispatcher.tick()
    async with doors.user_session(brand.member.scope) as session:
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


async def test_a_job_for_a_provider_that_is_not_here_is_refused_by_name(settings_here, secrets, doors, create, row):
    brand, job_id = await create()
    await Dispatcher(settings_here, secrets, doors, [Memory(name="elsewhere")]).tick()
    job = await row(brand, job_id)
    assert job.status == "failed"
    assert "'ray'" in job.error["message"]


async def remove(doors, brand, person) -> None:
    async with doors.user_session(brand.admin.scope) as session:
        await brands.remove_member(session, brand.id, person.user_id)


async def test_a_removed_members_job_is_stopped_and_failed_and_an_admin_can_retry_it(
    dispatcher, create, ray, doors, settings_here
):
    brand, job_id = await create()
    await dispatcher.tick()
    async with doors.system_session(brand.ticket(job_id)) as session:
        await training.report(session, brand.ticket(job_id), 40, {"step": 4})
    await remove(doors, brand, brand.member)
    await dispatcher.tick()
    await dispatcher.tick()
    async with doors.user_session(brand.admin.scope) as session:
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
    async with doors.system_session(ticket) as session:
        assert (await training.spec_for_worker(session, ticket)).user_id == brand.admin.user_id


async def test_a_removed_members_job_that_waits_never_starts(dispatcher, create, ray, doors):
    brand, job_id = await create()
    await remove(doors, brand, brand.member)
    await dispatcher.tick()
    async with doors.user_session(brand.admin.scope) as session:
        assert (await jobs.get_job(session, brand.id, job_id)).error["code"] == "member_removed"
    assert ray.statuses == {}


async def test_a_removed_members_generation_is_ended(dispatcher, doors, make_brand):
    brand = await make_brand("drawn")
    new = images.NewGeneration(prompt="a picture", model_type="sd15")
    bases = {"sd15": with_family_defaults("sd15", {"resolution": 64})}
    async with doors.user_session(brand.member.scope) as session:
        made = await images.create_generation(session, brand.id, brand.member.user_id, new, bases, Limits())
    await remove(doors, brand, brand.member)
    await dispatcher.tick()
    async with doors.user_session(brand.admin.scope) as session:
        ended = await images.get_generation(session, brand.id, made.id)
    assert (ended.status, ended.error["code"]) == ("failed", "member_removed")


async def test_the_jobs_of_those_who_stay_go_on(dispatcher, create, row, doors):
    brand, job_id = await create()
    await remove(doors, brand, brand.member2)
    await dispatcher.tick()
    assert (await row(brand, job_id)).provider_job_id == f"{job_id}-1"


async def test_a_provider_that_does_not_stop_a_job_keeps_nothing_from_ending(dispatcher, create, ray, doors):
    brand, job_id = await create()
    await dispatcher.tick()
    ray.stubborn = True
    await remove(doors, brand, brand.member)
    await dispatcher.tick()
    async with doors.user_session(brand.admin.scope) as session:
        assert (await jobs.get_job(session, brand.id, job_id)).status == "failed"
