"""The file with a job's ticket."""

import stat

import pytest

from onbrand.config import Settings
from onbrand.errors import InvalidInput, TicketRefused
from onbrand.training.dispatch.tickets import (
    FileTickets,
    TicketActor,
    must_be_job_id,
    read_ticket,
    remove_ticket,
    run_folder,
    ticket_folder,
    write_ticket,
)

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
        run_folder(settings, "../acme", JOB)


def test_with_runs_in_a_folder_the_ticket_lies_where_every_node_sees_it(tmp_path):
    settings = Settings(data_dir=tmp_path / "data", run_storage=str(tmp_path / "shared"))
    write_ticket(settings, "acme", JOB, "token")
    assert (tmp_path / "shared" / "acme" / JOB / "ticket").read_text() == "token"


def test_with_runs_on_s3_the_ticket_stays_on_the_dispatchers_own_disk(tmp_path):
    """Nobody but the platform has a key of that bucket, and tickets are not for it to keep."""
    settings = Settings(data_dir=tmp_path, run_storage="s3://runs/all", s3_endpoint="http://127.0.0.1:9")
    write_ticket(settings, "acme", JOB, "token")
    [file] = tmp_path.rglob("ticket")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_ticket(settings, "acme", JOB) == "token"
    remove_ticket(settings, "acme", JOB)
    assert list(tmp_path.rglob(JOB)) == []


def test_a_desk_shows_the_newest_ticket_and_none_when_it_is_gone(settings):
    desk = TicketActor(ticket_folder(settings, "acme", JOB))
    assert desk.newest() is None
    write_ticket(settings, "acme", JOB, "first")
    write_ticket(settings, "acme", JOB, "second")
    assert desk.newest() == "second"


def test_where_a_ticket_comes_from_can_be_sent_and_holds_none(settings):
    import pickle

    write_ticket(settings, "acme", JOB, "the-token")
    source = FileTickets(ticket_folder(settings, "acme", JOB))
    assert b"the-token" not in pickle.dumps(source)
    assert pickle.loads(pickle.dumps(source)).newest() == "the-token"  # noqa: S301
