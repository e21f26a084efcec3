"""The decisions of the dispatcher."""

from datetime import UTC, datetime, timedelta

import pytest

from onbrand.services.job_queue import QueueEntry
from onbrand.training.dispatch.admission import fair_order
from onbrand.training.dispatch.dispatcher import CANCEL_SECONDS, MAX_ATTEMPTS, Observation, decide

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job(job_id="j1", brand_id="acme", **known) -> QueueEntry:
    usual = {
        "user_id": "u",
        "status": "pending",
        "provider": "ray",
        "provider_job_id": None,
        "attempts": 0,
        "cancel_requested": False,
        "heartbeat_at": None,
        "kind": "training",
        "created_at": NOW,
    }
    return QueueEntry(brand_id=brand_id, job_id=job_id, **usual | known)


TRAINING = {"status": "training", "provider_job_id": "s1", "attempts": 1}
CANCELED = TRAINING | {"cancel_requested": True}
SILENT = TRAINING | {"heartbeat_at": NOW - timedelta(hours=1)}
CASES = [
    ("a new job is submitted", job(), None, Observation(), "submit"),
    ("a new job that was canceled never starts", job(cancel_requested=True), None, Observation(), "cancel"),
    ("a running job is left alone", job(**TRAINING), "running", Observation(), "wait"),
    ("a submission that just ended may still write its row", job(**TRAINING), "succeeded", Observation(), "wait"),
    ("a driver that died is started again", job(**TRAINING), "failed", Observation(True), "submit"),
    ("a submission of an earlier cluster is started again", job(**TRAINING), "lost", Observation(True), "submit"),
    ("the third requeue is made", job(**TRAINING | {"attempts": 3}), "lost", Observation(True), "submit"),
    ("and there is no fourth", job(**TRAINING | {"attempts": MAX_ATTEMPTS}), "lost", Observation(True), "fail"),
    ("a stopped job that was canceled is canceled", job(**CANCELED), "stopped", Observation(True), "cancel"),
    ("a worker has time to cancel", job(**CANCELED), "running", Observation(False, 90.0), "wait"),
    ("a worker that does not cancel is stopped", job(**CANCELED), "running", Observation(False, 0.0), "stop"),
    ("a silent worker is stopped", job(**SILENT), "running", Observation(), "stop"),
]


@pytest.mark.parametrize(("told", "row", "status", "observation", "verb"), CASES, ids=[case[0] for case in CASES])
def test_the_dispatcher_decides(told, row, status, observation, verb):
    assert decide(row, status, observation, at=CANCEL_SECONDS + 50, now=NOW) == verb


def test_a_brand_with_many_jobs_does_not_keep_another_waiting():
    waiting = [job("a1"), job("a2"), job("a3"), job("b1", brand_id="bolt")]
    assert [each.job_id for each in fair_order(waiting, [])] == ["a1", "b1", "a2", "a3"]


def test_a_brand_whose_job_runs_comes_after_one_that_has_none():
    waiting = [job("a2"), job("b1", brand_id="bolt")]
    assert [each.job_id for each in fair_order(waiting, [job("a1")])] == ["b1", "a2"]
