"""Two platforms on one PostgreSQL server, in two databases: neither can change or open the other's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from onbrand.config import Settings
from onbrand.db import embedded
from onbrand.db.logins import DatabaseUrls, login_name, prepare
from onbrand.db.migrate import migrate
from onbrand.errors import ConfigurationError


@pytest.fixture(scope="module")
def server(data_folder: Callable[[], Path]) -> Iterator[str]:
    """The owner's DSN of a server whose databases accept all logins."""
    running = embedded.start(Settings(data_dir=data_folder()))
    (running.folder / "postgres" / "pg_hba.conf").write_text("local all all scram-sha-256\n")
    with psycopg.connect(running.owner_url, autocommit=True) as owner:
        owner.execute("select pg_reload_conf()")
        for name in ("staging", "production"):
            owner.execute(f"create database {name}")
    yield running.owner_url
    running.stop()


@pytest.fixture(scope="module")
def platforms(server: str) -> tuple[DatabaseUrls, DatabaseUrls]:
    """Staging, and then production."""
    made = []
    for name in ("staging", "production"):
        url = make_conninfo(server, dbname=name)
        made.append(prepare(url))
        migrate(url)
    return made[0], made[1]


def database_of(url: str) -> str:
    with psycopg.connect(url) as connection:
        return connection.info.dbname


def test_the_second_platform_leaves_the_first_ones_passwords(platforms):
    for platform, name in zip(platforms, ("staging", "production"), strict=True):
        assert database_of(platform.web_url) == database_of(platform.system_url) == name


@pytest.mark.parametrize("login", ["web_url", "system_url"])
def test_a_login_does_not_connect_to_the_other_database(login: str, platforms):
    for platform, other in zip(platforms, ("production", "staging"), strict=True):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(make_conninfo(getattr(platform, login), dbname=other))


def test_a_password_is_not_changed_unasked(server, platforms):
    staging = make_conninfo(server, dbname="staging")
    with pytest.raises(ConfigurationError, match="ONBRAND_RESET_LOGINS"):
        prepare(staging, "another password", "another password")
    assert database_of(platforms[0].web_url) == "staging"


def test_the_same_password_is_no_change(server, platforms):
    passwords = [str(conninfo_to_dict(url)["password"]) for url in (platforms[0].web_url, platforms[0].system_url)]
    assert prepare(make_conninfo(server, dbname="staging"), *passwords).web_url == platforms[0].web_url


def test_a_password_is_changed_when_asked(server):
    url = make_conninfo(server, dbname="production")
    changed = prepare(url, "another password", "another password", reset=True)
    assert database_of(changed.web_url) == "production"


def test_a_long_name_of_a_database_gives_logins_that_differ():
    names = {login_name(login, "d" * length) for login in ("web", "system") for length in (62, 63)}
    assert len(names) == 4
    assert all(len(name.encode()) <= 63 for name in names)
