"""A driver trains nothing before the job's row names its submission."""

import stat
from pathlib import Path

import pytest

from onbrand.config import Settings
from onbrand.errors import Conflict, TicketRefused, Unavailable
from onbrand.internal.training import TrainingSpec
from onbrand.training.dispatch import submission
from onbrand.training.dispatch.submission import manual_submission, offered, own_submission, wait_until_named
from onbrand.training.dispatch.tickets import ticket_folder

JOB = "0b8a4c1e-1111-4222-8333-444455556666"
OWN = f"onbrand-{JOB}-2"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(submission, "_LOOK_SECONDS", 0.01)


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(data_dir=tmp_path)


def row(provider_job_id: str | None) -> TrainingSpec:
    return TrainingSpec(
        brand_id="acme",
        job_id=JOB,
        user_id="u",
        name="n",
        model_type="sd15",
        training_config={},
        assets=(),
        provider_job_id=provider_job_id,
    )


class Row:
    """The row at each read; the last state stays. None: there is no ticket yet."""

    def __init__(self, settings: Settings, *said: str | None) -> None:
        self.settings, self.said, self.asked = settings, list(said), []

    def look(self) -> TrainingSpec:
        self.asked.append(manual_submission(ticket_folder(self.settings, "acme", JOB)))
        now = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if now == "no ticket":
            raise TicketRefused("none")
        return row(now)


def turn(settings: Settings, submission: str, seen: Row, patience: float = 30.0) -> TrainingSpec:
    return wait_until_named(settings, "acme", JOB, submission, seen.look, patience)


def test_the_dispatchers_driver_waits_until_its_row_is_written(settings):
    seen = Row(settings, f"onbrand-{JOB}-1", f"onbrand-{JOB}-1", OWN)
    assert turn(settings, OWN, seen).provider_job_id == OWN
    assert seen.asked == [None] * 3


def test_an_engineers_submission_asks_and_waits_for_the_jobs_turn(settings):
    seen = Row(settings, "no ticket", None, "raysubmit_1")
    assert turn(settings, "raysubmit_1", seen).provider_job_id == "raysubmit_1"
    assert seen.asked == ["raysubmit_1"] * 3
    assert manual_submission(ticket_folder(settings, "acme", JOB)) is None
    assert not Path(ticket_folder(settings, "acme", JOB)).exists()


def test_a_job_that_another_submission_runs_is_refused_by_its_name(settings):
    with pytest.raises(Conflict, match=f"is run as {OWN}"):
        turn(settings, "raysubmit_1", Row(settings, OWN))


def test_a_job_whose_turn_does_not_come_is_left_in_the_queue(settings):
    with pytest.raises(Unavailable, match="stays in the queue"):
        turn(settings, "raysubmit_1", Row(settings, "no ticket"), patience=0.05)


def test_an_ended_jobs_driver_ends(settings):
    def look() -> TrainingSpec:
        raise Conflict("the job is canceled already")

    with pytest.raises(Conflict, match="canceled already"):
        wait_until_named(settings, "acme", JOB, OWN, look, 30.0)


def test_a_note_is_only_ours_and_holds_a_name_or_says_nothing(tmp_path):
    with offered(tmp_path / "job", "raysubmit_1"):
        note = tmp_path / "job" / "wanted"
        assert stat.S_IMODE(note.stat().st_mode) == 0o600
        note.write_text("raysubmit_1; rm -rf /")
        assert submission.manual_submission(tmp_path / "job") is None


def test_a_later_submissions_note_is_not_taken_away_by_an_earlier_one(tmp_path):
    with offered(tmp_path, "raysubmit_1"), offered(tmp_path, "raysubmit_2"):
        pass
    with offered(tmp_path, "raysubmit_1"):
        (tmp_path / "wanted").write_text("raysubmit_2")
    assert submission.manual_submission(tmp_path) == "raysubmit_2"


def test_a_process_that_is_no_ray_job_is_told_how_to_be_one(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    with pytest.raises(Conflict, match="ray job submit"):
        own_submission()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')
    assert own_submission() == "raysubmit_1"
