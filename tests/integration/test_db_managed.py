"""A managed PostgreSQL: the owner is no superuser, has no BYPASSRLS, owns the database and may create roles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from onbrand.brand import Scope
from onbrand.db import embedded
from onbrand.db import server as programs
from onbrand.db.audit import Record
from onbrand.db.claims import install_key
from onbrand.db.limits import set_limits
from onbrand.db.logins import DatabaseUrls, prepare
from onbrand.db.migrate import migrate
from onbrand.db.session import Database
from onbrand.errors import ConfigurationError
from onbrand.secrets_file import Secrets
from onbrand.services import brands, identity, keys


@pytest.fixture(scope="module")
def server(data_folder: Callable[[], Path]) -> Iterator[str]:
    """The superuser's DSN of a server that Onbrand has not prepared."""
    folder = data_folder()
    socket = embedded._socket_folder(folder)
    programs.let_server_through(folder)
    programs.init(folder, embedded.OWNER, "secret")
    programs.run(folder, socket, {**embedded._FILES, "pg_hba.conf": "local all all scram-sha-256\n"})
    url = make_conninfo(host=str(socket), user=embedded.OWNER, password="secret", dbname="postgres")
    with psycopg.connect(url, autocommit=True) as superuser:
        superuser.execute("create role managed login createrole password 'secret'")
        superuser.execute("create role unable login password 'secret'")
        superuser.execute("create database managed owner managed")
        superuser.execute("create database of_another")
        superuser.execute("create database of_the_unable owner unable")
    yield url
    programs.stop(folder)


def dsn(server: str, user: str, database: str) -> str:
    return make_conninfo(server, user=user, dbname=database)


@pytest.fixture(scope="module")
def managed(server: str, secrets: Secrets) -> DatabaseUrls:
    """The database, prepared by its owner."""
    urls = prepare(dsn(server, "managed", "managed"))
    migrate(urls.owner_url)
    install_key(urls.owner_url, secrets.claims)
    return urls


async def test_a_platform_runs_on_it(managed: DatabaseUrls, secrets: Secrets) -> None:
    db = await Database.open(managed.web_url, managed.system_url, claims_key=secrets.claims)
    async with db.user_session(None) as session:
        person = await identity.sign_up(session, "ada@acme.example", "a long enough password")
    async with db.user_session(Scope(person.id)) as session:
        await brands.create_brand(session, "acme")
    async with db.user_session(Scope(person.id, within="acme")) as session:
        made = await keys.create_key(session, "acme", "a key", ["read"])
        assert [member.role for member in (await brands.list_members(session, "acme")).data] == ["admin"]
    async with db.user_session(None) as session:
        assert made.key is not None
        assert (await keys.scope_of(session, keys.credential_of(made.key))).brand_id == "acme"
    async with db.dispatch_session() as session:
        assert await session.all("select * from private.queue()") == []
    await db.close()
    assert set_limits(managed.owner_url, "acme", {"weight": 2.0})["weight"] == 2.0
    with Record(managed.owner_url) as record:
        assert [line["action"] for line in record.lines("acme")] == ["brand.create", "key.create", "brand.set_limits"]


def test_nobody_there_passes_by_row_security(managed: DatabaseUrls) -> None:
    with psycopg.connect(managed.owner_url) as connection:
        found = connection.execute("select rolname from pg_roles where rolbypassrls and not rolsuper").fetchall()
        assert found == []
        assert connection.execute("select rolsuper from pg_roles where rolname = current_user").fetchone() == (False,)


def test_an_owner_who_may_not_make_roles_is_told_what_is_needed(server: str) -> None:
    with pytest.raises(ConfigurationError, match="CREATEROLE"):
        prepare(dsn(server, "unable", "of_the_unable"))


def test_an_owner_of_another_database_is_told_what_is_needed(server: str) -> None:
    with pytest.raises(ConfigurationError, match="owner to"):
        prepare(dsn(server, "managed", "of_another"))
