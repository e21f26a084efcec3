"""The progress reports of a run to the platform."""

import json
import time
from collections.abc import Callable

import httpx
import pytest

from onbrand.internal.client import SystemClient
from onbrand.internal.log_lines import AT_ONCE_MAX
from onbrand.training.ray.heartbeat import Heartbeat


class Platform:
    """The internal routes, with responses that a test may change."""

    def __init__(self) -> None:
        self.reports: list[dict] = []
        self.tokens: list[str] = []
        self.cancel = False
        self.refuse: tuple[int, str] | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.tokens.append(request.headers["authorization"].removeprefix("Bearer "))
        if request.url.path.endswith("/ticket:renew"):
            return httpx.Response(200, json={"ticket": "renewed"})
        if self.refuse is not None and self.tokens[-1] != "from-file":
            status, code = self.refuse
            kind = {"content-type": "application/problem+json"}
            return httpx.Response(status, headers=kind, content=json.dumps({"code": code, "detail": "no"}))
        self.reports.append(json.loads(request.content))
        return httpx.Response(200, json={"cancel_requested": self.cancel})


@pytest.fixture
def platform() -> Platform:
    return Platform()


def heartbeat(platform: Platform, renew_seconds: float = 100.0) -> Heartbeat:
    client = SystemClient("http://platform", "given", transport=httpx.MockTransport(platform))
    return Heartbeat(client, renew_seconds, lambda: "from-file", interval=0.01)


def eventually(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())


def test_the_first_report_says_that_training_began(platform):
    with heartbeat(platform):
        assert eventually(lambda: platform.reports)
    assert platform.reports[0]["progress"] == 0


def test_the_newest_facts_are_told_even_when_the_run_ends_at_once(platform):
    with heartbeat(platform) as line:
        line.tell(99, {"step": 7})
    assert platform.reports[-1]["metrics"] == {"step": 7}


def said(platform: Platform) -> list[int]:
    return [line["facts"]["step"] for report in platform.reports for line in report["lines"]]


def test_every_line_is_told_once_and_in_order_even_when_the_run_ends_at_once(platform):
    with heartbeat(platform) as line:
        for step in range(AT_ONCE_MAX * 2 + 7):
            line.say("kept", step=step)
    assert said(platform) == list(range(AT_ONCE_MAX * 2 + 7))
    assert max(len(report["lines"]) for report in platform.reports) == AT_ONCE_MAX


def test_lines_wait_while_the_platform_refuses_reports(platform):
    platform.refuse = (503, "unavailable")
    client = SystemClient("http://platform", "given", transport=httpx.MockTransport(platform), patience=0)
    with Heartbeat(client, 100.0, lambda: "given", interval=0.01) as line:
        line.say("kept", step=1)
        assert eventually(lambda: len(platform.tokens) > 2)
        assert platform.reports == []
        platform.refuse = None
        assert eventually(lambda: said(platform) == [1])


def test_a_line_that_is_not_ours_cannot_be_said(platform):
    line = heartbeat(platform)
    for code, facts in [
        ("odd", {}),
        ("kept", {}),
        ("kept", {"step": "photo of acme"}),
        ("kept", {"step": float("nan")}),
    ]:
        with pytest.raises(ValueError, match=r"."):
            line.say(code, **facts)


def test_a_request_to_cancel_is_heard(platform):
    with heartbeat(platform) as line:
        platform.cancel = True
        assert eventually(lambda: line.stop)
    assert line.cancel_requested
    assert not line.gone


@pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (409, "conflict")])
def test_a_job_that_is_gone_or_ended_stops_the_run(platform, status, code):
    platform.refuse = (status, code)
    with heartbeat(platform) as line:
        assert eventually(lambda: line.gone)


def test_the_ticket_is_renewed_in_time(platform):
    with heartbeat(platform, renew_seconds=0.02):
        assert eventually(lambda: "renewed" in platform.tokens)


def test_a_ticket_that_ran_out_is_replaced_from_its_file(platform):
    platform.refuse = (401, "ticket_refused")
    with heartbeat(platform):
        assert eventually(lambda: platform.reports)
    assert "from-file" in platform.tokens
