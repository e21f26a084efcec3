"""Each migration runs once, and all of them together give `db/schema.sql`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from onbrand.config import Settings
from onbrand.db import embedded
from onbrand.db.logins import LOGINS, login_name, must_be_new_enough, prepare
from onbrand.db.migrate import dump_schema, migrate
from onbrand.errors import ConfigurationError, Unavailable


def test_the_migrations_make_schema_sql(database, repository: Path):
    if not isinstance(database, embedded.EmbeddedDatabase):
        pytest.skip("schema.sql is what the embedded server's pg_dump writes")
    made = dump_schema(database.owner_url, embedded.programs() / "pg_dump")
    assert made == (repository / "platform/onbrand/db/schema.sql").read_text(), "run 'make schema'"


def test_migrating_again_changes_nothing(database):
    assert migrate(database.owner_url) == 0


def test_processes_that_migrate_at_the_same_time_wait_for_each_other(database):
    with psycopg.connect(database.owner_url, autocommit=True) as connection:
        connection.execute("create database race")
    try:
        url = make_conninfo(database.owner_url, dbname="race")
        with ThreadPoolExecutor(3) as threads:
            applied = list(
                threads.map(lambda _: (prepare(url, *passwords(database), reset=True), migrate(url))[1], range(3))
            )
        assert sorted(applied)[:2] == [0, 0]
        assert max(applied) >= 2
    finally:
        with psycopg.connect(database.owner_url, autocommit=True) as connection:
            connection.execute("drop database race")


def passwords(database) -> tuple[str, str]:
    """Those in use: the logins belong to the whole server."""
    from psycopg.conninfo import conninfo_to_dict

    return tuple(str(conninfo_to_dict(url)["password"]) for url in (database.web_url, database.system_url))  # type: ignore[return-value]


def test_another_postgresql_is_prepared_by_its_owners_address(database, data_folder):
    settings = Settings(
        data_dir=data_folder(),
        database_url=database.owner_url,
        web_database_url=database.web_url,
        system_database_url=database.system_url,
    )
    urls = embedded.open_database(settings)
    assert not isinstance(urls, embedded.EmbeddedDatabase)
    for login, url in zip(LOGINS, (urls.web_url, urls.system_url), strict=True):
        with psycopg.connect(url) as connection:
            name = login_name(login, connection.info.dbname)
            assert connection.execute("select current_user").fetchone() == (name,)


def test_a_replica_with_one_address_gets_that_one_only(database, data_folder):
    urls = embedded.read_urls(Settings(data_dir=data_folder(), web_database_url=database.web_url))
    assert (urls.owner_url, urls.web_url, urls.system_url) == ("", database.web_url, "")


@pytest.mark.parametrize("version", [150018, 160010, 170006, 180000, 190001])
def test_a_version_with_its_holes_closed_is_accepted(version: int):
    must_be_new_enough(version)


@pytest.mark.parametrize("version", [140010, 150013, 160009, 170005])
def test_an_older_version_is_refused_by_name(version: int):
    with pytest.raises(ConfigurationError, match=rf"PostgreSQL {version // 10000}\.{version % 10000} is too old"):
        must_be_new_enough(version)


def test_a_database_that_does_not_answer_is_unavailable_and_its_address_stays_hidden():
    with pytest.raises(Unavailable) as refused:
        migrate("host=/nowhere user=postgres password=tell-nobody dbname=x")
    assert "tell-nobody" not in repr(refused.value) + str(refused.value.fields)
