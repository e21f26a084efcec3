"""The ticket's file."""

import stat

import pytest

from onbrand.config import Settings
from onbrand.errors import InvalidInput, TicketRefused
from onbrand.training.tickets import must_be_job_id, read_ticket, remove_ticket, run_url, write_ticket

JOB = "0b8a4c1e-1111-4222-8333-444455556666"


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(data_dir=tmp_path)


def test_workers_read_what_the_dispatcher_wrote_last(settings):
    write_ticket(settings, "acme", JOB, "first")
    write_ticket(settings, "acme", JOB, "second")
    assert read_ticket(settings, "acme", JOB) == "second"


def test_only_we_may_read_a_ticket(settings, tmp_path):
    write_ticket(settings, "acme", JOB, "token")
    [file] = tmp_path.rglob("ticket")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [other.name for other in file.parent.iterdir()] == ["ticket"]


def test_a_job_without_a_ticket_is_told_who_leaves_one(settings):
    with pytest.raises(TicketRefused, match="dispatcher"):
        read_ticket(settings, "acme", JOB)


def test_a_removed_ticket_is_gone_and_may_be_removed_again(settings):
    write_ticket(settings, "acme", JOB, "token")
    remove_ticket(settings, "acme", JOB)
    remove_ticket(settings, "acme", JOB)
    with pytest.raises(TicketRefused):
        read_ticket(settings, "acme", JOB)


@pytest.mark.parametrize("text", ["../../etc", "1; rm -rf /", JOB.upper(), JOB + "0", ""])
def test_only_a_uuid_names_a_run(text):
    with pytest.raises(InvalidInput):
        must_be_job_id(text)


def test_a_brand_that_is_none_names_no_run(settings):
    with pytest.raises(InvalidInput):
        run_url(settings, "../acme", JOB)
