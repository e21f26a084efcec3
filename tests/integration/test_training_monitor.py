"""The monitor of a training: a bounded number of points, log lines, samples with the base's, events."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import pytest

import onbrand.client as sdk
from onbrand.internal.log_lines import Line
from onbrand.services import logs, training_worker
from tests.conftest import BrandOfPeople, MakeBrand
from tools.harness.in_process_platform import Platform, upload, weights

FACTS = {"rank": 4, "trigger_word": "zilgo", "base_revision": "r"}


@dataclass
class Trained:
    """A brand with a job, and reports on it as its worker sends them."""

    platform: Platform
    brand: BrandOfPeople
    id: str
    pictures: Any

    @property
    def at(self) -> str:
        return f"/v1/brands/{self.brand.id}/training-jobs/{self.id}"

    def client(self) -> httpx.AsyncClient:
        return self.platform.client(self.brand.member)

    def worker(self) -> Any:
        return self.platform.system(self.brand.ticket(self.id))

    async def get(self, path: str = "", **asked: Any) -> Any:
        async with self.client() as client:
            answer = await client.get(f"{self.at}{path}", params=asked)
            assert answer.status_code == 200, answer.text
            return answer.json()

    async def tell(self, *steps: int, lines: tuple[Line, ...] = ()) -> None:
        """Report these steps and lines in one transaction."""
        ticket = self.brand.ticket(self.id)
        async with self.platform.db.system_session(ticket) as session:
            for step in steps:
                numbers = {"step": step, "loss": 1 / (1 + step), "learning_rate": 1e-4, "eta_seconds": 60.0}
                await training_worker.report(session, ticket, 1, numbers)
            if lines:
                await training_worker.report(session, ticket, lines=lines)

    async def complete(self) -> None:
        async with self.worker() as worker:
            await worker.publish(weights(self.id), FACTS)


@pytest.fixture
async def job(platform: Platform, make_brand: MakeBrand, pictures: Any) -> Trained:
    brand = await make_brand("monitor")
    async with platform.client(brand.member) as client:
        asset = await upload(client, brand.id, pictures(1))
        body = {"name": "n", "model_type": "sd15", "training_config": {"seed": 7}, "training_asset_ids": [asset["id"]]}
        made = (await client.post(f"/v1/brands/{brand.id}/training-jobs", json=body)).json()
    return Trained(platform, brand, made["id"], pictures)


def judged(step: int, loss: float, best: bool = False) -> Line:
    return Line(code="judged_best" if best else "judged", facts={"step": step, "loss": loss})


@pytest.mark.parametrize(("asked", "num"), [({"limit": 2}, 2), ({"limit": 7}, 7), ({"limit": 40}, 30), ({}, 30)])
async def test_a_course_has_at_most_the_points_that_were_asked_for_its_ends_among_them(
    job: Trained, asked: dict[str, int], num: int
) -> None:
    await job.tell(*range(10, 310, 10))
    course = await job.get("/metrics", **asked)
    steps = [point["step"] for point in course["data"]]
    assert (len(steps), course["num_points"]) == (num, 30)
    assert (steps[0], steps[-1]) == (10, 300)
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    assert max(gaps) - min(gaps) <= 10, "they are spread evenly"
    assert course["data"][0] | {"at": ""} == {
        "step": 10, "at": "", "progress": 1, "loss": 1 / 11, "prior_loss": None, "kept_loss": None,
        "learning_rate": 1e-4, "gradient_norm": None, "samples_per_s": None, "eta_seconds": 60.0,
    }  # fmt: skip


async def test_what_a_resumed_run_tells_again_takes_the_place_of_what_it_told_before(job: Trained) -> None:
    await job.tell(1, 2, 3, 4, lines=(judged(2, 0.5, True), judged(4, 0.4, True)))
    await job.tell(3, 3, 5, lines=(judged(4, 0.45, True), judged(6, 0.6)))
    course = await job.get("/metrics")
    assert [point["step"] for point in course["data"]] == [1, 2, 3, 5]
    assert [(each["step"], each["loss"]) for each in course["validations"]] == [(2, 0.5), (4, 0.45), (6, 0.6)]
    assert (course["best"]["step"], course["best"]["loss"], course["num_validations"]) == (4, 0.45, 3)
    later = await job.get("/metrics", after_step=3)
    assert [point["step"] for point in later["data"]] == [5]


async def test_a_course_before_the_first_report_is_empty(job: Trained) -> None:
    course = await job.get("/metrics")
    assert (course["data"], course["num_points"], course["validations"], course["best"]) == ([], 0, [], None)


@pytest.mark.parametrize("limit", [1, 1001, -5])
async def test_a_limit_that_is_out_of_bounds_is_named(job: Trained, limit: int) -> None:
    async with job.client() as client:
        answer = await client.get(f"{job.at}/metrics", params={"limit": limit})
    assert (answer.status_code, answer.json()["param"]) == (422, "limit")


async def test_numbers_that_are_none_break_no_course(job: Trained) -> None:
    async with job.worker() as worker:
        await worker.report(1, {"step": "photo of acme", "loss": 1})
        await worker.report(1, {"step": 2, "loss": "photo of acme"})
    [point] = (await job.get("/metrics"))["data"]
    assert (point["step"], point["loss"]) == (2, None)


async def test_the_log_tells_a_whole_run_in_our_words(job: Trained) -> None:
    async with job.worker() as worker:
        lines = [Line(code="pictures", facts={"num_trained": 10, "num_held_out": 2}), judged(20, 0.25, True)]
        await worker.report(5, {"step": 20}, [line.model_dump() for line in lines])
        await worker.add_sample(0, 0, job.pictures(7), drawn_by="base")
        await worker.add_sample(20, 0, job.pictures(8))
    await job.complete()
    told = (await job.get("/logs"))["data"]
    assert [line["message"] for line in told] == [
        "training begins",
        "10 pictures are trained on, 2 are held out to judge by",
        "step 20: loss 0.2500 on the held-out pictures, the best so far",
        "sample 0 is drawn by the base alone",
        "sample 0 is drawn at step 20",
        "published as sd15-lora-v1",
    ]
    assert {line["level"] for line in told} == {"info"}
    first = await job.get("/logs", limit=4)
    rest = await job.get("/logs", limit=4, cursor=first["next_cursor"])
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert first["data"] + rest["data"] == told


async def test_the_reason_of_a_failure_is_the_last_line(job: Trained) -> None:
    async with job.worker() as worker:
        await worker.report(1)
        await worker.fail("training_failed", "the loss is not finite at step 3")
    last = (await job.get("/logs"))["data"][-1]
    assert (last["level"], last["message"]) == ("error", "failed: the loss is not finite at step 3")


@pytest.mark.parametrize(
    "line",
    [
        {"code": "odd", "facts": {}},
        {"code": "kept", "facts": {"step": "photo of acme logo"}},
        {"code": "kept", "facts": {"step": 1, "caption": "photo of acme logo"}},
        {"code": "copied", "facts": {"step": 1, "index": 0, "asset_id": "photo of acme logo"}},
        {"code": "kept", "facts": {"step": 10**400}},
    ],
)
async def test_a_worker_cannot_write_text_into_the_log(job: Trained, line: dict[str, Any]) -> None:
    ticket = job.brand.ticket(job.id).sign(job.platform.secrets.tickets)
    transport = httpx.ASGITransport(job.platform.system_app)
    headers = {"authorization": f"Bearer {ticket}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as worker:
        answer = await worker.post("/v1/training/report", json={"lines": [line]})
    assert answer.status_code == 422
    assert "acme" not in answer.text
    assert (await job.get("/logs"))["data"] == []


async def test_a_log_has_an_end(job: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LINES_MAX", 3)
    kept = [Line(code="kept", facts={"step": step}) for step in range(4)]
    await job.tell(lines=tuple(kept[:2]))
    await job.tell(lines=tuple(kept[2:]))
    told = [line["facts"] for line in (await job.get("/logs"))["data"] if line["code"] == "kept"]
    assert told == [{"step": 0}, {"step": 1}, {"step": 2}]


async def test_the_bases_sample_comes_first_with_the_same_seed_and_goes_with_the_job(job: Trained) -> None:
    async with job.worker() as worker:
        await worker.add_sample(20, 1, job.pictures(8))
        for _ in range(2):
            await worker.add_sample(0, 1, job.pictures(7), drawn_by="base")
    samples = (await job.get("/samples"))["data"]
    assert [(each["drawn_by"], each["step"], each["index"], each["seed"]) for each in samples] == [
        ("base", 0, 1, 8),
        ("adapter", 20, 1, 8),
    ]
    async with job.client() as client:
        shown = [(await client.get(each["url"])).content for each in samples]
    assert shown == [job.pictures(7), job.pictures(8)]
    first = await job.get("/samples", limit=1)
    rest = await job.get("/samples", limit=1, cursor=first["next_cursor"])
    assert [page["data"][0]["drawn_by"] for page in (first, rest)] == ["base", "adapter"]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    await job.complete()
    store = job.platform.store.brand(job.brand.id)
    assert len(store.list("generated-content")) == 2
    async with job.platform.client(job.brand.admin) as admin:
        assert (await admin.delete(job.at)).status_code == 204
    assert store.list("generated-content") == []


async def test_time_left_runs_down_and_ends_with_the_job(job: Trained) -> None:
    assert (await job.get())["eta_seconds"] is None
    await job.tell(1)
    left = (await job.get())["eta_seconds"]
    assert 0 < left <= 60
    await job.complete()
    assert (await job.get())["eta_seconds"] is None


async def test_a_stream_of_more_events_than_one_look_gives_tells_all_and_resumes_anywhere(job: Trained) -> None:
    await job.tell(*range(1100), lines=(judged(7, 0.25),))
    await job.complete()

    async def heard(**headers: str) -> list[str]:
        async with job.client() as client:
            text = (await client.get(f"{job.at}/events", headers=headers)).text
        return [block for block in text.split("\n\n") if block.startswith("id: ")]

    told = await heard()
    assert [block.split("\n")[0] for block in told] == [f"id: {seq}" for seq in range(1, 1104)]
    assert '"status":"completed"' in told[-1]
    [line] = [block for block in told if "event: log" in block]
    assert '"message":"step 7: loss 0.2500 on the held-out pictures"' in line
    assert await heard(**{"last-event-id": "1000"}) == told[1000:]
    assert await heard(**{"last-event-id": "1103"}) == []


async def test_the_sdk_shows_course_samples_and_log(job: Trained, tmp_path: Any) -> None:
    await job.tell(1, 2, lines=(judged(2, 0.25, True),))
    async with job.worker() as worker:
        await worker.add_sample(0, 0, job.pictures(7), drawn_by="base")

    def look() -> None:
        with sdk.Onbrand(job.platform.url, job.platform.token(job.brand.member)) as client:
            seen = client.training_jobs.get(job.brand.id, job.id)
            assert seen.eta_seconds is not None
            course = seen.metrics_series(limit=2)
            assert ([point.step for point in course.data], course.best and course.best.loss) == ([1, 2], 0.25)
            [sample] = seen.samples()
            assert sample.download(tmp_path).name == "base-00.png"
            assert sample.read() == job.pictures(7)
            lines = list(seen.logs())
            assert list(seen.logs(after=lines[0].seq)) == lines[1:]
            assert lines[-1].code == "sample"

    await asyncio.to_thread(look)
