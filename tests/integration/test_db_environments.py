"""The embedded server in folders with odd names, in foreign environments, and after a failed start."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from onbrand.config import Settings
from onbrand.db import embedded, server
from onbrand.db.dsn import connect, explicit_dsn
from onbrand.db.logins import DatabaseUrls
from onbrand.db.migrate import migrate
from onbrand.db.session import Database
from onbrand.errors import ConfigurationError
from onbrand.secrets_file import load_secrets

ODD = ['run #1, it\'s "100%" `id` $HOME a%20b?', "-D ü 画", "a;b&c|d\\e 'f'"]
FOREIGN = {
    "PGPORT": "9999", "PGHOST": "db.example", "PGDATABASE": "elsewhere", "PGUSER": "somebody", "PGPASSWORD": "word",
    "PGSERVICE": "nothing", "PGOPTIONS": "-c no.such=1 -c search_path=x", "PGSSLMODE": "verify-full",
    "PGDATA": "/nowhere", "PGPASSFILE": "/nowhere", "PGAPPNAME": "x", "PGCLIENTENCODING": "LATIN1",
    "PGTZ": "Nowhere/Else", "PGDATESTYLE": "SQL", "LC_ALL": "xx_XX.nothing", "LANG": "xx_XX", "TMPDIR": "/nowhere",
}  # fmt: skip


def server_of(folder: Path) -> list[psutil.Process]:
    """Processes whose working folder is the folder's `postgres`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and Path(process.cwd()) == Path(os.path.realpath(folder)) / "postgres":
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@contextmanager
def started(settings: Settings) -> Iterator[embedded.EmbeddedDatabase]:
    running = embedded.start(settings)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("name", ODD)
def test_a_folder_may_have_any_name(data_folder: Callable[[], Path], name: str) -> None:
    settings = Settings(data_dir=data_folder() / name)
    with started(settings) as running:
        with psycopg.connect(running.web_url) as connection:
            assert connection.execute("select current_user, current_database()").fetchone() is not None
        for process in server_of(settings.folder):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(server_of(settings.folder), 20)
        assert running.restart_if_dead()
        with psycopg.connect(running.system_url) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
    assert server_of(settings.folder) == []
    assert sorted(settings.folder.iterdir()) == sorted(
        settings.folder / known
        for known in ("database.json", "postgres", "postgres.lock", "secrets.json", *_near(running))
    )


def _near(running: embedded.EmbeddedDatabase) -> list[str]:
    """The folder of the sockets, if it is in the data directory."""
    place = Path(str(conninfo_to_dict(running.web_url)["host"]))
    assert place.exists() == (place.parent == running.folder), "sockets elsewhere go with the server"
    return ["socket"] if place.parent == running.folder else []


def test_a_folder_may_be_a_link_and_relative(data_folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    place = data_folder()
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    monkeypatch.chdir(place)
    with started(Settings(data_dir=Path("link"))) as running, psycopg.connect(running.owner_url) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert (place / "real" / "postgres").is_dir()


async def test_other_peoples_variables_reach_neither_the_server_nor_our_connections(
    data_folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=data_folder())
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    with started(settings) as running:
        [postmaster] = [each for each in server_of(settings.folder) if each.ppid() not in _pids(settings.folder)]
        inherited = postmaster.environ()
        moved = FOREIGN.items() - {("TMPDIR", FOREIGN["TMPDIR"])}
        assert moved & inherited.items() == set()
        db = await Database.open(running.web_url, running.system_url, claims_key=load_secrets(settings).claims)
        await db.close()
        with connect(running.owner_url) as connection:
            assert connection.execute("show timezone").fetchone() == ("UTC",)
            assert connection.info.parameter_status("application_name") != "x"


def _pids(folder: Path) -> set[int]:
    return {each.pid for each in server_of(folder)}


def test_the_servers_environment_holds_no_secret(
    data_folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONBRAND_S3_SECRET_KEY", "s3cret")
    settings = Settings(data_dir=data_folder())
    with started(settings):
        assert all("s3cret" not in each.environ().values() for each in server_of(settings.folder))


@pytest.mark.parametrize(
    ("step", "kind"), [("migrate", ConfigurationError("no")), ("connect_as_owner", KeyboardInterrupt())]
)
def test_a_start_that_fails_leaves_no_server_behind(
    data_folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, step: str, kind: BaseException
) -> None:
    settings = Settings(data_dir=data_folder())

    def fail(*_: object, **__: object) -> None:
        assert server_of(settings.folder) != []
        raise kind

    with monkeypatch.context() as patched:
        patched.setattr(embedded, step, fail)
        with pytest.raises(type(kind)):
            embedded.start(settings)
    assert server_of(settings.folder) == []
    with started(settings):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user, which takes root")
def test_a_folder_for_sockets_that_somebody_else_made_is_refused_and_a_link_is_not_followed(
    data_folder: Callable[[], Path],
) -> None:
    place, target = data_folder(), data_folder()
    (place / "theirs").mkdir()
    os.chown(place / "theirs", 65534, 65534)
    (place / "link").symlink_to(target)
    for name in ("theirs", "link"):
        with pytest.raises(ConfigurationError, match="somebody else"):
            server._own(place / name)
    assert target.stat().st_uid == 0


def test_sockets_outside_the_folder_have_a_name_that_nobody_can_guess(data_folder: Callable[[], Path]) -> None:
    names = set()
    for _ in range(2):
        folder = data_folder()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(embedded, "_SOCKET_PATH_MAX", 0)
            patched.setattr(embedded, "hashlib", _Recorded(names))
            embedded._socket_folder(folder)
        owners = str((folder / "database.json").read_text())
        assert any(secret in text for text in names for secret in owners.split('"') if len(secret) == 48)


class _Recorded:
    """hashlib's sha256, which records its input."""

    def __init__(self, given: set[str]) -> None:
        self._given = given

    def sha256(self, data: bytes) -> object:
        import hashlib

        self._given.add(data.decode())
        return hashlib.sha256(data)


@pytest.fixture(scope="module")
def own_server(data_folder: Callable[[], Path]) -> Iterator[DatabaseUrls]:
    with started(Settings(data_dir=data_folder())) as running:
        yield running


@pytest.mark.parametrize("name", ["my db", "100% a%20b", "it's \"ü/画?#&=+"])
def test_a_database_may_have_any_name(own_server: DatabaseUrls, name: str) -> None:
    from psycopg import sql

    with psycopg.connect(own_server.owner_url, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    owner_url = make_conninfo(own_server.owner_url, dbname=name)
    assert migrate(owner_url) > 5
    with psycopg.connect(owner_url) as connection:
        assert connection.execute("select current_database(), to_regclass('audit.events') is not null").fetchone() == (
            name,
            True,
        )


def test_a_url_with_a_quoted_name_and_a_service_lead_to_the_same_database(
    own_server: DatabaseUrls, data_folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = conninfo_to_dict(own_server.owner_url)
    words = {name: quote(str(value), safe="") for name, value in parts.items()}
    url = (
        f"postgresql://{words['user']}:{words['password']}@/{words['dbname']}?host={words['host']}&port={words['port']}"
    )
    home = data_folder()
    lines = "\n".join(f"{name}={value}" for name, value in parts.items())
    (home / ".pg_service.conf").write_text(f"[ours]\n{lines}\n")
    monkeypatch.setenv("HOME", str(home))
    for dsn in (url, "service=ours"):
        with connect(dsn) as connection:
            explicit = explicit_dsn(connection)
        assert "service" not in conninfo_to_dict(explicit)
        monkeypatch.setenv("HOME", "/nowhere")
        with psycopg.connect(explicit) as connection:
            assert connection.execute("select current_database()").fetchone() == (parts["dbname"],)
        monkeypatch.setenv("HOME", str(home))
