"""The embedded server: passwords for every login, a private socket, and a SIGKILL that loses no data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from onbrand.config import Settings
from onbrand.db import embedded
from onbrand.db.logins import login_name
from onbrand.db.session import Database
from onbrand.errors import ConfigurationError
from onbrand.secrets_file import load_secrets

HOLDER = """
import sys, time
from pathlib import Path
from onbrand.config import Settings
from onbrand.db import embedded
running = embedded.start(Settings(data_dir=Path(sys.argv[1])))
print(running.folder, flush=True)
time.sleep(600)
"""


@pytest.fixture
def fresh(data_folder: Callable[[], Path]) -> Iterator[Settings]:
    """A data directory of one test, whose processes are stopped at the end."""
    settings = Settings(data_dir=data_folder())
    yield settings
    if (settings.folder / "postgres").exists():
        embedded.start(settings).stop()


def postmaster(settings: Settings) -> psutil.Process:
    return psutil.Process(int((settings.folder / "postgres" / "postmaster.pid").read_text().split("\n")[0]))


def holder(settings: Settings) -> subprocess.Popen[str]:
    """Another process that starts the server and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(settings.data_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": "platform"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip()
    return process


def end(process: subprocess.Popen[str], how: int) -> None:
    process.send_signal(how)
    process.wait(20)
    assert process.stdout is not None
    process.stdout.close()


def test_a_second_start_is_faster_than_the_first_and_finds_the_rows(fresh: Settings):
    began = time.monotonic()
    first = embedded.start(fresh)
    first_seconds = time.monotonic() - began
    with psycopg.connect(first.owner_url) as connection:
        connection.execute("insert into app.brands (id, name, user_id) values ('acme', 'Acme', gen_random_uuid())")
    first.stop()
    began = time.monotonic()
    second = embedded.start(fresh)
    assert time.monotonic() - began < first_seconds
    with psycopg.connect(second.owner_url) as connection:
        assert connection.execute("select id from app.brands").fetchone() == ("acme",)
    second.stop()
    second.stop()


def test_after_a_hard_stop_of_its_parent_the_server_is_taken_over(fresh: Settings):
    process = holder(fresh)
    server = postmaster(fresh)
    end(process, signal.SIGKILL)
    assert server.is_running()
    again = embedded.start(fresh)
    assert postmaster(fresh).pid == server.pid
    again.stop()
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_after_a_hard_stop_of_everything_committed_rows_are_there(fresh: Settings):
    process = holder(fresh)
    with psycopg.connect(embedded.read_urls(fresh).owner_url) as connection:
        connection.execute("insert into app.brands (id, name, user_id) values ('acme', 'Acme', gen_random_uuid())")
    server = postmaster(fresh)
    children = server.children()
    server.kill()
    end(process, signal.SIGKILL)
    again = embedded.start(fresh)
    psutil.wait_procs(children, 10)
    with psycopg.connect(again.owner_url) as connection:
        assert connection.execute("select id from app.brands").fetchone() == ("acme",)
    again.stop()


async def test_a_server_that_dies_is_started_again_and_open_pools_go_on(fresh: Settings):
    running = embedded.start(fresh)
    db = await Database.open(running.web_url, claims_key=load_secrets(fresh).claims, pool=(1, 2))
    try:
        async with db.user_session(None) as session:
            async with session.asking("sign_up", "ada@example.com"):
                await session.one("select * from private.sign_up('ada@example.com', 'x')")
        assert running.restart_if_dead() is False
        server = postmaster(fresh)
        children = server.children()
        server.kill()
        psutil.wait_procs([server, *children], 10)
        assert running.restart_if_dead() is True
        async with db.user_session(None) as session:
            async with session.asking("find_login", "ada@example.com"):
                found = await session.one("select * from private.find_login('ada@example.com')")
            assert found["password_hash"] == "x"
        assert running.restart_if_dead() is False
    finally:
        await db.close()
        running.stop()
    assert running.restart_if_dead() is False
    assert not (fresh.folder / "postgres" / "postmaster.pid").exists()


def test_a_stale_process_id_of_another_program_is_no_obstacle(fresh: Settings):
    embedded.start(fresh).stop()
    stale = fresh.folder / "postgres" / "postmaster.pid"
    stale.write_text(f"{os.getpid()}\n{fresh.folder}/postgres\n1\n5432\n/nowhere\n\n  1 1\nready\n")
    embedded.start(fresh).stop()


def test_a_folder_in_use_is_refused_with_a_remedy(fresh: Settings):
    process = holder(fresh)
    with pytest.raises(ConfigurationError, match=r"another Onbrand uses the data directory .* ONBRAND_DATA_DIR"):
        embedded.start(fresh)
    assert postmaster(fresh).is_running()
    end(process, signal.SIGKILL)


def test_a_broken_cluster_is_refused_with_its_complaint(fresh: Settings):
    embedded.start(fresh).stop()
    version = fresh.folder / "postgres" / "PG_VERSION"
    kept = version.read_text()
    version.write_text("9.1\n")
    with pytest.raises(ConfigurationError, match=r"the embedded database does not start: .* postgres/log"):
        embedded.start(fresh)
    version.write_text(kept)


def test_a_broken_first_start_leaves_no_half_cluster(fresh: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded, "OWNER", "pg_reserved")
    with pytest.raises(ConfigurationError, match="initdb"):
        embedded.start(fresh)
    assert not (fresh.folder / "postgres").exists()


def test_a_long_path_gets_a_short_socket(data_folder: Callable[[], Path]):
    settings = Settings(data_dir=data_folder() / ("long" * 20) / "data")
    settings.data_dir.parent.mkdir()
    running = embedded.start(settings)
    try:
        with psycopg.connect(running.web_url) as connection:
            assert connection.execute("select current_user").fetchone() == (login_name("web", "onbrand"),)
    finally:
        running.stop()


@pytest.mark.parametrize("login", ["postgres", "onbrand_web_onbrand", "onbrand_system_onbrand"])
def test_nobody_gets_in_without_the_right_password(login: str, database):
    if not isinstance(database, embedded.EmbeddedDatabase):
        pytest.skip("the server's own rules of admission are its operator's")
    for password in ("", "wrong", conninfo_to_dict(database.web_url)["password"]):
        if login == "onbrand_web_onbrand" and len(str(password)) > 10:
            continue
        url = make_conninfo(database.owner_url, user=login, password=str(password))
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)


def test_the_server_listens_on_no_network(database):
    if not isinstance(database, embedded.EmbeddedDatabase):
        pytest.skip("where another server listens is its operator's")
    with psycopg.connect(database.owner_url) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("",)
        rows = connection.execute("select type, auth_method from pg_hba_file_rules").fetchall()
    assert set(rows) == {("local", "scram-sha-256")}
    assert oct(embedded._socket_folder(database.folder).stat().st_mode)[-3:] == "700"
    assert oct((database.folder / "database.json").stat().st_mode)[-3:] == "600"


def test_addresses_are_never_shown(database):
    assert conninfo_to_dict(database.web_url)["password"] not in repr(database)


def test_another_process_finds_the_addresses(settings, database):
    if not isinstance(database, embedded.EmbeddedDatabase):
        pytest.skip("addresses of another server are in the settings")
    assert embedded.read_urls(settings).web_url == database.web_url


def test_without_a_database_the_remedy_is_named(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="onbrand up"):
        embedded.read_urls(Settings(data_dir=tmp_path))
